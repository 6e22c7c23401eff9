"""Google Cloud Storage on this machine, for every client library that the code goes through.

TensorFlow's client knows no other address than Google's: it is sent here by the proxy variable, and
meets a certificate made for the test. TensorStore, and Google's own client behind Orbax and our
code, take the address of the server. Objects have generations, and writes may be conditional on
them, as a lock needs; listings come in pages. Faults are injected by rules.

``python -m tests.fake_gcs COMMAND ...`` runs a command, or a shell, beside an empty gs://lab.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email.parser
import hashlib
import itertools
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "lab"
_HOSTS = ("storage.googleapis.com", "www.googleapis.com")
_OBJECTS = f"/storage/v1/b/{BUCKET}/o"
_PAGE = 40  # entries of a listing; the real service's limit is 1000
_STAMP = "2026-01-01T00:00:00.000Z"


class Answer(Exception):  # noqa: N818  # no error: it ends the handling of a request
    """A status other than success, with which a request is answered."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclasses.dataclass
class Rule:
    """A fault: what happens to requests, and to how many of them.

    Attributes:
        requests: pattern that is searched in "METHOD path?query", unquoted.
        action: a status to answer with; "cut" closes the connection after half of the request;
            "forget" does what is asked and closes it then; "hold" never answers.
        times: requests that meet it.
        skip: requests that pass before.
    """

    requests: str
    action: int | str
    times: int = 1
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object: its bytes and the number of its version."""

    content: bytes
    generation: int


class FakeStorage:
    """The objects of one bucket, and what goes wrong with the requests for them.

    Attributes:
        objects: by name.
        rules: faults to come.
        met: requests that met a fault, as "METHOD path?query".
        requests: all of them.
        released: set at the end, for requests that are held.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.rules: list[Rule] = []
        self.met: list[str] = []
        self.requests: list[str] = []
        self.released = threading.Event()
        self.uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self._lock = threading.RLock()
        self._numbers = itertools.count(int(time.time() * 1e6))

    def add_folder(self, folder: Path, prefix: str = "") -> None:
        """Adds the files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.put(f"{prefix}{name}", path.read_bytes(), {})

    def put(self, name: str, content: bytes, conditions: Mapping[str, str]) -> dict[str, Any]:
        """Stores an object, if the conditions of the request hold; returns its description."""
        with self._lock:
            self.check(name, conditions)
            self.objects[name] = Stored(content, next(self._numbers))
            return self.described(name)

    def remove(self, name: str, conditions: Mapping[str, str]) -> None:
        """Removes an object, if the conditions of the request hold."""
        with self._lock:
            self.get(name)
            self.check(name, conditions)
            del self.objects[name]

    def get(self, name: str) -> Stored:
        """Returns an object."""
        with self._lock:
            if name not in self.objects:
                raise Answer(404)
            return self.objects[name]

    def described(self, name: str) -> dict[str, Any]:
        """Returns an object's resource, as the JSON API describes it."""
        stored = self.get(name)
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "id": f"{BUCKET}/{name}/{stored.generation}",
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.content)),
            "timeCreated": _STAMP,
            "updated": _STAMP,
            "md5Hash": base64.b64encode(hashlib.md5(stored.content).digest()).decode(),
            "crc32c": _crc32c(stored.content),
            "storageClass": "STANDARD",
        }

    def listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns a page of names below a prefix, those below a delimiter as one."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, end = query.get("startOffset", ""), query.get("endOffset", "")
        entries: dict[str, bool] = {}  # name or prefix -> it is a prefix
        with self._lock:
            for name in sorted(self.objects):
                if not name.startswith(prefix) or name < first or (end and name >= end):
                    continue
                head, cut, _ = name.removeprefix(prefix).partition(delimiter or "\0")
                entries[prefix + head + delimiter if cut else name] = bool(cut)
            ordered = [entry for entry in entries if entry > query.get("pageToken", "")]
            page = ordered[: min(_PAGE, int(query.get("maxResults", _PAGE)))]
            more = {"nextPageToken": page[-1]} if len(page) < len(ordered) else {}
            return {
                "kind": "storage#objects",
                "items": [self.described(entry) for entry in page if not entries[entry]],
                "prefixes": [entry for entry in page if entries[entry]],
            } | more

    def wait_for_fault(self, process: subprocess.Popen[Any], limit_s: float = 300) -> None:
        """Returns when a request of a process has met a fault."""
        until = time.monotonic() + limit_s
        while not self.met:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, self.requests[-5:]
            time.sleep(0.02)

    def meet(self, request: str) -> Rule | None:
        """Notes a request; returns the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            for rule in self.rules:
                if rule.times > 0 and re.search(rule.requests, request):
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    rule.times -= 1
                    self.met.append(request)
                    return rule
        return None

    def check(self, name: str, conditions: Mapping[str, str]) -> None:
        """Refuses a request whose condition on the version of an object does not hold."""
        condition = conditions.get("ifGenerationMatch")
        stored = self.objects.get(name)
        if condition is not None and int(condition) != (stored.generation if stored else 0):
            raise Answer(412)


@contextlib.contextmanager
def fake_gcs(certificate: Path | None = None) -> Iterator[tuple[FakeStorage, dict[str, str]]]:
    """Serves an empty bucket gs://lab; yields its content, and the environment of clients.

    Args:
        certificate: folder for one, without which TensorFlow's client does not come.
    """
    storage = FakeStorage()
    context = _tls(certificate) if certificate else None
    handler = type("Handler", (_Handler,), {"storage": storage, "context": context})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environ = {
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
    }
    if certificate:
        environ |= {
            "https_proxy": address,
            # else JAX's processes look for one another behind it, and wait for minutes
            "no_proxy": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": str(certificate / "certificate.pem"),
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "20000",
            "GCS_RETRY_CONFIG_MAX_RETRIES": "4",
        }
    try:
        yield storage, environ
    finally:
        storage.released.set()
        server.shutdown()
        server.server_close()


def _tls(folder: Path) -> ssl.SSLContext:
    names = ",".join(f"DNS:{host}" for host in _HOSTS)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=fake bucket", "-addext", f"subjectAltName={names}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports mistakes of this file; clients that are killed leave their connections."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    silent = False
    storage: FakeStorage
    context: ssl.SSLContext | None

    def do_CONNECT(self) -> None:
        """Becomes the host that the client wants to be connected to."""
        assert self.context
        self.send_response(200)
        self.end_headers()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def do_GET(self) -> None:
        """Answers for a bucket, a list of objects, an object's description, or its bytes."""
        self._answer()

    def do_POST(self) -> None:
        """Stores an object, begins to, or copies one."""
        self._answer()

    def do_PUT(self) -> None:
        """Continues to store an object."""
        self._answer()

    def do_DELETE(self) -> None:
        """Removes an object."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        rule = self.storage.meet(urllib.parse.unquote(f"{self.command} {self.path}"))
        length = int(self.headers.get("Content-Length", 0))
        action = rule.action if rule else None
        if action in ("cut", "hold"):
            self.rfile.read(length // 2)
            if action == "hold":
                self.storage.released.wait()
            self.close_connection = True
            return
        # TensorFlow names the length as well, and sends chunks
        in_chunks = self.headers.get("Transfer-Encoding", "") == "chunked"
        body = self._chunks() if in_chunks else self.rfile.read(length)
        try:
            if isinstance(action, int):
                raise Answer(action)
            self.silent = action == "forget"
            self._route(self.command, url.path, body)
        except Answer as answer:
            self._send_json({"error": {"code": answer.status, "message": "fault"}}, answer.status)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, method: str, path: str, body: bytes) -> None:
        unquote = urllib.parse.unquote
        if path == f"/upload{_OBJECTS}":
            self._upload(method, body)
        elif path == f"/storage/v1/b/{BUCKET}":
            self._send_json({"kind": "storage#bucket", "name": BUCKET, "location": "US"})
        elif path == _OBJECTS:
            self._send_json(self.storage.listed(self.query))
        elif method == "POST" and path.startswith(
            f"{_OBJECTS}/"
        ):  # copies and renames of TensorFlow and Google's client
            source, target = re.split(r"/(?:rewriteTo|copyTo)/b/\w+/o/", path, maxsplit=1)
            content = self.storage.get(unquote(source.removeprefix(f"{_OBJECTS}/"))).content
            resource = self.storage.put(unquote(target), content, self.query)
            size = resource["size"]
            moved = {"objectSize": size, "totalBytesRewritten": size, "resource": resource}
            self._send_json({"kind": "storage#rewriteResponse", "done": True} | moved)
        elif path.startswith(f"{_OBJECTS}/") and method == "DELETE":
            self.storage.remove(unquote(path.removeprefix(f"{_OBJECTS}/")), self.query)
            self._send(204, b"")
        elif path.startswith(f"{_OBJECTS}/") and self.query.get("alt") != "media":
            self._send_json(self.storage.described(unquote(path.removeprefix(f"{_OBJECTS}/"))))
        else:
            heads = (f"/download{_OBJECTS}/", f"{_OBJECTS}/", f"/{BUCKET}/")
            head = next((head for head in heads if path.startswith(head)), None)
            if head is None:  # another bucket
                raise Answer(404)
            self._send_object(unquote(path.removeprefix(head)))

    def _upload(self, method: str, body: bytes) -> None:
        kind = self.query.get("uploadType", "")
        if method == "PUT":
            self._continue_upload(body)
        elif kind == "media":
            self._send_json(self.storage.put(self.query["name"], body, self.query))
        elif kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.parser.BytesParser().parsebytes(head + body)
            parts: Any = message.get_payload()
            name = json.loads(parts[0].get_payload())["name"]
            boundary = b"--" + str(message.get_boundary()).encode()
            # the parser of mails would change the ends of lines
            raw = body.split(boundary)[2].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self._send_json(self.storage.put(name, raw, self.query))
        else:
            name = self.query.get("name") or json.loads(body)["name"]
            number = f"upload{len(self.storage.uploads)}"
            self.storage.uploads[number] = (name, self.query, bytearray())
            scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            place = f"{scheme}://{self.headers['Host']}/upload{_OBJECTS}?upload_id={number}"
            self._send(200, b"", Location=place)

    def _continue_upload(self, body: bytes) -> None:
        name, conditions, content = self.storage.uploads[self.query["upload_id"]]
        begin, _, total = (
            self.headers.get("Content-Range", "bytes */*").removeprefix("bytes ").partition("/")
        )
        if not begin.startswith("*"):
            content[int(begin.partition("-")[0]) :] = body
        elif body:
            content[:] = body
        if total == "*" or len(content) < int(total):
            self._send(308, b"", **({"Range": f"bytes=0-{len(content) - 1}"} if content else {}))
            return
        self._send_json(self.storage.put(name, bytes(content), conditions))

    def _send_object(self, name: str) -> None:
        stored = self.storage.get(name)
        self.storage.check(name, self.query)
        condition = self.query.get("ifGenerationNotMatch")
        if condition is not None and int(condition) == stored.generation:
            raise Answer(304)
        headers = {
            "x-goog-generation": str(stored.generation),
            "x-goog-metageneration": "1",
            "x-goog-hash": f"crc32c={_crc32c(stored.content)}",
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        span = self.headers.get("Range")
        if span is None:
            self._send(200, stored.content, **headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        size = len(stored.content)
        begin, end = (int(first), int(last or size - 1) + 1) if first else (size - int(last), size)
        part = stored.content[begin:end]
        if not part:
            raise Answer(416)
        headers["Content-Range"] = f"bytes {begin}-{begin + len(part) - 1}/{size}"
        self._send(206, part, **headers)

    def _send_json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        if self.silent:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)


def _main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder, fake_gcs(Path(folder)) as (_, environ):
        return subprocess.run(command, env=os.environ | environ, check=False).returncode


def _crc32c(content: bytes) -> str:
    try:
        import google_crc32c
    except ModuleNotFoundError:  # only Google's client looks at it, which brings the package
        return ""
    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
