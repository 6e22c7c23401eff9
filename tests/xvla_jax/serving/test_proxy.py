"""The server behind nginx with docs/nginx.conf; runs where nginx and openssl are installed."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from tests.xvla_jax.serving.fakes import FakeEngine, dumps, listening, request
from xvla_jax.serving.codecs import pack, unpack
from xvla_jax.serving.limits import Limits
from xvla_jax.serving.server import Door
from xvla_jax.serving.service import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("nginx") and shutil.which("openssl")),
        reason="nginx or openssl is not installed (apt-get install nginx openssl)",
    ),
]
CONF = Path(__file__).parents[3] / "docs" / "nginx.conf"
NAME = "robots.example.org"
TOKEN = "correct horse battery"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
# nginx's own top level, with every file below the folder of the test
MAIN = """
user root; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/site.conf;
}}
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _reachable(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Proxy:
    """nginx in front of a `Service`.

    Args:
        port: nginx's, on loopback.
        service: behind it.
        context: trusts nginx's certificate.
    """

    def __init__(self, port: int, service: Service, context: ssl.SSLContext) -> None:
        self.port, self.service, self.context = port, service, context

    def plain(self) -> socket.socket:
        """Connects without TLS so far."""
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def socket(self, name: str = NAME) -> ssl.SSLSocket:
        """Connects by TLS under a name."""
        return self.context.wrap_socket(self.plain(), server_hostname=name)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """Status and body of one request."""
        connection = http.client.HTTPSConnection(NAME, self.port, context=self.context)
        connection.sock = self.socket()
        with contextlib.closing(connection):
            connection.request(method, path, body, HEADERS | headers)
            reply = connection.getresponse()
            return reply.status, reply.read()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder, limits = tmp_path_factory.mktemp("nginx"), Limits()
    service = Service(lambda: FakeEngine(limits), limits)
    door = Door(token=TOKEN, allowed_hosts=(NAME,), trusted_proxies=("127.0.0.1",))
    certificate, key, port = folder / "robots.pem", folder / "robots.key", _free_port()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(command, check=True, capture_output=True)
    with listening(limits, service, door) as behind:
        text = CONF.read_text()
        for stated, here in (
            ("/etc/ssl/", f"{folder}/"),
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("127.0.0.1:8010", f"127.0.0.1:{behind}"),
        ):
            assert stated in text
            text = text.replace(stated, here)
        (folder / "site.conf").write_text(text)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-e", "stderr"])
        try:
            end = time.monotonic() + 10
            while not _reachable(port):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            context = ssl.create_default_context(cafile=str(certificate))
            yield Proxy(port, service, context)
        finally:
            process.terminate()
            process.wait(10)


def test_act_and_probes(proxy: Proxy) -> None:
    status, reply = proxy.ask("POST", "/act", json.dumps(request()).encode())
    assert status == 200, reply
    assert json.loads(reply)["action"]
    assert proxy.ask("GET", "/livez")[0] == proxy.ask("GET", "/readyz")[0] == 200
    assert proxy.ask("POST", "/act", json.dumps(request()).encode(), Authorization="x")[0] == 403


def test_the_websocket(proxy: Proxy) -> None:
    seen = {"image0": np.zeros((2, 2, 3), np.uint8), "state": np.zeros(20), "prompt": "push"}
    with connect(
        f"wss://{NAME}/?domain_id=3",
        sock=proxy.plain(),
        ssl=proxy.context,
        additional_headers={"Authorization": HEADERS["Authorization"]},
        compression=None,
    ) as ws:
        unpack(ws.recv(10, decode=False))
        for _ in range(3):
            ws.send(pack(seen))
            assert unpack(ws.recv(10, decode=False))["actions"].shape == (4, 20)


def test_a_body_that_is_too_large_ends_at_the_proxy(proxy: Proxy) -> None:
    large = json.dumps(request(note="x" * (16 * 2**20))).encode()
    status, reply = proxy.ask("POST", "/act", large)
    assert status == 413
    assert json.loads(reply)["detail"]["field"] == "body"
    below = json.dumps(request(note="x" * (15 * 2**20))).encode()
    assert proxy.ask("POST", "/act", below)[0] == 200


def test_another_name_is_not_served(proxy: Proxy) -> None:
    proxy.context.check_hostname = False
    with pytest.raises(ssl.SSLError):
        proxy.socket("evil.example.com")
    proxy.context.check_hostname = True
    status, _ = proxy.ask("GET", "/livez", Host="evil.example.com")
    assert 400 <= status < 500


def test_metrics_are_not_public_and_browsers_are_refused(proxy: Proxy) -> None:
    assert proxy.ask("GET", "/metrics")[0] == 403
    status, reply = proxy.ask("GET", "/info", Origin="https://evil.example.com")
    assert (status, json.loads(reply)["detail"]["field"]) == (403, "Origin")


def test_the_server_sees_the_clients_address_and_not_what_it_claims(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []
    client = proxy.service.clients.client
    monkeypatch.setattr(
        proxy.service.clients, "client", lambda a, n: addresses.append(a) or client(a, n)
    )
    body = json.dumps(request(image0=dumps(np.zeros((2, 2, 3), np.uint8)))).encode()
    assert proxy.ask("POST", "/act", body, **{"X-Forwarded-For": "9.9.9.9"})[0] == 200
    assert addresses == ["127.0.0.1"]


def test_a_burst_is_refused_in_a_form_that_our_client_repeats(proxy: Proxy) -> None:
    with contextlib.closing(proxy.socket()) as one:
        one.sendall(f"GET /livez HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode() * 400)
        replies = b""
        while replies.count(b"HTTP/1.1") < 400:
            replies += one.recv(2**16)
    statuses = {reply[1:4] for reply in replies.split(b"HTTP/1.1")[1:]}
    assert statuses == {b"200", b"503"}
