"""Which records of libraries reach a terminal."""

from __future__ import annotations

import logging

import pytest

from scripts.terminal import quiet_libraries

_TASK = "Task exception was never retrieved\nfuture: <Task coro=<_open_and_write() at {}/x.py:121>>"


@pytest.mark.parametrize(
    ("name", "message", "shown"),
    [
        ("asyncio", _TASK.format("/lib/orbax/checkpoint"), False),
        ("asyncio", _TASK.format("/lib/aiohttp"), True),
        ("absl", "_SignalingThread.run() raised an exception", False),
        ("absl", "a checkpoint is missing", True),
        ("orbax", "restored in 3 s", False),
    ],
)
def test_what_orbax_raises_as_well_is_not_logged(
    name: str, message: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("absl"), "handlers", [])
    monkeypatch.setattr("sys.unraisablehook", None)
    for logger in (name, "jax", "orbax"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.INFO)
        monkeypatch.setattr(logging.getLogger(logger), "propagate", True)
    monkeypatch.setattr(logging.getLogger(name), "_cache", {})
    quiet_libraries()
    level = logging.INFO if message.startswith("restored") else logging.ERROR
    logging.getLogger(name).log(level, message)
    assert bool(records) is shown
