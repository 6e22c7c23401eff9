"""Folders of a run, as Orbax writes them: which step is meant, and what its ``model`` item says.

The ``model`` item is JSON beside the arrays of a step: config, processor and action contracts, and
under ``source`` what the checkpoint that training began with had beside its parameters. Tensors and
files are packed there as compressed base64 text.
"""

from __future__ import annotations

import base64
import functools
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NotRequired

import numpy as np
import pydantic
from typing_extensions import TypedDict

from xvla_jax import buckets
from xvla_jax.checkpoints.folders import COMMITTED, check_free, check_uploaded
from xvla_jax.checkpoints.hf_folder import CARRIED_NAMES, CARRIED_SUFFIXES, is_carried
from xvla_jax.checkpoints.names import BUFFERS
from xvla_jax.checkpoints.safetensors_files import DTYPES, TensorInfo
from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import (
    BOUNDS,
    STRICT,
    Width,
    check_bound,
    check_object,
    plain_name,
    read_json,
    shown,
    typed,
)

CHECKPOINTS: Final = "checkpoints"  # folder inside the workdir, with a folder for each step
_NOT_READ: Final = ("opt_state",)  # items that only a resumed run needs


@pydantic.with_config(STRICT)
class _Source(TypedDict, total=False):
    buffers: dict[str, Any]
    files: dict[str, Any]
    stored_dtype: str


@pydantic.with_config(STRICT)
class _Adapter(TypedDict):
    peft: dict[str, Any]
    base: str
    base_sha256: str


@pydantic.with_config(STRICT)
class _Model(TypedDict):
    """The ``model`` item; its parts are checked where they are used."""

    config: dict[str, Any]
    processor: dict[str, Any] | None
    contracts: list[dict[str, Any]]
    domains: NotRequired[dict[str, int]]  # as of release 0.3
    source: NotRequired[_Source]
    adapter: NotRequired[_Adapter]


@pydantic.with_config(STRICT)
class _Buffer(TypedDict):
    dtype: str
    shape: list[Width]
    data: str


_MODEL: Final = pydantic.TypeAdapter(_Model)
_BUFFERS: Final = pydantic.TypeAdapter(dict[str, _Buffer])
_FILES: Final = pydantic.TypeAdapter(dict[str, str], config=STRICT)


