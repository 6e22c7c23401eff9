"""Reads pickled arrays of public recordings without running code that a pickle names.

The unpickler makes no object of numpy's: stand-ins collect what a pickle says, and arrays are made
from them at the end, with types from a table and after lengths were compared. An object of any
other class becomes an `Inert` one, which does nothing; a reader that needs it refuses it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CODES = frozenset(
    ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
)
_TEXTS = re.compile(r"[SU][1-9]\d{0,5}")  # bytes and texts of fixed length
_ORDERS = ("<", ">", "=", "|")
_MOST_AXES = 32
# opcodes that name a place in the unpickler's memory, which is made as large as the place
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
# exceptions of the unpickler for damaged or foreign bytes
_NO_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
_NPY_MAGIC = b"\x93NUMPY"


class Inert:
    """Stands for an object of a class that is not made."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Accepts any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Keeps nothing."""

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Another one."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keeps nothing."""

    def append(self, value: Any) -> None:
        """Keeps nothing."""


class _Type:
    """Stands for a dtype."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: Any) -> None:
        """Keeps the byte order; fields and shapes inside a type are refused."""
        if not isinstance(state, tuple) or any(part is not None for part in state[2:5]):
            raise ValueError("an array of structures")
        self.order = state[1]

    @property
    def objects(self) -> bool:
        """True where an array of this type holds references."""
        return self.code in ("O8", "O")

    def dtype(self) -> np.dtype:
        """The type, from the table; a ValueError where it has no such row."""
        code, order = self.code, self.order
        known = isinstance(code, str) and (code in _CODES or _TEXTS.fullmatch(code))
        if not known or order not in _ORDERS:
            raise ValueError(f"an array of type {code!r}, byte order {order!r}")
        return np.dtype(code if order == "|" else order + code)


class _Array:
    """Stands for an array; its content follows by `__setstate__` or is given."""

    def __init__(self, shape: Any = None, kind: Any = None, data: Any = None, order: Any = "C"):
        self.state: tuple[Any, Any, Any, Any] = (shape, kind, data, order)

    def __setstate__(self, state: Any) -> None:
        """Keeps version, shape, type, order and content, as numpy writes them."""
        _, shape, kind, fortran, data = state
        self.state = (shape, kind, data, "F" if fortran else "C")

    def array(self) -> np.ndarray:
        """The array; a ValueError where content and shape do not fit. Objects are as pickled."""
        shape, kind, data, order = self.state
        if (
            not isinstance(shape, tuple)
            or len(shape) > _MOST_AXES
            or not all(type(length) is int and 0 <= length < 1 << 48 for length in shape)
            or not isinstance(kind, _Type)
            or order not in ("C", "F")
        ):
            raise ValueError(f"an array of shape {shape!r}")
        count = math.prod(shape)
        if kind.objects:
            if not isinstance(data, list) or len(data) != count:
                raise ValueError(f"an array {shape} of objects without them")
            values = np.empty(count, object)
            for place, value in enumerate(data):
                values[place] = value
            return values.reshape(shape, order=order)
        dtype = kind.dtype()
        if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.itemsize:
            raise ValueError(f"an array {shape} of {dtype} whose bytes do not fit")
        if dtype == np.bool_:  # other bytes than 0 and 1 are no truth values
            return (np.frombuffer(data, np.uint8) != 0).reshape(shape, order=order)
        return np.frombuffer(data, dtype).reshape(shape, order=order).copy()


class _Scalar(_Array):
    """Stands for a number of numpy's."""


class _Maker:
    """A function that a pickle may call; it has no state that a pickle could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        """A stand-in or a plain value."""
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuses a state."""
        raise pickle.UnpicklingError("a function with a state")


def _bytes(text: Any, encoding: Any) -> bytes:
    """Bytes of old pickles, which write them as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


# (last part of the module's name, name): numpy has renamed the parts before it
_MAKERS: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): _Maker(lambda *_: _Array()),
    ("multiarray", "scalar"): _Maker(lambda kind, data: _Scalar((), kind, data)),
    ("numeric", "_frombuffer"): _Maker(
        lambda data, kind, shape, order: _Array(shape, kind, data, order)
    ),
    ("numpy", "ndarray"): Inert,  # only ever handed to _reconstruct
    ("numpy", "dtype"): _Maker(_Type),
    ("_codecs", "encode"): _Maker(_bytes),
    ("collections", "OrderedDict"): _Maker(lambda: {}),  # filled afterwards
    ("__builtin__", "bytes"): _Maker(lambda: b""),  # empty ones of old pickles
}
_PACKAGES = ("numpy", "_codecs", "collections", "__builtin__")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """One of `_MAKERS`; `Inert` for all else."""
        if module_name.split(".")[0] not in _PACKAGES:
            return Inert
        return _MAKERS.get((module_name.split(".")[-1], global_name), Inert)


def load_pickle(path: Path) -> Any:
    """The arrays, numbers, texts, lists and dictionaries in a pickle or a pickled .npy file.

    Raises:
        ValueError: the file is no pickle.
        OSError: it cannot be read.
    """
    stored = path.read_bytes()
    file = io.BytesIO(stored)
    try:
        if stored.startswith(_NPY_MAGIC):
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in _PUTS and int(str(argument)) > len(stored):
                raise pickle.UnpicklingError(f"place {argument} of {len(stored)} bytes")
        file.seek(begin)
        return _real(_ArrayUnpickler(file).load(), {})
    except _NO_PICKLE as error:
        raise ValueError(f"{path} is no pickle of arrays: {error}") from error


def _real(node: Any, known: dict[int, Any]) -> Any:
    """Replaces stand-ins by their arrays; shared parts stay shared."""
    if id(node) in known:
        return known[id(node)]
    made: Any = node
    if isinstance(node, list):
        made = known[id(node)] = []
        made += [_real(value, known) for value in node]
    elif isinstance(node, dict):
        made = known[id(node)] = {}
        made |= {_real(key, known): _real(value, known) for key, value in node.items()}
    elif isinstance(node, tuple):
        made = tuple(_real(value, known) for value in node)
    elif isinstance(node, _Array):
        made = node.array()
        if made.dtype == object:
            known[id(node)] = made
            for place in np.ndindex(made.shape):
                made[place] = _real(made[place], known)
        elif isinstance(node, _Scalar):
            made = made[()]
    elif isinstance(node, _Type | _Maker):
        made = Inert()
    known[id(node)] = made
    return made
