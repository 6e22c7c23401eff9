"""What travels with the weights unread: saved buffers, and small files of the source folder.

Both stay as they were through every layout. An Orbax checkpoint holds them in its JSON item.
"""

from __future__ import annotations

import base64
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.formats.tensor_files import DTYPES, TensorInfo

# Tokenizer, remote code, LeRobot's pipelines with their statistics, licences: what loaders of
# other packages look for. A model card speaks of the weights that it came with and stays there.
_SUFFIXES: Final = (".json", ".txt", ".py", ".jinja", ".model", ".safetensors")
_NAMES: Final = ("LICENSE", "NOTICE")
_LARGEST: Final = 16 << 20  # bytes; weights are larger


def side_files(
    folder: str | os.PathLike[str], *, own: frozenset[str], weights: frozenset[str]
) -> dict[str, bytes]:
    """The files of a checkpoint folder that are copied as they are.

    Args:
        folder: the checkpoint.
        own: names that an export writes itself.
        weights: names of the weight files.
    """
    return {
        path.name: path.read_bytes()
        for path in sorted(pathlib.Path(folder).iterdir())
        if path.is_file()
        and (path.suffix in _SUFFIXES or path.stem in _NAMES)
        and not path.name.startswith((".", "model.safetensors", "pytorch_model.bin", "adapter_"))
        and path.name not in own | weights
        and path.stat().st_size <= _LARGEST
    }


def files_to_json(files: Mapping[str, bytes]) -> dict[str, str]:
    """JSON form of `side_files`."""
    return {name: _pack(content) for name, content in files.items()}


def files_from_json(raw: Mapping[str, str]) -> dict[str, bytes]:
    """Inverse of `files_to_json`."""
    return {name: _unpack(text) for name, text in raw.items()}


def buffers_to_json(buffers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """JSON form of tensors by name, bit for bit."""
    return {
        name: {
            "dtype": TensorInfo.of(value).dtype,
            "shape": list(value.shape),
            "data": _pack(value.tobytes()),
        }
        for name, value in buffers.items()
    }


def buffers_from_json(raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inverse of `buffers_to_json`."""
    return {
        name: np.frombuffer(_unpack(value["data"]), DTYPES[value["dtype"]]).reshape(value["shape"])
        for name, value in raw.items()
    }


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
