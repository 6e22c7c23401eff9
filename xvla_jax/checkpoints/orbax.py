"""Reads and writes the parameters of an Orbax step without a second copy in memory.

Where a run kept a moving average of the parameters that it trained (``config.ema_decay``), that is
read, for it is what validation measures. A resumed run restores both, by other means.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import type_handlers

from xvla_jax.checkpoints.accounting import (
    check_size,
    check_stored_tree,
    check_tree,
    not_finite,
    refuse_not_finite,
)
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.checkpoints.safetensors_files import Progress, StoredLeaf
from xvla_jax.errors import CheckpointError

_CONCURRENT_GB: Final = 1  # of leaves that Orbax holds in buffers of its own at a time
_CHUNK: Final = 16 << 20  # bytes of a leaf that are stored together
_GROUP: Final = 256 << 20  # bytes of leaves that are read or written at a time

_PARAMS: Final = "params"
_AVERAGE: Final = "ema"

Path = tuple[Any, ...]
Names = tuple[str, ...]  # of the keys of a path

_log = logging.getLogger(__name__)


def load_params(step_folder: pathlib.Path, template: Any) -> dict[str, Any]:
    """Reads the parameters alone as float32 numpy leaves; needs neither optimizer nor device.

    Raises:
        CheckpointError: the parameters do not have the template's shapes, or some are not finite.
    """
    averaged = _check_stored(step_folder, template)
    params = _restore(step_folder, template, averaged)
    counts = {_name(path): not_finite(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    _refuse(step_folder, counts)
    return params


def stored_params(step_folder: pathlib.Path, template: Any) -> dict[str, Any]:
    """Returns what `load_params` does, with leaves that are read when they are used.

    Neighbours in the tree are read together, so using leaves in the order of the tree is fastest.
    """
    averaged = _check_stored(step_folder, template)
    leaves = jax.tree.leaves_with_path(template)
    groups = _groups([leaf.size * leaf.dtype.itemsize for _, leaf in leaves])
    group_of = {leaves[i][0]: number for number, group in enumerate(groups) for i in group}

    @functools.lru_cache(maxsize=1)
    def read_group(number: int) -> dict[str, Any]:
        group = (leaves[i] for i in groups[number])
        flat = {tuple(key.key for key in path): leaf for path, leaf in group}
        return _restore(step_folder, unflatten_dict(flat), averaged)

    def read(path: Path, layer: int | None) -> np.ndarray:
        leaf: Any = read_group(group_of[path])
        for key in path:
            leaf = leaf[key.key]
        value = leaf if layer is None else leaf[layer]
        if not_finite(value):
            load_params(step_folder, template)  # raises, and names every leaf that is not finite
        return value

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: StoredLeaf(leaf.shape, functools.partial(read, path)), template
    )


def write_step(
    workdir: pathlib.Path,
    params: Any,
    model: Mapping[str, Any],
    *,
    progress: Progress | None = None,
) -> None:
    """Writes parameters and ``model`` item as step 0 of a workdir; there is no optimizer.

    Arrays are not compressed, as weights hardly compress. Stored leaves are read one group at a
    time, and ``progress`` is called for every leaf.
    """
    total, done = sum(leaf.nbytes for leaf in jax.tree.leaves(params)), 0

    def read(leaf: Any, _: int | None) -> np.ndarray:
        nonlocal done
        done += leaf.nbytes
        if progress:
            progress(done, total)
        return np.asarray(leaf)

    leaves = jax.tree.map(
        lambda leaf: StoredLeaf(leaf.shape, functools.partial(read, leaf)), params
    )
    handler = ocp.CompositeCheckpointHandler(params=_handler(), model=ocp.JsonCheckpointHandler())
    in_chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), leaves)
    items = ocp.args.Composite(
        params=ocp.args.PyTreeSave(leaves, save_args=in_chunks),
        model=ocp.args.JsonSave(dict(model)),
    )
    with ocp.Checkpointer(handler) as writer:
        writer.save(workdir.resolve() / CHECKPOINTS / "0", args=items)


def _check_stored(step_folder: pathlib.Path, template: Any) -> frozenset[Names]:
    """Compares size, names and shapes with the template's; reads no values.

    Returns:
        The leaves that are stored as a moving average too.

    Raises:
        CheckpointError: they differ, or cannot be read.
    """
    check_size(template, step_folder)
    try:
        check_stored_tree(step_folder / _PARAMS, template)
        return _averaged(step_folder, template)
    except (ValueError, KeyError, FileNotFoundError, AttributeError) as error:
        raise CheckpointError(
            f"{step_folder}: the parameters cannot be read as this model's: {error}"
        ) from error


def _averaged(step_folder: pathlib.Path, template: Any) -> frozenset[Names]:
    """Returns the leaves of which the step has a moving average: those that were trained."""
    folder = step_folder / _AVERAGE
    if not folder.is_dir():
        return frozenset()
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        stored = handler.metadata(epath.Path(folder)).tree
    names, leaves = flatten_dict(stored), flatten_dict(template)
    check_tree(stored, unflatten_dict({name: leaves[name] for name in names if name in leaves}))
    _log.info("%s: the moving average of the weights is read (config.ema_decay)", step_folder)
    return frozenset(names)


def _restore(
    step_folder: pathlib.Path, template: Any, averaged: frozenset[Names]
) -> dict[str, Any]:
    """Reads the leaves of a template, of those in ``averaged`` the average."""
    leaves: dict[Names, Any] = flatten_dict(template)
    values: dict[Names, Any] = {}
    for item, chosen in ((_PARAMS, leaves.keys() - averaged), (_AVERAGE, leaves.keys() & averaged)):
        if chosen:
            part = unflatten_dict({name: leaves[name] for name in leaves if name in chosen})
            values |= flatten_dict(_restore_item(step_folder / item, part))
    return unflatten_dict({name: values[name] for name in leaves})


def _restore_item(folder: pathlib.Path, template: Any) -> dict[str, Any]:
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype(np.float32))
    arguments = ocp.args.PyTreeRestore(
        item=template,
        restore_args=jax.tree.map(lambda _: as_numpy, template),
        partial_restore=True,
    )
    try:
        with ocp.Checkpointer(_handler()) as reader:
            return reader.restore(folder, args=arguments)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise CheckpointError(f"{folder}: the parameters cannot be read: {error}") from error


def _refuse(step_folder: pathlib.Path, counts: Mapping[str, int]) -> None:
    try:
        refuse_not_finite(counts)
    except CheckpointError as error:
        raise CheckpointError(f"{step_folder}: {error}") from error


def _name(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class _StoredLeafHandler(type_handlers.NumpyHandler):
    """Writes stored leaves as numpy arrays; reads a group while the one before is written."""

    async def _background_serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> None:
        args = args or [ocp.SaveArgs()] * len(values)
        groups = _groups([value.nbytes for value in values])
        next_arrays = _read_group(values, groups[0])
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            arrays = await next_arrays
            next_arrays = _read_group(values, following)
            await super()._background_serialize(
                arrays, [infos[i] for i in group], [args[i] for i in group]
            )
        await next_arrays


def _read_group(values: Sequence[Any], group: Sequence[int]) -> asyncio.Future[list[np.ndarray]]:
    def read() -> list[np.ndarray]:
        return [np.asarray(values[i]) for i in group]

    return asyncio.get_running_loop().run_in_executor(None, read)


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Groups neighbours up to `_GROUP` bytes; a larger leaf is a group of its own."""
    groups: list[list[int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if size > room:
            groups.append([])
            room = _GROUP
        groups[-1].append(index)
        room -= size
    return groups


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=_CONCURRENT_GB,
        restore_concurrent_gb=_CONCURRENT_GB,
        use_compression=False,
        type_handler_registry=type_handlers.create_type_handler_registry(
            (np.ndarray, type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
            (StoredLeaf, _StoredLeafHandler(deepcopy_host_arrays=False)),
            (jax.Array, type_handlers.ArrayHandler()),
        ),
    )