def find_step(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Returns the step folder meant by a workdir, its ``checkpoints`` or a step folder.

    That is the newest step; None if the path is none of the three. Of a bucket it is a copy.
    """
    path = on_disk(path)
    if (path / "params").is_dir() and (path / "model").is_dir():
        return path
    for folder in (path, path / CHECKPOINTS):
        if folder.is_dir():
            steps = [p for p in folder.iterdir() if p.name.isdigit() and (p / "params").is_dir()]
            if steps:
                return max(steps, key=lambda p: int(p.name))
    return None


def read_model(step_folder: buckets.Place) -> dict[str, Any]:
    """Returns the ``model`` item of a step.

    Raises:
        CheckpointError: the step has none, or it has another form.
    """
    content = read_item(step_folder, "model")
    if content is None:
        raise CheckpointError(f"{step_folder} has no model item; it is no checkpoint of xvla_jax")
    typed(_MODEL, content, step_folder, field="model")
    return content


def read_item(step_folder: buckets.Place, item: str) -> dict[str, Any] | None:
    """Returns a JSON item of a step; None where the step has no such item."""
    if buckets.in_bucket(step_folder):
        with tempfile.TemporaryDirectory() as copy:
            objects = buckets.files(step_folder / item)
            buckets.download(step_folder / item, objects, pathlib.Path(copy, item))
            return read_item(pathlib.Path(copy), item)
    files = sorted(pathlib.Path(step_folder, item).rglob("metadata"))
    if not files:
        return None
    return check_object(read_json(files[0]), files[0], error=CheckpointError)


def on_disk(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a folder with a checkpoint or an adapter, on this machine.

    One in a bucket is copied, once in a process, into a folder that is removed at its end: of a
    workdir the newest complete step without its optimizer, of another folder the files in it.

    Raises:
        CheckpointError: nothing complete is there.
        OSError: the bucket cannot be read, or the disk is full.
    """
    if not buckets.in_bucket(path):
        return pathlib.Path(path)
    folder = buckets.place_of(path)
    step = _newest_step(folder)
    if step is None:
        return _copied(folder, tuple(_files_of_folder(folder)))
    heads = tuple(f"{item}/" for item in _NOT_READ)
    objects = (entry for entry in buckets.files(step) if not entry.name.startswith(heads))
    return _copied(step, tuple(objects))


def existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a folder as `on_disk`, and refuses one that is not there.

    Raises:
        CheckpointError: it is not there; a name of a hub is met by the command that downloads it.
    """
    folder = on_disk(path)
    if folder.is_dir():
        return folder
    is_name = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists()
    how = f"; to download it: hf download {folder} --local-dir FOLDER" if is_name else ""
    raise CheckpointError(f"{folder}: no such folder{how}")


@functools.cache
def _copied(folder: buckets.Place, objects: tuple[buckets.Object, ...]) -> pathlib.Path:
    """Returns a copy of objects of a folder; the same ones, by version, are copied once."""
    copies = _scratch().path
    check_free(copies, sum(entry.size for entry in objects))
    # the name of the place at the end, for messages
    target = pathlib.Path(tempfile.mkdtemp(dir=copies), *folder.parts[1:])
    buckets.download(folder, objects, target)
    return target


@functools.cache
def _scratch() -> buckets.Scratch:
    """Returns the folder of copies, which goes with this process."""
    return buckets.Scratch()


def remove_copies() -> None:
    """Removes the copies that `on_disk` made; the end of the interpreter does it otherwise."""
    if _scratch.cache_info().currsize:
        _scratch().remove()


def _newest_step(folder: buckets.Place) -> buckets.Place | None:
    """Returns the newest complete step below a folder of a bucket; None where there are no steps.

    Raises:
        CheckpointError: steps are there, and none is complete; or the folder is being written.
    """
    objects, folders = buckets.entries(folder)
    check_uploaded(folder, [entry.name for entry in objects])
    if {"params", "model"} <= {*folders}:
        step, steps = folder if _is_complete(objects) else None, [folder.name]
    else:
        parent = folder / CHECKPOINTS if CHECKPOINTS in folders else folder
        names = buckets.entries(parent)[1] if parent != folder else folders
        step, steps = newest_complete(parent, names), sorted(filter(str.isdigit, names), key=int)
    if step is None and steps:
        raise CheckpointError(
            f"{folder} has {', '.join(steps)}, of which none is complete: a "
            f"step in a bucket has a {COMMITTED}, which is written last. Convert a run that is on "
            f"a disk with scripts.convert_checkpoint --layout=orbax and this target, or take "
            "another folder"
        )
    return step


def newest_complete(parent: buckets.Place, names: Iterable[str]) -> buckets.Place | None:
    """Returns the newest complete step of a folder in a bucket; None where there is none.

    Args:
        parent: of the steps.
        names: of the folders in it.
    """
    steps = (parent / name for name in sorted(filter(str.isdigit, names), key=int, reverse=True))
    return next((step for step in steps if _is_complete(buckets.entries(step)[0])), None)


def _is_complete(objects: Iterable[buckets.Object]) -> bool:
    return any(entry.name == COMMITTED for entry in objects)


def _files_of_folder(folder: buckets.Place) -> list[buckets.Object]:
    """Returns the files of a folder in a bucket that is no run.

    Raises:
        CheckpointError: there are none.
    """
    objects, folders = buckets.entries(folder)
    if not objects:
        has = f"it has the folders {', '.join(folders[:8])}" if folders else "it is empty"
        raise CheckpointError(f"{folder}: no checkpoint is in this folder; {has}")
    return objects


def files_to_json(files: Mapping[str, bytes]) -> dict[str, str]:
    """Packs carried files for the ``model`` item."""
    return {name: _pack(content) for name, content in files.items()}


def files_from_json(raw: Any, where: object) -> dict[str, bytes]:
    """Unpacks what `files_to_json` packed; ``where`` is the step for messages.

    Raises:
        CheckpointError: a name is not that of a file that is carried, or a content is damaged or
            too large.
    """
    for name in typed(_FILES, raw, where, field="source.files"):
        plain_name(name, f"{where}: source.files")
        if not is_carried(name):
            raise CheckpointError(
                f"{where}: source.files has {shown(name)}, which no checkpoint carries; allowed "
                f"are names that end in {', '.join(CARRIED_SUFFIXES)}, and "
                f"{', '.join(CARRIED_NAMES)}"
            )
    largest = BOUNDS["bytes of a carried file"]
    return {
        name: _unpack(text, largest, f"{where}: source.files.{name}") for name, text in raw.items()
    }


def buffers_to_json(buffers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Packs tensors by name for the ``model`` item, bit for bit."""
    return {
        name: {
            "dtype": TensorInfo.of(value).dtype,
            "shape": list(value.shape),
            "data": _pack(value.tobytes()),
        }
        for name, value in buffers.items()
    }


def buffers_from_json(raw: Any, where: object) -> dict[str, np.ndarray]:
    """Unpacks what `buffers_to_json` packed; ``where`` is the step for messages.

    Raises:
        CheckpointError: a buffer is not one of the model's, is damaged, or has another size than
            its shape says.
    """
    buffers: dict[str, np.ndarray] = {}
    for name, stored in typed(_BUFFERS, raw, where, field="source.buffers").items():
        field = f"{where}: source.buffers.{name}"
        for kind, value, known in (("name", name, BUFFERS), ("dtype", stored["dtype"], DTYPES)):
            if value not in known:
                raise CheckpointError(
                    f"{field}: {kind} is {shown(value)}; allowed are {', '.join(known)}"
                )
        info = TensorInfo(stored["dtype"], tuple(stored["shape"]))
        check_bound("bytes of a buffer", info.nbytes, f"{field} with shape {stored['shape']}")
        content = _unpack(stored["data"], info.nbytes, field)
        if len(content) != info.nbytes:
            raise CheckpointError(
                f"{field} holds {len(content)} bytes; its type and shape say {info.nbytes}"
            )
        buffers[name] = np.frombuffer(content, DTYPES[info.dtype]).reshape(info.shape)
    return buffers


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode("ascii")


def _unpack(text: str, largest: int, where: str) -> bytes:
    """Returns the content of a packed field, of which at most ``largest`` bytes are unpacked."""
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
