"""Files of tensors, one tensor at a time: whole or in shards, bfloat16 too.

Written are safetensors files; read are also PyTorch's own (torch_bin.py).

The safetensors library checks a file (its header is not to be trusted), but it maps the file into
memory, where pages once read count as ours, and its numpy side knows no bfloat16. So tensors are
read at their offsets, each into memory of its own, and written as they are made.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import pydantic
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from xvla_jax.checkpoints.torch_bin import read_bin
from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import STRICT, plain_name, read_json, typed


@contextlib.contextmanager
def whole_folder(
    folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a hidden folder beside ``folder`` that takes its name when the block ends well.

    A killed process leaves only that hidden folder; the next one with the same target removes it.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        overwrite: replace the folder, once the new one is whole.

    Raises:
        CheckpointError: the folder is in use, or another process is writing it.
    """
    folder = pathlib.Path(folder)
    check_target(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    with _lock(scratch):
        try:
            if old.exists() and not folder.exists():  # killed between the two renames below
                old.rename(folder)
                check_target(folder, overwrite=overwrite)
            shutil.rmtree(old, ignore_errors=True)
            yield scratch
            if folder.exists():
                folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_target(
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Refuses a target that is in use, or that lies in its source or around it.

    Raises:
        CheckpointError: says which, and what to do.
    """
    folder = pathlib.Path(folder)
    if source is not None:
        ours, theirs = folder.resolve(), pathlib.Path(source).resolve()
        if ours == theirs or theirs in ours.parents or ours in theirs.parents:
            raise CheckpointError(
                f"{folder} and {source} lie in one another; give a target outside the source"
            )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise CheckpointError(
            f"{folder} exists and is not empty; choose another folder or remove it"
        )


@contextlib.contextmanager
def _lock(scratch: pathlib.Path) -> Iterator[None]:
    """Makes the empty folder ``scratch`` and holds it; the system frees it if we are killed."""
    scratch.mkdir(exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{scratch} is being written by another process") from error
        for left in scratch.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield
    finally:
        os.close(handle)


Progress = Callable[[int, int], None]  # takes (bytes done, bytes in all)

_FLOAT32: Final = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLeaf:
    """A float32 parameter that is read anew each time it is used.

    It stands where numpy arrays stand: it has a shape, can be indexed by layer, and turns into an
    array.

    Attributes:
        shape: of the whole leaf.
        read: gives one layer (an index into the leading axis), or the whole leaf for None; the
            array may be a view, and is not to be written to.
    """

    shape: tuple[int, ...]
    read: Callable[[int | None], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """Always float32."""
        return _FLOAT32

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, once read."""
        return self.size * _FLOAT32.itemsize

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.read(layer)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(None), dtype=dtype, copy=copy)


WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
BIN_NAME: Final = "pytorch_model.bin"
BIN_INDEX_NAME: Final = "pytorch_model.bin.index.json"
# what a folder may hold, the first that is there is read; (file, index of its shards)
_FORMS: Final = ((WEIGHTS_NAME, INDEX_NAME), (BIN_NAME, BIN_INDEX_NAME))
STORED_AS: Final = tuple(name for form in _FORMS for name in form)

# In the order of the library's own enumeration: files hold the last kind first.
DTYPES: Final[Mapping[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
}
_KINDS: Final = {dtype: kind for kind, dtype in DTYPES.items()}
_PIECE: Final = 1 << 20  # bytes given to the system at a time; larger ones can take it much longer
_ALIGNMENT: Final = 8  # bytes; the header is padded to it with spaces


@pydantic.with_config(STRICT)
class _Index(TypedDict):
    weight_map: dict[str, str]


_INDEX: Final = pydantic.TypeAdapter(_Index)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a stored tensor; ``dtype`` is safetensors' name, such as ``BF16``."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: np.ndarray) -> TensorInfo:
        """What an array would be stored as."""
        return cls(_KINDS[value.dtype], value.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """The tensors of a checkpoint, on disk.

    Attributes:
        info: type and shape by name.
        metadata: the text that the writer put beside the tensors.
        places: file and byte offset by name.
    """

    info: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    places: Mapping[str, tuple[pathlib.Path, int]] = dataclasses.field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TensorFiles:
        """Reads and checks headers; no tensor is read yet.

        Args:
            path: a safetensors or ``.bin`` file, or a folder with ``model.safetensors`` or
                ``pytorch_model.bin``, or with shards of either and their index.

        Raises:
            CheckpointError: nothing is there, or a file is cut short or damaged; it is named.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            present = (path / name for name in STORED_AS if (path / name).is_file())
            path = next(present, path / WEIGHTS_NAME)
        if path.suffix == ".json":
            return cls._open_shards(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        return cls(*_read_header(path))

    @classmethod
    def _open_shards(cls, index: pathlib.Path) -> TensorFiles:
        folder = index.parent
        shard_of = typed(_INDEX, read_json(index), index)["weight_map"]
        shards = sorted({plain_name(name, f"{index}: weight_map") for name in shard_of.values()})
        lost = [name for name in shards if not (folder / name).is_file()]
        if lost:
            raise CheckpointError(
                f"{folder}: {len(lost)} of the {len(shards)} shards that {index.name} lists are "
                f"missing: {', '.join(lost)}; fetch them"
            )
        info, metadata, places = {}, {}, {}
        for name in shards:
            part = _read_header(folder / name)
            for whole, more in zip((info, metadata, places), part, strict=True):
                whole.update(more)
        wrong = sorted(
            name
            for name in info.keys() | shard_of.keys()
            if name not in info or places[name][0].name != shard_of.get(name)
        )
        if wrong:
            raise CheckpointError(
                f"{index} and its shards disagree on {len(wrong)} tensors, for example {wrong[:3]}"
            )
        return cls(info, metadata, places)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.info.values())

    def read(self, name: str) -> np.ndarray:
        """A tensor in memory of its own, in the stored type.

        Raises:
            CheckpointError: the file has been cut since it was opened.
        """
        info, (path, offset) = self.info[name], self.places[name]
        count = int(np.prod(info.shape, dtype=np.int64))
        values = np.fromfile(path, DTYPES[info.dtype], count, offset=offset)
        if values.size != count:
            raise CheckpointError(f"{path}: tensor {name} has {values.size} of {count} values")
        return values.reshape(info.shape)


def write_safetensors(
    path: str | os.PathLike[str],
    info: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str],
    order: Sequence[str] | None = None,
) -> None:
    """Writes a safetensors file of which two tensors are in memory at a time.

    The bytes are those that the safetensors library would write. The file appears whole or not at
    all.

    Args:
        path: the file; replaced if it exists.
        info: type and shape of every tensor.
        read: gives a tensor by name, in any order of names; called in another thread, as the one
            before is being written.
        metadata: text beside the tensors, written in this order.
        order: all names, in the order in which to make them; that of the file if None.

    Raises:
        CheckpointError: ``read`` gave another type or shape than announced.
    """
    path = pathlib.Path(path)
    rank = list(DTYPES)
    names = sorted(info, key=lambda name: (-rank.index(info[name].dtype), name))
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("wb") as file:
            header = _header(names, info, metadata)
            file.write(header)
            starts = _starts(names, info)
            order = names if order is None else order
            for name, value in zip(order, _made_ahead(read, order), strict=True):
                file.seek(len(header) + starts[name])
                if value.shape != info[name].shape or value.dtype != DTYPES[info[name].dtype]:
                    raise CheckpointError(
                        f"tensor {name} is {value.dtype}{list(value.shape)}; announced was "
                        f"{info[name].dtype}{list(info[name].shape)}"
                    )
                content = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
                for start in range(0, len(content), _PIECE):
                    file.write(content[start : start + _PIECE])
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _made_ahead(read: Callable[[str], np.ndarray], names: Sequence[str]) -> Iterator[np.ndarray]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(read, name) for name in names[:1]]
        for name in names[1:]:
            value = coming.pop().result()
            coming.append(pool.submit(read, name))
            yield value
        yield from (future.result() for future in coming)


def _starts(names: Sequence[str], info: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Where each tensor begins, in bytes after the header."""
    sizes = [info[name].nbytes for name in names]
    return dict(zip(names, itertools.accumulate([0, *sizes[:-1]]), strict=True))


def _header(names: list[str], info: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, start in _starts(names, info).items():
        header[name] = {
            "dtype": info[name].dtype,
            "shape": list(info[name].shape),
            "data_offsets": [start, start + info[name].nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _read_header(
    path: pathlib.Path,
) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, tuple[pathlib.Path, int]]]:
    """Types and shapes, metadata, and places of a file's tensors."""
    if path.suffix == ".bin":
        tensors = read_bin(path)
        infos = {name: TensorInfo(found.dtype, found.shape) for name, found in tensors.items()}
        return infos, {}, {name: (path, found.offset) for name, found in tensors.items()}
    try:
        with safe_open(path, framework="numpy"):  # checks offsets, sizes and the file's end
            pass
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); fetch it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    strange = {name: raw["dtype"] for name, raw in header.items() if raw["dtype"] not in DTYPES}
    if strange:
        raise CheckpointError(
            f"{path}: tensors of a type that is not read here: {strange}; allowed are "
            f"{', '.join(DTYPES)}"
        )
    info = {name: TensorInfo(raw["dtype"], tuple(raw["shape"])) for name, raw in header.items()}
    begin = 8 + length
    places = {name: (path, begin + raw["data_offsets"][0]) for name, raw in header.items()}
    return info, metadata, places
