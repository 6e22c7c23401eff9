"""Converts PyTorch tensors on disk to JAX parameters and back, by the table in ``names.py``.

Two tensors at a time are in memory beside the parameters: layers are copied into their place in a
stacked leaf as they are read, and out of it as they are written.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flax.traverse_util import unflatten_dict

from xvla_jax.checkpoints.accounting import (
    STORED,
    account,
    buffer_shapes,
    check_first_frame,
    not_finite,
    refuse_not_finite,
    stored_names,
)
from xvla_jax.checkpoints.names import (
    BUFFERS,
    DIALECTS,
    LAYOUTS,
    LOGITS_BIAS,
    SHARED,
    TEMPORAL,
    Path,
    Row,
    detect_dialect,
    rows,
)
from xvla_jax.checkpoints.safetensors_files import DTYPES, StoredLeaf, TensorFiles, TensorInfo
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError

_STRIP: Final = 16  # floats in a cache line
_READERS: Final = 2  # threads: half of the time goes into memory that is touched for the first time


@dataclasses.dataclass(frozen=True)
class Weights:
    """Content of a PyTorch checkpoint.

    Attributes:
        params: the parameter tree; float32 leaves, numpy arrays or still on disk.
        buffers: released name -> tensor that is saved but is no parameter, as it was stored.
        stored_dtype: type of the stored parameters, a key of ``STORED``.
    """

    params: dict[str, Any]
    buffers: dict[str, np.ndarray]
    stored_dtype: str


@dataclasses.dataclass(frozen=True)
class TorchTensors:
    """A state dict that is made tensor by tensor, for `write_safetensors`.

    Attributes:
        info: types and shapes by name.
        read: makes a tensor.
        metadata: text beside the tensors.
        order: all names, in the order in which reading is cheapest: leaf by leaf.
        rounded: names of the tensors read so far that the stored type does not hold exactly.
    """

    info: Mapping[str, TensorInfo]
    read: Callable[[str], np.ndarray]
    metadata: Mapping[str, str]
    order: Sequence[str]
    rounded: set[str] = dataclasses.field(default_factory=set)


def open_torch(files: TensorFiles, config: XVLAConfig, template: Any) -> Weights:
    """Opens tensors in any dialect as a parameter tree of `StoredLeaf`.

    Args:
        files: the tensors.
        config: the model that they belong to.
        template: tree of anything with ``shape``, as ``abstract_params(config)`` gives it.

    Raises:
        CheckpointError: lists all missing, surplus and mis-shaped tensors. Reading a leaf can raise
            it too, and then lists all tensors that hold NaN or infinity.
    """
    dialect = detect_dialect(set(files.info))
    names = stored_names(files, config, dialect)
    account(files, names, torch_shapes(config, template) | buffer_shapes(config), dialect)
    table: dict[Path, dict[int | None, Row]] = {}
    for row in rows(config):
        table.setdefault(row.path, {})[row.layer] = row

    def read_row(row: Row) -> np.ndarray:
        value = files.read(names[row.torch])
        if not_finite(value):
            parameters = sorted({names[row.torch] for row in rows(config)})
            refuse_not_finite({name: not_finite(files.read(name)) for name in parameters})
        if row.torch in dialect.transposed:
            value = value.T
        shape = _leaf(template, row.path).shape
        return LAYOUTS[row.layout].to_jax(value, shape if row.layer is None else shape[1:])

    def read(path: Path, layer: int | None) -> np.ndarray:
        layers = table[path]
        if layer in layers:
            return np.asarray(read_row(layers[layer]), np.float32)
        stack = np.empty(_leaf(template, path).shape, np.float32)
        for number, row in layers.items():
            _copy(stack[number], read_row(row))
        return stack

    leaves = {
        path: StoredLeaf(_leaf(template, path).shape, functools.partial(read, path))
        for path in table
    }
    kinds = {files.info[names[row.torch]].dtype for row in rows(config)}
    stored_dtype = next(name for name, kind in STORED.items() if kind in kinds)
    buffers = {b: files.read(names[b]) for b in BUFFERS if names[b] in files.info}
    if TEMPORAL in buffers:
        check_first_frame(buffers[TEMPORAL], names[TEMPORAL])
    return Weights(unflatten_dict(leaves), buffers, stored_dtype)


def from_torch(files: TensorFiles, config: XVLAConfig, template: Any) -> Weights:
    """Reads what `open_torch` opens as a parameter tree of float32 numpy arrays."""
    weights = open_torch(files, config, template)
    table = rows(config)
    leaves = {row.path: np.empty(_leaf(template, row.path).shape, np.float32) for row in table}

    def place(row: Row) -> None:
        target, source = leaves[row.path], _leaf(weights.params, row.path)
        if row.layer is None:
            _copy(target, source.read(None))
        else:
            _copy(target[row.layer], source[row.layer])

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(place, table):
            pass
    return dataclasses.replace(weights, params=unflatten_dict(leaves))


def to_torch(
    params: Mapping[str, Any],
    config: XVLAConfig,
    layout: str,
    *,
    buffers: Mapping[str, np.ndarray] | None = None,
    dtype: str = "float32",
) -> TorchTensors:
    """Converts a parameter tree to a state dict in the dialect ``layout``, buffers included.

    Args:
        params: the tree.
        config: the model.
        layout: key of ``names.DIALECTS``.
        buffers: as the source had them; `reference_buffers` replaces those that are missing.
        dtype: type to store, a key of ``STORED``.

    Raises:
        CheckpointError: no such dialect or type, or the tree is not that of ``config``.
    """
    for what, value, known in (("layout", layout, DIALECTS), ("dtype", dtype, STORED)):
        if value not in known:
            raise CheckpointError(f"{what} is {value!r}; known are {', '.join(known)}")
    dialect = DIALECTS[layout]
    released: dict[str, Row | np.ndarray] = {row.torch: row for row in rows(config)}
    released |= reference_buffers(config) | dict(buffers or {})
    shapes = torch_shapes(config, params) | buffer_shapes(config)
    stored: dict[str, Row | np.ndarray] = {}
    info, rounded = {}, set()
    for name, source in released.items():
        if name in dialect.absent:
            continue
        key = dialect.rename(dialect.tied_name if name == SHARED else name)
        stored[key] = source
        shape = shapes[name]
        info[key] = TensorInfo(STORED[dtype], shape[::-1] if name in dialect.transposed else shape)

    def read(key: str) -> np.ndarray:
        source = stored[key]
        value = _released(params, source) if isinstance(source, Row) else source
        if isinstance(source, Row) and source.torch in dialect.transposed:
            value = value.T
        made = np.empty(value.shape, DTYPES[STORED[dtype]])
        with np.errstate(over="ignore"):  # float16 ends at 65,504
            _copy(made, value)
        if not_finite(made):
            refuse_not_finite({n: not_finite(v) for n, v in iter_released(params, config)})
            raise CheckpointError(f"{key} has values up to {np.abs(value).max()}, not in {dtype}")
        if made.dtype != value.dtype and not np.array_equal(made.astype(value.dtype), value):
            rounded.add(key)
        return made

    def place(key: str) -> Path:
        source = stored[key]
        return source.path if isinstance(source, Row) else ()

    return TorchTensors(info, read, dialect.metadata, sorted(stored, key=place), rounded)


def iter_released(
    params: Mapping[str, Any], config: XVLAConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields released name and tensor of every parameter, leaf by leaf, as stored leaves read best.

    The tree may be any with the shapes of the parameters (gradients too).
    """
    for row in sorted(rows(config), key=lambda row: row.path):
        yield row.torch, _released(params, row)


