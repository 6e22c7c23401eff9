"""A small `torch.save`: a zip of storages and a pickle, spelled opcode by opcode, without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

_STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
_EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def save(path: Path, tensors: Mapping[str, np.ndarray], **changes: object) -> None:
    """Writes a state dict. `changes` to every tensor: `first`, `stride`, `shape`, `storage`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", pickled(tensors, range(len(tensors)), **changes))
        archive.writestr("any/byteorder", str(changes.get("byteorder", "little")))
        for number, value in enumerate(tensors.values()):
            archive.writestr(f"any/data/{number}", np.ascontiguousarray(value).tobytes())


def pickled(tensors: Mapping[str, np.ndarray], storages: Iterable[int], **changes: object) -> bytes:
    """Pickles a state dict whose tensors lie in the storages of these numbers."""
    content = b"\x80\x02" + _EMPTY_DICT + b"("
    for number, (name, value) in zip(storages, tensors.items(), strict=True):
        content += _text(name) + _tensor(number, value, changes)
    return content + b"u."


def _tensor(number: int, value: np.ndarray, changes: Mapping[str, object]) -> bytes:
    storage = changes.get("storage", f"torch\n{_STORAGE[value.dtype.name]}")
    row_major = tuple(step // value.itemsize for step in value.strides)
    place = b"(" + _text("storage") + f"c{storage}\n".encode()
    place += _text(str(number)) + _text("cpu") + _number(value.size) + b"tQ"
    arguments = place + _number(changes.get("first", 0))
    arguments += _numbers(changes.get("shape", value.shape))
    arguments += _numbers(changes.get("stride", row_major)) + b"\x89" + _EMPTY_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _number(value: object) -> bytes:
    return f"I{value}\n".encode()


def _numbers(values: object) -> bytes:
    assert isinstance(values, tuple)
    return b"(" + b"".join(map(_number, values)) + b"t"
