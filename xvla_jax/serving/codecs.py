"""Arrays out of a stranger's bytes or lists; what they ask for is checked before allocation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.serving.refusal import RequestError, bad_field

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
