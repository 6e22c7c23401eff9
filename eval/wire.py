"""Arrays as they travel: json_numpy's text over HTTP, openpi's msgpack map over a websocket."""

from __future__ import annotations

import base64
import json
from typing import Any, Mapping

import numpy as np
from numpy.typing import NDArray

from .pictures import needed

_DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8")


def json_fields(fields: Mapping[str, Any]) -> str:
    """The JSON body of a request: each array is a text that holds JSON, as X-VLA's clients do."""
    plain = {k: array_text(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return json.dumps(plain)


def array_text(array: NDArray[Any]) -> str:
    """An array in the json_numpy form: base64 of its C-order bytes, dtype and shape."""
    return json.dumps(
        {
            "__numpy__": base64.b64encode(array.tobytes()).decode("ascii"),
            "dtype": array.dtype.str,
            "shape": list(array.shape),
        }
    )


def arrays_of(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON reply with its marked values as arrays."""
    return {name: _from_json(value) for name, value in reply.items()}


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict) or "__numpy__" not in value:
        return value
    data = base64.b64decode(value["__numpy__"])
    return np.frombuffer(data, _known(value["dtype"])).reshape(value["shape"])


def _known(dtype: Any) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"the server sent an array of {dtype!r}; one of {', '.join(_DTYPES)}")
    return dtype


def pack(fields: Mapping[str, Any]) -> bytes:
    """The msgpack form of a request."""
    return needed("msgpack").packb(dict(fields), default=_array_map)


def unpack(data: bytes) -> dict[str, Any]:
    """A server's message.

    Raises:
        ValueError: it is no msgpack map, or an array in it is of another kind than numbers.
    """
    found = needed("msgpack").unpackb(data, object_hook=_array_of, max_bin_len=len(data))
    if not isinstance(found, dict):
        raise ValueError(f"the server's message is a {type(found).__name__}; a map is expected")
    return found


def _array_map(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.str in _DTYPES:
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _array_of(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" not in found:
        return found
    return np.frombuffer(found[b"data"], _known(found[b"dtype"])).reshape(found[b"shape"])
