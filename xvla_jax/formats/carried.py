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
import pydantic
from typing_extensions import TypedDict

from xvla_jax.checkpoints.names import BUFFERS
from xvla_jax.checkpoints.safetensors_files import DTYPES, TensorInfo
from xvla_jax.errors import CheckpointError
from xvla_jax.formats.file_names import check_link, plain_name
from xvla_jax.untrusted import STRICT, Width, shown, typed

# Tokenizer, remote code, LeRobot's pipelines with their statistics, licences: what loaders of
# other packages look for. A model card speaks of the weights that it came with and stays there.
_SUFFIXES: Final = (".json", ".txt", ".py", ".jinja", ".model", ".safetensors")
_NAMES: Final = ("LICENSE", "NOTICE")
LARGEST: Final = 16 << 20  # bytes; weights are larger
_LARGEST_BUFFER: Final = 1 << 30  # bytes


@pydantic.with_config(STRICT)
class _Buffer(TypedDict):
    dtype: str
    shape: list[Width]
    data: str


_FILES: Final = pydantic.TypeAdapter(dict[str, str], config=STRICT)
_BUFFERS: Final = pydantic.TypeAdapter(dict[str, _Buffer])


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
        and _travels(path.name)
        and path.name not in own | weights
        and path.stat().st_size <= LARGEST
        and check_link(path)
    }


def _travels(name: str) -> bool:
    path = pathlib.PurePath(name)
    chosen = path.suffix in _SUFFIXES or path.stem in _NAMES
    weights = ("model.safetensors", "pytorch_model.bin", "adapter_")
    return chosen and not name.startswith((".", *weights))


def files_to_json(files: Mapping[str, bytes]) -> dict[str, str]:
    """JSON form of `side_files`."""
    return {name: _pack(content) for name, content in files.items()}


def files_from_json(raw: Any, where: object) -> dict[str, bytes]:
    """Inverse of `files_to_json`; ``where`` is the file for messages.

    Raises:
        CheckpointError: a name is not that of a file that is carried, or a content is damaged or
            too large.
    """
    for name in typed(_FILES, raw, where, field="source.files"):
        plain_name(name, f"{where}: source.files")
        if not _travels(name):
            raise CheckpointError(
                f"{where}: source.files has {shown(name)}, which no checkpoint carries; allowed "
                f"are names that end in {', '.join(_SUFFIXES)}, and {', '.join(_NAMES)}"
            )
    return {
        name: _unpack(text, LARGEST, f"{where}: source.files.{name}") for name, text in raw.items()
    }


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


def buffers_from_json(raw: Any, where: object) -> dict[str, np.ndarray]:
    """Inverse of `buffers_to_json`; ``where`` is the file for messages.

    Raises:
        CheckpointError: a buffer is not one of the model's, or damaged, or of another size than
            its shape says.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in typed(_BUFFERS, raw, where, field="source.buffers").items():
        field = f"{where}: source.buffers.{name}"
        for what, value_, known in (("name", name, BUFFERS), ("dtype", value["dtype"], DTYPES)):
            if value_ not in known:
                raise CheckpointError(
                    f"{field}: {what} is {shown(value_)}; allowed are {', '.join(known)}"
                )
        info = TensorInfo(value["dtype"], tuple(value["shape"]))
        if info.nbytes > _LARGEST_BUFFER:
            raise CheckpointError(f"{field} has shape {value['shape']}; 1 GiB is allowed")
        content = _unpack(value["data"], info.nbytes, field)
        if len(content) != info.nbytes:
            raise CheckpointError(
                f"{field} holds {len(content)} bytes; its type and shape say {info.nbytes}"
            )
        found[name] = np.frombuffer(content, DTYPES[info.dtype]).reshape(info.shape)
    return found


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _unpack(text: str, largest: int, where: str) -> bytes:
    """The content of a packed field, of which at most ``largest`` bytes are unpacked."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text), largest + 1)
    except (ValueError, zlib.error) as error:
        raise CheckpointError(f"{where} cannot be unpacked ({error})") from error
    if len(content) > largest:
        raise CheckpointError(f"{where} unpacks to more than {largest} bytes, which are allowed")
    if not unpacker.eof:
        raise CheckpointError(f"{where} cannot be unpacked (it is cut short)")
    return content
