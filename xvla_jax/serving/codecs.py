"""Reads JSON and msgpack requests into fields and arrays; checks sizes before it allocates.

Three parts: arrays (dtype, shape and length are compared first), JSON as X-VLA's clients send it
(arrays are json_numpy texts), and msgpack as openpi-client packs it. A decoder counts the values of
a message from its bytes and makes objects only below a limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from xvla_jax.errors import needs
from xvla_jax.serving.limits import RequestError, bad_field

with needs("serve"):
    import msgpack
    import pybase64
    import pydantic_core

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    text: np.dtype(text) for text in ("|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8")
}
MARKER: Final = "__numpy__"  # the key under which json_numpy writes an array's base64
# Values of one message, also of a text in it. An image of 256 x 256 x 3 numbers as lists has
# 262,144. No other thread runs while they become objects: 20 ms for numbers, 50 ms for lists.
MOST_PARTS: Final = 300_000
_MOST_AXES: Final = 4
_MOST_LENGTH: Final = 2**31  # of an axis
_PIECE: Final = 2**18  # bytes per numpy call; keeps the temporary in the cache
_WRAPPER: Final = "encoded"  # OpenVLA's clients send all fields as one text under this name
_ARRAY: Final = "an array as json_numpy writes it, or a list of numbers"
_MESSAGE: Final = "a msgpack map with arrays as openpi-client packs them"
_MOST_MSGPACK_ITEMS: Final = 4096  # of a list or map; arrays are binary
_MOST_DEPTH: Final = 32


class ManyPartsError(RequestError):
    """A message has more values than the caller decodes."""

    def __init__(self, field: str, most: int) -> None:
        super().__init__(
            413,
            f"{field} has too many parts",
            field=field,
            value=f"more than {most} values",
            allowed=f"at most {MOST_PARTS} values",
        )


# --- arrays


def array_from_bytes(field: str, data: bytes, dtype: Any, shape: Any) -> np.ndarray:
    """Returns a read-only array over ``data`` without a copy.

    Raises:
        RequestError: the dtype is not in `DTYPES`, the shape has more than four axes, or the length
            of ``data`` is not that of the shape.
    """
    checked, lengths, size = _array_layout(field, dtype, shape)
    if len(data) != size:
        raise _wrong_length(field, len(data), size)
    if not size:
        return np.zeros(lengths, checked)
    return np.frombuffer(data, checked).reshape(lengths)


def array_from_list(
    field: str, value: list[Any], allowed: str, *, axes: int, most: int
) -> np.ndarray:
    """Converts a list of numbers, or nested lists of them, to an array.

    Args:
        field: name for messages.
        value: list from a decoder.
        allowed: accepted form, for messages.
        axes: how deep lists may be nested.
        most: limit of numbers in all.

    Raises:
        RequestError: other values than numbers, more or deeper than allowed, unequal lengths.
    """
    level, shape = value, [len(value)]
    # One level a turn, and only while the product of lengths is within the limit: np.asarray would
    # allocate first (a list of one long and many short texts becomes len x longest).
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


def _array_layout(field: str, dtype: Any, shape: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Returns the checked dtype, the checked shape, and the bytes that both ask for."""
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


def _wrong_length(field: str, length: int, expected: int) -> RequestError:
    return bad_field(f"{field}.data", length, f"{expected} bytes, as dtype and shape say")


# --- JSON


def decode_object(body: bytes, most: int = MOST_PARTS) -> dict[str, Any]:
    """Decodes the JSON object of a body; values that hold JSON stay texts.

    Raises:
        ManyPartsError: the body has more than ``most`` values.
        RequestError: the body is no JSON object.
    """
    fields = _json_object("body", body, most)
    if _WRAPPER not in fields:
        return fields
    inner = fields.pop(_WRAPPER)
    if fields or not isinstance(inner, str):
        beside = ", ".join(sorted(fields))[:80] or type(inner).__name__
        raise bad_field(_WRAPPER, beside, "a text with all fields as a JSON object, and no others")
    return _json_object(_WRAPPER, inner, most)


def decode_array(field: str, value: Any) -> Any:
    """Returns the array, or the list, that a field's value stands for.

    Raises:
        RequestError: anything else. A text that names a file is no array; nothing is ever opened.
    """
    decoded = _loads(field, value, MOST_PARTS) if isinstance(value, str) else value
    if isinstance(decoded, dict):
        return _array_of_json(field, decoded)
    if isinstance(decoded, list):
        return decoded
    raise bad_field(field, value, _ARRAY)


def count_json_parts(data: bytes, most: int = MOST_PARTS) -> int:
    """Counts commas and opening brackets; each value of JSON takes at least one.

    Counting stops above ``most``.
    """
    signs, count = np.frombuffer(data, np.uint8), 0
    for start in range(0, len(signs), _PIECE):
        piece = signs[start : start + _PIECE]
        # "[" and "{" differ in one bit, so one comparison counts both
        commas = np.count_nonzero(piece == ord(","))
        count += int(commas + np.count_nonzero(piece & 0xDF == ord("[")))
        if count > most:
            break
    return count


