"""Measures the memory that one request takes on the server."""

from __future__ import annotations

import base64
import io
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from benchmarks.serving import hostile
from benchmarks.serving.attacks import NESTED, Attack
from benchmarks.serving.server_process import Server
from xvla_jax.serving.codecs import pack

_BODY: Final = 16 * 2**20  # bytes, the server's default limit
_SIDE: Final = 2048  # px, of the largest image


def _json(**changes: Any) -> bytes:
    fields = hostile.good(np.zeros((8, 8, 3), np.uint8)) | changes
    return json.dumps(fields, ensure_ascii=False).encode()


def _message(**changes: Any) -> bytes:
    fields = {"prompt": "push", "state": np.zeros(20, np.float32), "domain_id": 0}
    return pack({**fields, "image0": np.zeros((8, 8, 3), np.uint8), **changes})


def _file(kind: str, mode: str, **options: Any) -> str:
    file = io.BytesIO()
    Image.new(mode, (_SIDE, _SIDE)).save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def _full(fill: str) -> bytes:
    """Returns a body of the largest size, filled by a field that is ignored."""
    size = _BODY - 4096
    return _json(note=fill * (size // len(fill.encode())))


def _images(text: str) -> bytes:
    return _json(image0=text, image1=text)


# name -> by HTTP or as a message of a websocket, what is sent
SINGLE: Final[Mapping[str, tuple[str, Callable[[], bytes]]]] = {
    "list of a long text and 500 short ones": (
        "http", lambda: _json(proprio=["a" * 1_000_000, *[""] * 500])
    ),
    "lists of lists": ("http", lambda: _json(proprio=[[[[[0]]]]] * 40_000)),
    "maps": ("http", lambda: _json(proprio=[{"a": 1}] * 99_000)),
    "an image as lists": ("http", lambda: _json(image0=np.zeros((224, 224, 3), int).tolist())),
    "16 MiB of text": ("http", lambda: _full("x")),
    "16 MiB of text beyond 16 bits": ("http", lambda: _full("\U0001f916")),
    "4 million pixels, raw": (
        "http", lambda: _json(image0=hostile.array_text(np.zeros((_SIDE, _SIDE, 3), np.uint8)))
    ),
    "two progressive JPEGs of 4 million pixels": (
        "http", lambda: _images(_file("JPEG", "RGB", progressive=True))
    ),
    "two PNGs of 4 million pixels": ("http", lambda: _images(_file("PNG", "RGBA"))),
    "nested msgpack": ("websocket", lambda: NESTED),
    "maps in msgpack": ("websocket", lambda: _message(a=[{"a": 1}] * 4000, b=[[{}] * 70] * 1000)),
    "16 MiB of binary": ("websocket", lambda: _message(note=bytes(_BODY - 4096))),
}  # fmt: skip


def peaks(server: Server) -> dict[str, dict[str, int]]:
    """Bytes of the body and highest growth of memory, for each row of `SINGLE`."""
    growth = {}
    process = pathlib.Path(f"/proc/{server.process.pid}")
    for name, (door, make) in SINGLE.items():
        body, attack = make(), Attack(server.port, 0)
        send = attack.post if door == "http" else attack.message
        before = server.resident_bytes()
        (process / "clear_refs").write_text("5")  # resets the peak
        send(body)
        status = (process / "status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        growth[name] = {
            "body": len(body),
            "peak": int(line.split()[1]) * 1024 - before,
            "status": int(next(iter(attack.statuses))),
        }
    return growth
