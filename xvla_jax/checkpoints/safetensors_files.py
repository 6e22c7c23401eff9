"""Files of tensors, read and written one tensor at a time: single files or shards, bfloat16 too.

It writes safetensors files, and reads PyTorch's own as well (torch_bin.py).

The safetensors library checks a file, whose header nobody should trust. But it maps the file into
memory, where pages once read count as ours, and its numpy side has no bfloat16. So tensors are read
at their offsets, each into memory of its own, and written as they are made.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import pydantic
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from xvla_jax.checkpoints.torch_bin import read_bin
from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import STRICT, check_bound, plain_name, read_json, typed

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
BIN_NAME: Final = "pytorch_model.bin"
BIN_INDEX_NAME: Final = "pytorch_model.bin.index.json"
# forms of a folder's weights, the first that is there is read: (file, index of its shards)
_FORMS: Final = ((WEIGHTS_NAME, INDEX_NAME), (BIN_NAME, BIN_INDEX_NAME))
STORED_AS: Final = tuple(name for form in _FORMS for name in form)

# In the order of the library's own enumeration: files hold the last kind first.
DTYPES: Final[Mapping[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
}
_KINDS: Final = {dtype: kind for kind, dtype in DTYPES.items()}
_FLOAT32: Final = np.dtype(np.float32)
_PIECE: Final = 1 << 20  # bytes given to the system at a time; larger ones can take it much longer
_ALIGNMENT: Final = 8  # bytes; the header is padded to it with spaces


Progress = Callable[[int, int], None]  # takes (bytes done, bytes in all)


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
        """Returns the type and shape with which an array would be stored."""
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
            CheckpointError: there is no such file, or one is cut short, damaged or too large.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            present = (path / name for name in STORED_AS if (path / name).is_file())
            path = next(present, path / WEIGHTS_NAME)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        files = cls._open_shards(path) if path.suffix == ".json" else cls(*_read_header(path))
        check_bound("bytes of tensors", files.nbytes, path)
        return files

    @classmethod
    def _open_shards(cls, index: pathlib.Path) -> TensorFiles:
        folder = index.parent
        shard_of = typed(_INDEX, read_json(index), index)["weight_map"]
        shards = sorted({plain_name(name, f"{index}: weight_map") for name in shard_of.values()})
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of the {len(shards)} shards that {index.name} lists are "
                f"missing: {', '.join(missing)}; fetch them"
            )
        info, metadata, places = {}, {}, {}
        for name in shards:
            part = _read_header(folder / name)
            for merged, of_shard in zip((info, metadata, places), part, strict=True):
                merged.update(of_shard)
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
        """Reads a tensor into memory of its own, in the stored type.

        Raises:
            CheckpointError: the file has been cut since it was opened.
        """
        info, (path, offset) = self.info[name], self.places[name]
        count = int(np.prod(info.shape, dtype=np.int64))
        values = np.fromfile(path, DTYPES[info.dtype], count, offset=offset)
        if values.size != count:
            raise CheckpointError(f"{path}: tensor {name} has {values.size} of {count} values")
        return values.reshape(info.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredLeaf:
    """A float32 parameter that is read again each time it is used.

    It takes the place of a numpy array: it has a shape, can be indexed by layer, and converts to an
    array.

    Attributes:
        shape: of the complete leaf.
        read: returns one layer (an index into the leading axis), or all of the leaf for None; the
            array may be a view, so callers do not write to it.
    """

    shape: tuple[int, ...]
    read: Callable[[int | None], np.ndarray]

    @property
    def dtype(self) -> np.dtype:
        """float32, always."""
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


def write_safetensors(
    path: str | os.PathLike[str],
    info: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str],
    order: Sequence[str] | None = None,
) -> None:
    """Writes a safetensors file with at most two of its tensors in memory.

    The bytes are those that the safetensors library would write. The file appears complete or not
    at all.

    Args:
        path: the file; replaced if it exists.
        info: type and shape of every tensor.
        read: returns a tensor by name, in any order of names; called in another thread, while the
            one before is written.
        metadata: text beside the tensors, written in this order.
        order: all names, in the order in which to read them; that of the file if None.

    Raises:
        CheckpointError: ``read`` returned another type or shape than announced.
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
            for name, value in zip(order, _read_ahead(read, order), strict=True):
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


def _read_ahead(read: Callable[[str], np.ndarray], names: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields tensors in order; the next is read while the caller works with this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(read, name) for name in names[:1]]
        for name in names[1:]:
            value = coming.pop().result()
            coming.append(pool.submit(read, name))
            yield value
        yield from (future.result() for future in coming)


def _starts(names: Sequence[str], info: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Returns the byte after the header at which each tensor begins."""
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
    """Returns types and shapes, metadata, and places of a file's tensors."""
    if path.suffix == ".bin":
        tensors = read_bin(path)
        infos = {name: TensorInfo(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        return infos, {}, {name: (path, tensor.offset) for name, tensor in tensors.items()}
    try:
        with safe_open(path, framework="numpy"):  # checks offsets, sizes and the file's end
            pass
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); fetch it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    unknown = {name: raw["dtype"] for name, raw in header.items() if raw["dtype"] not in DTYPES}
    if unknown:
        raise CheckpointError(
            f"{path}: tensors of a type that is not read here: {unknown}; allowed are "
            f"{', '.join(DTYPES)}"
        )
    info = {name: TensorInfo(raw["dtype"], tuple(raw["shape"])) for name, raw in header.items()}
    begin = 8 + length
    places = {name: (path, begin + raw["data_offsets"][0]) for name, raw in header.items()}
    return info, metadata, places