def torch_shapes(config: XVLAConfig, template: Any) -> dict[str, tuple[int, ...]]:
    """Returns released name -> shape in the released file, for every parameter but no buffer."""
    return {row.torch: _torch_shape(row, template) for row in rows(config)}


def temporal_table(config: XVLAConfig) -> np.ndarray:
    """Returns the sine/cosine table that the reference saves as a buffer, ``float32[rows, C]``.

    The network reads row 0 alone, which is exactly 0, 1, 0, 1, ...; the other rows can differ from
    a PyTorch file in the last bit.
    """
    width, count = config.vision.dim_embed[-1], config.vision.max_temporal_embeddings
    exponents = (
        np.float32(-np.log(10000.0)) * np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    )
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(count, dtype=np.float32)[:, None] * rates).astype(np.float64)
    table = np.zeros((count, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


def reference_buffers(config: XVLAConfig) -> dict[str, np.ndarray]:
    """Returns released name -> float32 tensor for what the reference saves beside parameters."""
    return {
        TEMPORAL: temporal_table(config),
        LOGITS_BIAS: np.zeros((1, config.text.vocab_size), np.float32),
    }


def _released(params: Mapping[str, Any], row: Row) -> np.ndarray:
    """Returns a parameter in the released layout, as a view if possible."""
    leaf = _leaf(params, row.path)
    value = np.asarray(leaf if row.layer is None else leaf[row.layer], dtype=np.float32)
    return LAYOUTS[row.layout].to_torch(value)


def _copy(target: np.ndarray, value: np.ndarray) -> None:
    """Copies ``value`` into ``target``; a transposed matrix in strips, in a quarter of the time."""
    if value.ndim != 2 or value.flags.c_contiguous:
        target[...] = value
        return
    for start in range(0, value.shape[1], _STRIP):
        target[:, start : start + _STRIP] = value[:, start : start + _STRIP]


def _torch_shape(row: Row, template: Any) -> tuple[int, ...]:
    shape = _leaf(template, row.path).shape
    # A broadcast zero takes no memory.
    one = np.broadcast_to(np.float32(0), shape if row.layer is None else shape[1:])
    return LAYOUTS[row.layout].to_torch(one).shape


def _leaf(tree: Any, path: Path) -> Any:
    for key in path:
        if key not in tree:
            raise CheckpointError(
                f"the parameter tree has no {'/'.join(path)}; it has {sorted(tree)} at {key!r}"
            )
        tree = tree[key]
    return tree
