"""JSON bodies with arrays as json_numpy writes them: base64 of C-order bytes, dtype and shape.

X-VLA's clients encode twice: the value of a field is a text that holds JSON. A value that is
encoded once is taken too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

import numpy as np

from xvla_jax.extras import needs
from xvla_jax.serving.codecs import array_from_bytes, array_layout, length_refusal
from xvla_jax.serving.refusal import RequestError, bad_field

with needs("serve"):
    import pybase64

MARKER: Final = "__numpy__"
# Of a body, and of a text in it; an image of 256 x 256 x 3 numbers as lists has 262,144. While so
# many are made into objects, no other thread runs: some 10 ms.
_MOST_ITEMS: Final = 300_000
_PIECE: Final = 2**20  # bytes that are looked at at once
_WRAPPER: Final = "encoded"  # OpenVLA's clients send all fields as one text under this name
_ARRAY: Final = "an array as json_numpy writes it, or a list of numbers"


def count_parts(data: bytes) -> int:
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
    items = count_parts(text.encode()) if len(text) > _MOST_ITEMS else 0
    if items > _MOST_ITEMS:
        raise RequestError(
            413,
            f"{field} has too many parts",
            field=field,
            value=items,
            allowed=f"at most {_MOST_ITEMS} commas and brackets",
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
