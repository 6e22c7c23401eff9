"""Pickled arrays of public recordings, read without running what a pickle may ask for.

Only numpy's arrays and numbers are made. An object of any other class becomes an `Inert` one, which
does nothing; it is an error only for whom it was meant.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


def _bytes(text: str, encoding: str) -> bytes:
    """What old pickles have in place of bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode(encoding)


_EMPTY = np.empty(0)
# (last part of the module's name, name): numpy has renamed the parts before it
_MAKERS: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): _EMPTY.__reduce__()[0],
    ("multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numeric", "_frombuffer"): _EMPTY.__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): dict,
}
_PACKAGES = ("numpy", "_codecs", "collections")
# what damaged or foreign bytes make the unpickler raise
_NO_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
)
_NPY_MAGIC = b"\x93NUMPY"


class Inert:
    """Stands for an object of a class that is not made."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Takes anything."""
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
        return _ArrayUnpickler(file).load()
    except _NO_PICKLE as error:
        raise ValueError(f"{path} is no pickle of arrays: {error}") from error
