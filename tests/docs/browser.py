"""A headless Chromium, driven by its DevTools protocol over a websocket."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
HEIGHT = 900  # px of the window
_START_S, _ANSWER_S = 60.0, 60.0
_QUIET_S = 0.4  # without an event, then the page counts as loaded

# What a visitor would miss: JavaScript that returns lists of addresses and texts.
_LOOK = """(async () => {
  const images = [...document.images], films = [...document.querySelectorAll('video')];
  images.forEach(image => { image.loading = 'eager'; });
  await Promise.allSettled(images.map(image => image.decode()));
  await Promise.allSettled(films.map(film => film.readyState > 1 || film.error ? 0 :
    new Promise(done => { film.onloadeddata = film.onerror = done; film.load(); })));
  const short = element => (element.currentSrc || element.outerHTML).slice(0, 100);
  const right = document.documentElement.clientWidth + 1;
  const scrolls = element => element && element !== document.body && (
    getComputedStyle(element).overflowX !== 'visible' || scrolls(element.parentElement));
  const visible = element => element.offsetParent && element.getClientRects().length;
  return {
    broken: images.filter(image => !image.naturalWidth).map(short).concat(
      films.filter(film => film.error || !film.videoWidth).map(short)),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    cut: [...document.querySelectorAll('main *, article *')].filter(element =>
      visible(element) && element.getBoundingClientRect().right > right &&
      !scrolls(element.parentElement)).map(short).slice(0, 5),
    media: images.length + films.length,
  };
})()"""


class Sight(NamedTuple):
    """A page at one width."""

    complaints: list[str]  # console errors, failed requests, broken media, what is cut off
    requests: list[str]  # addresses that the page loaded, data: left out
    media: int  # images and films


def executable() -> str | None:
    """Returns the path of a Chromium, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a running Chromium."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._events: list[dict[str, Any]] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def look(self, url: str, width: int, picture: Path | None = None) -> Sight:
        """Opens a page in a window of `width` px; keeps a PNG of all of it under `picture`."""
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        self._events.clear()
        self._ask("Page.navigate", url=url)
        self._until_loaded()
        answer = self._ask(
            "Runtime.evaluate", expression=_LOOK, awaitPromise=True, returnByValue=True
        )
        seen = answer["result"]["value"]
        if picture is not None:
            shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        complaints = [text for event in self._events if (text := _complaint(event))]
        complaints += [f"broken: {source}" for source in seen["broken"]]
        complaints += [f"cut off at {width} px: {element}" for element in seen["cut"]]
        if seen["wide"] > 0:
            complaints.append(f"{seen['wide']} px wider than a window of {width}")
        requests = [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return Sight(complaints, [u for u in requests if not u.startswith("data:")], seen["media"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        session = getattr(self, "_session", None)
        if session is not None:
            message["sessionId"] = session["sessionId"]
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(_ANSWER_S))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def _until_loaded(self) -> None:
        end = time.monotonic() + _ANSWER_S
        while time.monotonic() < end:
            try:
                self._events.append(json.loads(self._connection.recv(_QUIET_S)))
            except TimeoutError:
                if any(event["method"] == "Page.loadEventFired" for event in self._events):
                    return
        raise TimeoutError("the page did not load")


def _complaint(event: dict[str, Any]) -> str | None:
    """Returns what an event complains of, or None."""
    method, params = event["method"], event["params"]
    if method == "Runtime.exceptionThrown":
        return f"exception: {params['exceptionDetails'].get('exception', params)}"
    if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        return f"console: {[argument.get('value') for argument in params['args']]}"
    if method == "Log.entryAdded" and params["entry"]["level"] == "error":
        return f"log: {params['entry']['text']} {params['entry'].get('url', '')}"
    if method == "Network.loadingFailed" and not params.get("canceled"):
        return f"not loaded: {params['errorText']}"
    return None


@contextlib.contextmanager
def opened(program: str, profile: Path) -> Iterator[Browser]:
    """Starts a Chromium with a profile of its own; ends it behind the block."""
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    quiet = ("--no-first-run", "--disable-background-networking", "--hide-scrollbars")
    process = subprocess.Popen(
        [program, *flags, *quiet, "--remote-debugging-port=0", f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with connect(_address(profile, process), max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(_ANSWER_S)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Returns the address of the browser's websocket, once it has written it."""
    file, end = profile / "DevToolsActivePort", time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and len(lines := file.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise TimeoutError(f"Chromium did not start (exit status {process.poll()})")