def _json_object(field: str, text: str | bytes, most: int) -> dict[str, Any]:
    decoded = _loads(field, text, most)
    if not isinstance(decoded, dict):
        raise bad_field(field, type(decoded).__name__, "a JSON object")
    return decoded


def _loads(field: str, text: str | bytes, most: int) -> Any:
    # Counted first, because "[[],[],[]" takes 24 bytes of memory for each byte of text.
    if len(text) > most:
        data = text.encode() if isinstance(text, str) else text
        if count_json_parts(data, most) > most:
            raise ManyPartsError(field, most)
    try:
        # A tenth of the time of json.loads for texts of base64. Nesting ends at 200 levels.
        return pydantic_core.from_json(text, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        start = text[:60] if isinstance(text, str) else text[:60].decode("utf-8", "replace")
        raise bad_field(field, start, f"JSON in UTF-8 with finite numbers ({error})") from error


def _array_of_json(field: str, parts: dict[str, Any]) -> np.ndarray:
    encoded = parts.get(MARKER)
    if not isinstance(encoded, str):
        raise bad_field(field, sorted(parts)[:4], _ARRAY)
    size = _array_layout(field, parts.get("dtype"), parts.get("shape"))[2]
    # base64 of n bytes is 4 characters for every 3, so a wrong length shows before it is decoded
    if len(encoded) != 4 * -(-size // 3):
        raise _wrong_length(field, len(encoded) * 3 // 4, size)
    try:
        data = pybase64.b64decode(encoded, validate=True)
    except ValueError as error:  # from binascii, or the text is not ASCII
        raise bad_field(f"{field}.data", str(error), "base64") from error
    return array_from_bytes(field, data, parts.get("dtype"), parts.get("shape"))


# --- msgpack


def pack(message: Any) -> bytes:
    """Packs a message with numpy arrays and scalars in it."""
    return msgpack.packb(message, default=_packable)  # pyright: ignore[reportReturnType] bytes


def unpack(data: bytes, most: int = MOST_PARTS) -> dict[str, Any]:
    """Unpacks a message that is a map.

    Raises:
        ManyPartsError: the message has more than ``most`` values.
        RequestError: it is no map, or an array's dtype, shape and length do not fit.
    """
    if count_msgpack_parts(data, most) > most:
        raise ManyPartsError("message", most)
    try:
        fields = msgpack.unpackb(
            data,
            object_hook=_array_of_map,
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
            allowed=_MESSAGE,
        ) from error
    if not isinstance(fields, dict):
        raise bad_field("message", type(fields).__name__, _MESSAGE)
    return fields


class _Head(NamedTuple):
    """Layout of a value behind its first byte.

    Attributes:
        width: bytes of a length, big endian.
        mask: bits of the first byte that hold the length, where it has no bytes of its own.
        size: bytes of content for each of that length.
        values: values for each of that length.
        more: further bytes.
    """

    width: int = 0
    mask: int = 0
    size: int = 0
    values: int = 0
    more: int = 0


# By first byte; a byte without a row is a value by itself. Source: the msgpack specification.
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


def _resolved(byte: int) -> tuple[int, int, int, int, int]:
    """Returns bytes to skip, values inside; then width, size and values of a length to be read."""
    head = next((head for kind, head in _KINDS.items() if byte in kind), _Head())
    length = byte & head.mask
    skipped = 1 + head.width + head.more + length * head.size
    return skipped, length * head.values, head.width, head.size, head.values


_HEADS: Final = tuple(map(_resolved, range(256)))


def count_msgpack_parts(data: bytes, most: int = MOST_PARTS) -> int:
    """Counts the values of a message from their heads; no object is made.

    Counting stops above ``most``, and where the message is cut short.

    Raises:
        RequestError: lists and maps are nested deeper than 32.
    """
    at, count, outer, left = 0, 0, [], 1  # values still to come: of lists around, of this one
    while at < len(data) and count <= most:
        while not left:
            if not outer:
                return count
            left = outer.pop()
        left -= 1
        count += 1
        skipped, inside, width, size, values = _HEADS[data[at]]
        if width:
            length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            at += length * size
            inside = length * values
        at += skipped
        if inside:
            outer.append(left)
            left = inside
            if len(outer) >= _MOST_DEPTH:
                raise bad_field("message", "nested too deeply", f"{_MESSAGE}; {_MOST_DEPTH} deep")
    return count


def _packable(value: Any) -> Any:
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


def _array_of_map(parts: dict[Any, Any]) -> Any:
    if b"__ndarray__" in parts:
        data = parts.get(b"data")
        if not isinstance(data, bytes):
            raise bad_field("array.data", type(data).__name__, "binary")
        return array_from_bytes("array", data, parts.get(b"dtype"), parts.get(b"shape"))
    if b"__npgeneric__" in parts:
        return parts.get(b"data")  # a plain number; its field decides what it may be
    return parts


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise bad_field("message", f"extension {code} of {len(data)} bytes", _MESSAGE)
