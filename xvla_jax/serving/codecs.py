"""Arrays out of a stranger's bytes or lists; what they ask for is checked before allocation."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from xvla_jax.errors import needs
from xvla_jax.serving.limits import RequestError, bad_field

with needs("serve"):
    import pybase64
with needs("serve"):
    import msgpack

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    text: np.dtype(text) for text in ("|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8")
}
_MOST_AXES: Final = 4
_MOST_LENGTH: Final = 2**31  # of an axis


def array_layout(field: str, dtype: Any, shape: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Checked dtype and shape, and the number of bytes that they ask for.

    Raises:
        RequestError: a dtype that is not in `DTYPES`, or no shape of up to four axes.
    """
    text = dtype.decode("latin-1") if isinstance(dtype, bytes) else dtype
    if not isinstance(text, str) or text not in DTYPES:
        raise bad_field(f"{field}.dtype", dtype, f"one of {', '.join(DTYPES)}")
    if (
        not isinstance(shape, (list, tuple))
        or len(shape) > _MOST_AXES
        or not all(type(n) is int and 0 <= n <= _MOST_LENGTH for n in shape)
    ):
        raise bad_field(f"{field}.shape", shape, f"up to {_MOST_AXES} lengths, none below 0")
    return DTYPES[text], tuple(shape), math.prod(shape) * DTYPES[text].itemsize


def array_from_bytes(field: str, data: bytes, dtype: Any, shape: Any) -> np.ndarray:
    """A read-only array over ``data``; nothing is copied.

    Raises:
        RequestError: as `array_layout`, or the bytes are not those of the shape.
    """
    checked, lengths, size = array_layout(field, dtype, shape)
    if len(data) != size:
        raise length_refusal(field, len(data), size)
    if not size:
        return np.zeros(lengths, checked)
    return np.frombuffer(data, checked).reshape(lengths)


def array_from_list(
    field: str, value: list[Any], allowed: str, *, axes: int, most: int
) -> np.ndarray:
    """A list of numbers, or lists of lists of them, as an array.

    Args:
        field: for messages.
        value: as a codec found it.
        allowed: for messages.
        axes: how deep lists may be nested.
        most: numbers in all.

    Raises:
        RequestError: other values than numbers, more or deeper than allowed, unequal lengths.
    """
    level, shape = value, [len(value)]
    while math.prod(shape) <= most and level and isinstance(level[0], list):
        lengths = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(lengths) != 1:
            raise bad_field(field, "lists of unequal lengths", allowed)
        if len(shape) == axes:
            raise bad_field(field, f"lists nested deeper than {axes}", allowed)
        shape.append(lengths.pop())
        if math.prod(shape) <= most:
            level = list(itertools.chain.from_iterable(level))
    if math.prod(shape) > most:
        raise bad_field(field, f"{math.prod(shape)} numbers", f"at most {most} numbers")
    others = set(map(type, level)) - {int, float}
    if others:
        raise bad_field(field, f"a list with {min(t.__name__ for t in others)} in it", allowed)
    return np.array(level).reshape(shape)


def length_refusal(field: str, found: int, expected: int) -> RequestError:
    """The data's length and its shape contradict each other."""
    return bad_field(f"{field}.data", found, f"{expected} bytes, as dtype and shape say")


MARKER: Final = "__numpy__"
# Of a body, and of a text in it; an image of 256 x 256 x 3 numbers as lists has 262,144. While so
# many are made into objects, no other thread runs: some 10 ms.
_MOST_JSON_ITEMS: Final = 300_000
_PIECE: Final = 2**20  # bytes that are looked at at once
_WRAPPER: Final = "encoded"  # OpenVLA's clients send all fields as one text under this name
_ARRAY: Final = "an array as json_numpy writes it, or a list of numbers"


