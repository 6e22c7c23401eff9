"""msgpack with arrays as openpi's client packs them: no pickle, no object arrays, no extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from xvla_jax.extras import needs
from xvla_jax.serving.codecs import DTYPES, array_from_bytes
from xvla_jax.serving.refusal import RequestError, bad_field

with needs("serve"):
    import msgpack

_ALLOWED: Final = "a msgpack map with arrays as openpi-client packs them"
_MOST_ITEMS: Final = 4096  # of a list or map; arrays are binary
_MOST_PARTS: Final = 300_000  # values of a message, those in lists and maps included; as JSON has
_MOST_DEPTH: Final = 32


def pack(message: Any) -> bytes:
    """A message with numpy arrays and scalars in it."""
    return msgpack.packb(message, default=_plain)  # pyright: ignore[reportReturnType] bytes


class _Head(NamedTuple):
    """How a value goes on behind its first byte.

    Attributes:
        width: bytes of a length, big endian.
        mask: of a length in the first byte itself.
        size: bytes for each of that length.
        values: values for each of that length.
        more: further bytes.
    """

    width: int = 0
    mask: int = 0
    size: int = 0
    values: int = 0
    more: int = 0


# By first byte, the rows that are not one byte alone. Source: the msgpack specification.
_KINDS: Final[Mapping[range, _Head]] = {
    range(0x80, 0x90): _Head(mask=0x0F, values=2),  # maps
    range(0xDE, 0xDF): _Head(width=2, values=2),
    range(0xDF, 0xE0): _Head(width=4, values=2),
    range(0x90, 0xA0): _Head(mask=0x0F, values=1),  # lists
    range(0xDC, 0xDD): _Head(width=2, values=1),
    range(0xDD, 0xDE): _Head(width=4, values=1),
    range(0xA0, 0xC0): _Head(mask=0x1F, size=1),  # texts
    **{range(0xD9 + i, 0xDA + i): _Head(width=1 << i, size=1) for i in range(3)},
    **{range(0xC4 + i, 0xC5 + i): _Head(width=1 << i, size=1) for i in range(3)},  # bytes
    **{range(0xC7 + i, 0xC8 + i): _Head(width=1 << i, size=1, more=1) for i in range(3)},
    **{range(0xD4 + i, 0xD5 + i): _Head(more=1 + (1 << i)) for i in range(5)},  # extensions
    range(0xCA, 0xCB): _Head(more=4),  # numbers
    range(0xCB, 0xCC): _Head(more=8),
    **{range(0xCC + i, 0xCD + i): _Head(more=1 << i % 4) for i in range(8)},
}
_HEADS: Final = tuple(
    next((head for kind, head in _KINDS.items() if byte in kind), _Head()) for byte in range(256)
)


def count_parts(data: bytes, most: int = _MOST_PARTS) -> int:
    """The values of a message by their heads alone; nothing is made of them.

    Counting ends above ``most``, and where the message is cut short.

    Raises:
        RequestError: lists and maps that are nested very deeply.
    """
    at, count, left = 0, 0, [1]  # values still to come, by depth
    while left and at < len(data) and count <= most:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        count += 1
        byte = data[at]
        width, mask, size, values, more = _HEADS[byte]
        length = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else byte & mask
        at += 1 + width + more + length * size
        if length * values:
            left.append(length * values)
        if len(left) > _MOST_DEPTH:
            raise bad_field("message", "nested too deeply", f"{_ALLOWED}; {_MOST_DEPTH} deep")
    return count


def unpack(data: bytes) -> dict[str, Any]:
    """A message that is a map.

    Raises:
        RequestError: anything else, or an array whose dtype, shape and length do not fit.
    """
    if count_parts(data) > _MOST_PARTS:
        raise bad_field("message", f"more than {_MOST_PARTS} values", _ALLOWED)
    try:
        found = msgpack.unpackb(
            data,
            object_hook=_array,
            ext_hook=_no_extension,
            max_bin_len=len(data),
            max_str_len=len(data),
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise RequestError(
            400,
            "the message is not msgpack",
            field="message",
            value=str(error)[:80],
            allowed=_ALLOWED,
        ) from error
    if not isinstance(found, dict):
        raise bad_field("message", type(found).__name__, _ALLOWED)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic) and value.dtype.str in DTYPES:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be packed")


def _array(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        data = found.get(b"data")
        if not isinstance(data, bytes):
            raise bad_field("array.data", type(data).__name__, "binary")
        return array_from_bytes("array", data, found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        return found.get(b"data")  # a plain number; what it may be, its field decides
    return found


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise bad_field("message", f"extension {code} of {len(data)} bytes", _ALLOWED)
