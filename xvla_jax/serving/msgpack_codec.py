"""msgpack with arrays as openpi's client packs them: no pickle, no object arrays, no extensions."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import numpy as np

from xvla_jax.extras import needs
from xvla_jax.serving.arrays import DTYPES, array_from_bytes
from xvla_jax.serving.refusal import RequestError, bad_field

with needs("serve"):
    import msgpack

_ALLOWED: Final = "a msgpack map with arrays as openpi-client packs them"
_MOST_ITEMS: Final = 4096  # of a list or map; arrays are binary


def pack(message: Any) -> bytes:
    """A message with numpy arrays and scalars in it."""
    return msgpack.packb(message, default=_plain)  # pyright: ignore[reportReturnType] bytes


def unpack(data: bytes) -> dict[str, Any]:
    """A message that is a map.

    Raises:
        RequestError: anything else, or an array whose dtype, shape and length do not fit.
    """
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