def count_json_parts(data: bytes) -> int:
    """Commas and opening brackets; a value of JSON takes one at the least."""
    whole = np.frombuffer(data, np.uint8)
    pieces = (whole[i : i + _PIECE] for i in range(0, len(whole), _PIECE))
    return sum(int(np.count_nonzero(piece == sign)) for piece in pieces for sign in b",[{")


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; values that hold JSON stay texts.

    Raises:
        RequestError: the body is no JSON object, or one of very many parts.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            400,
            "the body is not UTF-8",
            field="body",
            value=f"byte {error.start}",
            allowed="a JSON object in UTF-8",
        ) from error
    found = _object("body", text)
    if _WRAPPER not in found:
        return found
    inner = found.pop(_WRAPPER)
    if found or not isinstance(inner, str):
        beside = ", ".join(sorted(found))[:80] or type(inner).__name__
        raise bad_field(_WRAPPER, beside, "a text with all fields as a JSON object, and no others")
    return _object(_WRAPPER, inner)


def _object(field: str, text: str) -> dict[str, Any]:
    found = _loads(field, text)
    if not isinstance(found, dict):
        raise bad_field(field, type(found).__name__, "a JSON object")
    return found


def decode_array(field: str, value: Any) -> Any:
    """The array, or the list, that a field's value stands for.

    Raises:
        RequestError: anything else. A text that names a file is no array; nothing is ever opened.
    """
    found = _loads(field, value) if isinstance(value, str) else value
    if isinstance(found, dict):
        return _from_marked(field, found)
    if isinstance(found, list):
        return found
    raise bad_field(field, found if isinstance(value, str) else value, _ARRAY)


def _from_marked(field: str, found: dict[str, Any]) -> np.ndarray:
    encoded = found.get(MARKER)
    if not isinstance(encoded, str):
        raise bad_field(field, sorted(found)[:4], _ARRAY)
    size = array_layout(field, found.get("dtype"), found.get("shape"))[2]
    # base64 of n bytes is 4 characters for every 3, so a wrong length shows before it is decoded
    if len(encoded) != 4 * -(-size // 3):
        raise length_refusal(field, len(encoded) * 3 // 4, size)
    try:
        data = pybase64.b64decode(encoded, validate=True)
    except ValueError as error:  # of binascii, or the text is not ASCII
        raise bad_field(f"{field}.data", str(error), "base64") from error
    return array_from_bytes(field, data, found.get("dtype"), found.get("shape"))


def _loads(field: str, text: str) -> Any:
    # Before Python objects are made of it: [[],[],[] takes 24 bytes for each byte of text.
    items = count_json_parts(text.encode()) if len(text) > _MOST_JSON_ITEMS else 0
    if items > _MOST_JSON_ITEMS:
        raise RequestError(
            413,
            f"{field} has too many parts",
            field=field,
            value=items,
            allowed=f"at most {_MOST_JSON_ITEMS} commas and brackets",
        )
    try:
        return json.loads(text, parse_constant=_no_constant(field))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad_field(field, text[:60], f"JSON ({reason[:80]})") from error


def _no_constant(field: str) -> Callable[[str], NoReturn]:
    def refuse(name: str) -> NoReturn:
        raise bad_field(field, name, "finite numbers")

    return refuse


_ALLOWED: Final = "a msgpack map with arrays as openpi-client packs them"
_MOST_MSGPACK_ITEMS: Final = 4096  # of a list or map; arrays are binary
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


def count_msgpack_parts(data: bytes, most: int = _MOST_PARTS) -> int:
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
    if count_msgpack_parts(data) > _MOST_PARTS:
        raise bad_field("message", f"more than {_MOST_PARTS} values", _ALLOWED)
    try:
        found = msgpack.unpackb(
            data,
            object_hook=_array,
            ext_hook=_no_extension,
            max_bin_len=len(data),
            max_str_len=len(data),
            max_array_len=_MOST_MSGPACK_ITEMS,
            max_map_len=_MOST_MSGPACK_ITEMS,
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
