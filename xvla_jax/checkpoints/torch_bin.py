"""Reads PyTorch's ``.bin`` files (``torch.save``) in place, without PyTorch and its unpickler.

Such a file is a zip archive that is not compressed: an entry for each storage, and a pickle that
says which tensor lies where. A pickle can name any function to be called; here it may name only
those that describe a tensor, so that files from others are data and no programs.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, Final, NamedTuple

from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import check_bound

_LOCAL_HEADER: Final = 30  # bytes of an entry's own header; its name and an extra field follow
_LENGTHS: Final = 26  # where in it the lengths of these two are, 2 bytes each


class _Type(NamedTuple):
    name: str  # in safetensors
    size: int  # bytes


_TYPES: Final = {
    "BoolStorage": _Type("BOOL", 1),
    "ByteStorage": _Type("U8", 1),
    "HalfStorage": _Type("F16", 2),
    "BFloat16Storage": _Type("BF16", 2),
    "IntStorage": _Type("I32", 4),
    "FloatStorage": _Type("F32", 4),
    "DoubleStorage": _Type("F64", 8),
    "LongStorage": _Type("I64", 8),
}
_MOST_AXES: Final = 32
# opcodes that name a place in the unpickler's memo, which it allocates up to that place
_PUTS: Final = ("PUT", "BINPUT", "LONG_BINPUT")
# errors that the unpickler raises for damaged or foreign bytes
_NO_STATE_DICT: Final = (
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
# errors that zipfile raises for a damaged archive
_NO_ARCHIVE: Final = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclasses.dataclass(frozen=True)
class BinTensor:
    """A stored tensor: type (safetensors' name), shape, and byte at which it begins in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it; ``first`` and ``stride`` count values."""

    kind: _Type
    key: str
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self) -> None:
        """Raises a ValueError if a part has another type: a pickle may set anything."""
        numbers = (self.first, *self.shape, *self.stride)
        good = len(self.shape) == len(self.stride) <= _MOST_AXES
        if not good or not all(type(n) is int and abs(n) < 1 << 48 for n in numbers):
            raise ValueError(f"a tensor of shape {self.shape!r} and stride {self.stride!r}")
        if self.kind not in _TYPES.values() or not isinstance(self.key, str):
            raise ValueError(f"a tensor of type {self.kind!r} in storage {self.key!r}")

    @property
    def in_order(self) -> bool:
        """True if its values lie one after the other, the last axis fastest."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length > 1 and stride != step:
                return False
            step *= length
        return True


def read_bin(path: pathlib.Path) -> dict[str, BinTensor]:
    """Returns the tensors of a state dict by name, without their values.

    Raises:
        CheckpointError: the file is no complete one of ``torch.save``, or holds something other
            than a state dict of plain tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            order = _small(archive, entries["byteorder"]) if "byteorder" in entries else b"little"
            if order != b"little":
                raise CheckpointError(f"{path}: its values are big-endian; save it again on x86")
            views = _views(path, _small(archive, entries["data.pkl"]))
            return {name: _placed(path, file, entries, name, view) for name, view in views.items()}
    except CheckpointError:
        raise
    except _NO_ARCHIVE as error:
        raise CheckpointError(
            f"{path}: no complete file of torch.save ({error}); fetch it again, or, if PyTorch "
            "before 1.6 wrote it, load and save it with a present one"
        ) from error


def _small(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Returns the content of an entry; a ValueError where it is compressed, or out of place."""
    check_bound("bytes of a pickle", entry.file_size, f"{archive.filename}: {entry.filename}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    if entry.header_offset < 0:
        raise ValueError(f"{entry.filename} begins before the file")
    return archive.read(entry)


def _views(path: pathlib.Path, pickled: bytes) -> dict[str, _View]:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _PUTS and int(str(argument)) > len(pickled):
                raise ValueError(f"place {argument} of {len(pickled)} bytes")
        content = _Unpickler(io.BytesIO(pickled)).load()
        if isinstance(content, dict):
            for value in content.values():
                if isinstance(value, _View):
                    value.check()
    except _NO_STATE_DICT as error:
        raise CheckpointError(f"{path}: {error}") from error
    others = (
        [name for name, value in content.items() if not isinstance(value, _View)]
        if isinstance(content, dict)
        else [type(content).__name__]
    )
    if others:
        raise CheckpointError(
            f"{path}: a state dict, tensors by name, is expected; found {others[:3]}"
        )
    return {str(name): view for name, view in content.items()}


def _placed(
    path: pathlib.Path,
    file: BinaryIO,
    entries: dict[str, zipfile.ZipInfo],
    name: str,
    view: _View,
) -> BinTensor:
    entry = entries[f"data/{view.key}"]
    begin, size = view.first * view.kind.size, math.prod(view.shape) * view.kind.size
    if not view.in_order or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: tensor {name} is not stored in order; save it contiguous")
    if begin < 0 or min(view.shape, default=0) < 0 or begin + size > entry.file_size:
        raise CheckpointError(f"{path}: tensor {name} reaches beyond its {entry.file_size} bytes")
    file.seek(entry.header_offset + _LENGTHS)
    lengths = file.read(4)
    header = sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2)) + _LOCAL_HEADER
    return BinTensor(view.kind.name, view.shape, entry.header_offset + header + begin)


def _view(storage: Any, first: int, shape: Any, stride: Any, *_: Any) -> _View:
    """Takes the place of ``torch._utils._rebuild_tensor_v2``."""
    kind, key = storage
    return _View(kind, key, first, tuple(shape), tuple(stride))


def _parameter(data: _View, *_: Any) -> _View:
    """Takes the place of ``torch._utils._rebuild_parameter``."""
    return data


class _Maker:
    """A function that a pickle may call; it has no state that a pickle could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        """Returns a view or an empty dictionary."""
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuses any state."""
        raise pickle.UnpicklingError("a function with a state")


_MAKERS: Final[dict[tuple[str, str], Any]] = {
    # the unpickler fills it, and may set a state: PyTorch's _metadata
    ("collections", "OrderedDict"): _Maker(lambda: collections.OrderedDict()),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_view),
    ("torch._utils", "_rebuild_parameter"): _Maker(_parameter),
    **{("torch", name): kind for name, kind in _TYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Returns one of `_MAKERS`; refuses any other name."""
        if (module_name, global_name) not in _MAKERS:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is no part of a state dict of "
                "plain tensors and is not run"
            )
        return _MAKERS[module_name, global_name]

    def persistent_load(self, pid: Any) -> Any:
        """Returns type and key of a storage."""
        _, kind, key, *_ = pid
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError(f"a storage of type {kind!r}")
        return kind, str(key)
