"""Requests that no honest client sends, drawn at random; every one must be refused."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

Rng = np.random.Generator
JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
        body: what is sent.
        headers: beside the body's length.
        method: of HTTP.
        path: of HTTP.
    """

    body: bytes
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: JSON)
    method: str = "POST"
    path: str = "/act"


def array_text(array: np.ndarray) -> str:
    """Returns an array as ``json_numpy.dumps`` writes it."""
    return _marked(array.tobytes(), array.dtype.str, list(array.shape))


def good(image: np.ndarray, **more: Any) -> dict[str, Any]:
    """A request that is served."""
    return {
        "language_instruction": "pick up the bowl",
        "proprio": array_text(np.zeros(20, np.float32)),
        "image0": array_text(image),
        "domain_id": 0,
        **more,
    }


def draw(rng: Rng) -> tuple[str, Hostile]:
    """A kind by its weight, and a request of it."""
    names = list(_KINDS)
    weights = np.array([weight for weight, _ in _KINDS.values()], float)
    name = names[rng.choice(len(names), p=weights / weights.sum())]
    return name, _KINDS[name][1](rng)


def _marked(data: bytes, dtype: Any, shape: Any) -> str:
    text = base64.b64encode(data).decode()
    return json.dumps({"__numpy__": text, "dtype": dtype, "shape": shape})


def _tiny() -> dict[str, Any]:
    return good(np.zeros((8, 8, 3), np.uint8))


def _with(**changes: Any) -> Hostile:
    return Hostile(json.dumps(_tiny() | changes).encode())


def _one_of(rng: Rng, *values: Any) -> Any:
    return values[rng.integers(len(values))]


def _random_bytes(rng: Rng) -> Hostile:
    return Hostile(rng.bytes(int(rng.integers(0, 4096))))


def _truncated(rng: Rng) -> Hostile:
    body = json.dumps(_tiny()).encode()
    return Hostile(body[: rng.integers(len(body))])


def _bad_utf8(rng: Rng) -> Hostile:
    body = json.dumps(_tiny()).encode()
    place = int(rng.integers(len(body)))
    return Hostile(
        body[:place] + _one_of(rng, b"\xff", b"\xc0\x80", b"\xed\xa0\x80") + body[place:]
    )


def _wrong_type(rng: Rng) -> Hostile:
    field = _one_of(rng, "language_instruction", "proprio", "image0", "domain_id", "steps", "seed")
    value = _one_of(rng, [], {}, True, -1, 1e300, "\u0000", [[1], 2], {"a": {}}, "{", "[[]]")
    if field == "language_instruction" and isinstance(value, str):
        value = ""
    return _with(**{field: value})


def _bad_shape(rng: Rng) -> Hostile:
    shape = _one_of(
        rng, [2**31] * 3, [2**62], [-1, 8, 3], [8, 8], [0, 8, 3], [1] * 64, [8, 8, 3.5], "8", None,
        [int(n) for n in rng.integers(-9, 2**40, 3)],
    )  # fmt: skip
    return _with(image0=_marked(bytes(192), "|u1", shape))


def _bad_dtype(rng: Rng) -> Hostile:
    dtype = _one_of(
        rng, "|O", "O", "<U8", "|V9", "<c16", "object", "|S192", "<M8[s]", ">f4", "", None, 3,
        [["a", "<f4"]], "(2,2)<f4", "x" * 1000,
    )  # fmt: skip
    field = _one_of(rng, "image0", "proprio", "prefix")
    return _with(**{field: _marked(bytes(192), dtype, [8, 8, 3])})


def _bad_base64(rng: Rng) -> Hostile:
    text = _one_of(
        rng, "=" * 256, "\u00e9" * 256, "A" * 255, "A" * 257, " " * 256, "A" * 254 + "\n="
    )
    return _with(image0=json.dumps({"__numpy__": text, "dtype": "|u1", "shape": [8, 8, 3]}))


def _path_as_image(rng: Rng) -> Hostile:
    name = _one_of(
        rng, "/etc/passwd", "file:///etc/passwd", '"/dev/zero"', "http://localhost/", ".."
    )
    return _with(image0=name)


def _bomb(rng: Rng) -> Hostile:
    """A small file of very many pixels."""
    side = int(rng.integers(3000, 9000))
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return _with(image0=array_text(np.frombuffer(file.getvalue(), np.uint8)))


def _broken_file(rng: Rng) -> Hostile:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, _one_of(rng, "PNG", "JPEG", "GIF", "BMP"))
    data = bytearray(file.getvalue()[: rng.integers(1, 60)])
    return _with(image0=array_text(np.frombuffer(bytes(data), np.uint8)))


def _huge_array(_: Rng) -> Hostile:
    return _with(image0=array_text(np.zeros((2100, 2100, 3), np.uint8)))


def _oversized(rng: Rng) -> Hostile:
    return Hostile(bytes(int(rng.integers(17, 24)) * 2**20))


def _deep(rng: Rng) -> Hostile:
    text = _one_of(rng, "[", '{"a":', '[{"__numpy__":') * int(rng.integers(500, 50_000))
    return _one_of(rng, Hostile(text.encode()), _with(**{_one_of(rng, "proprio", "prefix"): text}))


def _many_parts(_: Rng) -> Hostile:
    return Hostile(b"[" + b"[]," * 400_000 + b"[]]")


def _wrong_route(rng: Rng) -> Hostile:
    path = _one_of(rng, "/", "/act/", "/../act", "/%00", "/act%2f", "/docs", "/" + "a" * 3000)
    method = _one_of(rng, "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS")
    return Hostile(b"{}", method=method, path=path)


def _wrong_kind(rng: Rng) -> Hostile:
    kind = _one_of(rng, "text/plain", "application/x-python-pickle", "multipart/form-data", "")
    coding = _one_of(rng, {}, {"Content-Encoding": "gzip"}, {"Origin": "http://evil.example"})
    return Hostile(json.dumps(_tiny()).encode(), {"Content-Type": kind, **coding})


# name -> weight, how it is drawn
_KINDS: Final[Mapping[str, tuple[float, Callable[[Rng], Hostile]]]] = {
    "random bytes": (10, _random_bytes),
    "truncated": (10, _truncated),
    "bad UTF-8": (10, _bad_utf8),
    "wrong types": (15, _wrong_type),
    "hostile shapes": (12, _bad_shape),
    "hostile dtypes": (12, _bad_dtype),
    "bad base64": (6, _bad_base64),
    "paths as images": (6, _path_as_image),
    "broken files": (6, _broken_file),
    "wrong routes": (5, _wrong_route),
    "wrong kinds": (5, _wrong_kind),
    "deep nesting": (2, _deep),
    "decompression bombs": (0.4, _bomb),
    "many parts": (0.3, _many_parts),
    "huge arrays": (0.1, _huge_array),
    "oversized": (0.1, _oversized),
}
