"""Converts PyTorch tensors on disk to JAX parameters and back, by the table in ``names.py``.

Two tensors at a time are in memory beside the parameters: layers are copied into their place in a
stacked leaf as they are read, and out of it as they are written.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from xvla_jax.checkpoints.accounting import (
    INT8,
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
from xvla_jax.models.int8 import GROUPS, Int8, Int8Leaf, group_of, int8_groups, scale_shape

SCALE: Final = "_scale"  # behind the name of an int8 tensor: its scales
INT8_LAYOUT: Final = "hf"  # dialect of int8 weights: the readers of the others know none
_INT8: Final = "I8"  # safetensors' name of the type
_STRIP: Final = 16  # floats in a cache line
_READERS: Final = 2  # threads: half of the time goes into memory that is touched for the first time


@dataclasses.dataclass(frozen=True)
class Weights:
    """Content of a PyTorch checkpoint.

    Attributes:
        params: the parameter tree; float32 leaves, numpy arrays or still on disk.
        buffers: released name -> tensor that is saved but is no parameter, as it was stored.
        stored_dtype: type of the stored parameters, a key of ``STORED`` or ``INT8``.
        int8: groups of parameters that are stored in int8.
    """

    params: dict[str, Any]
    buffers: dict[str, np.ndarray]
    stored_dtype: str
    int8: tuple[str, ...] = ()


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
    """Opens tensors in any dialect as a parameter tree of `StoredLeaf`, and `Int8Leaf` for int8.

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
    shapes = torch_shapes(config, template) | buffer_shapes(config)
    int8 = _int8_rows(files, config, names) if dialect.name == INT8_LAYOUT else {}
    names |= {name + SCALE: names[name] + SCALE for name in int8}
    shapes |= {
        name + SCALE: _torch_shape(row, template, group_of(row.path)) for name, row in int8.items()
    }
    account(files, names, shapes, dialect, int8={names[released] for released in int8})
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

    int8_paths = {row.path for row in int8.values()}
    leaves: dict[Path, StoredLeaf | Int8Leaf] = {}
    for path, layers in table.items():
        shape = _leaf(template, path).shape
        leaves[path] = (
            _int8_leaf(files, names, layers, shape)
            if path in int8_paths
            else StoredLeaf(shape, functools.partial(read, path))
        )
    kinds = {files.info[names[row.torch]].dtype for row in rows(config)}
    stored_dtype = INT8 if int8 else next(n for n, kind in STORED.items() if kind in kinds)
    buffers = {b: files.read(names[b]) for b in BUFFERS if names[b] in files.info}
    if TEMPORAL in buffers:
        check_first_frame(buffers[TEMPORAL], names[TEMPORAL])
    params = unflatten_dict(leaves)
    return Weights(params, buffers, stored_dtype, int8_groups(params))


def from_torch(files: TensorFiles, config: XVLAConfig, template: Any) -> Weights:
    """Reads what `open_torch` opens as a parameter tree of float32 numpy arrays."""
    weights = open_torch(files, config, template)
    table = rows(config)
    leaves = {row.path: np.empty(_leaf(template, row.path).shape, np.float32) for row in table}

    def place(row: Row) -> None:
        target, source = leaves[row.path], _leaf(weights.params, row.path)
        if row.layer is None:
            _copy(target, np.asarray(source))
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
        dtype: type to store, a key of ``STORED``; ``INT8`` is that of an `Int8Leaf`.

    Raises:
        CheckpointError: no such dialect or type, or the tree is not that of ``config``.
    """
    check_stored_as(layout, dtype)
    dialect = DIALECTS[layout]
    kind = STORED.get(dtype, STORED["float32"])
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
        info[key] = TensorInfo(kind, shape[::-1] if name in dialect.transposed else shape)
    int8 = _int8_sources(params, stored) if dtype == INT8 else {}
    info |= _int8_info(int8, info, params)
    read_int8 = _int8_reader(int8, rounded)

    def read(key: str) -> np.ndarray:
        if key.removesuffix(SCALE) in int8:
            return read_int8(key)
        source = stored[key]
        value = _released(params, source) if isinstance(source, Row) else source
        if isinstance(source, Row) and source.torch in dialect.transposed:
            value = value.T
        made = _cast(value, kind)
        if not_finite(made):
            refuse_not_finite({n: not_finite(v) for n, v in iter_released(params, config)})
            raise CheckpointError(f"{key} has values up to {np.abs(value).max()}, not in {dtype}")
        if made.dtype != value.dtype and not np.array_equal(made.astype(value.dtype), value):
            rounded.add(key)
        return made

    def place(key: str) -> Path:
        source = stored[key]
        return source.path if isinstance(source, Row) else ()

    order = [n for key in sorted(stored, key=place) for n in (key, key + SCALE) if n in info]
    return TorchTensors(info, read, dialect.metadata, order, rounded)


def check_stored_as(layout: str, dtype: str, layouts: Collection[str] = tuple(DIALECTS)) -> None:
    """Refuses an unknown layout or type, and int8 in other layouts than the released one.

    Raises:
        CheckpointError: names what is known.
    """
    for what, value, known in (("layout", layout, layouts), ("dtype", dtype, (*STORED, INT8))):
        if value not in known:
            raise CheckpointError(f"{what} is {value!r}; known are {', '.join(known)}")
    if dtype == INT8 and layout != INT8_LAYOUT:
        raise CheckpointError(
            f"layout is {layout!r}, and int8 weights are stored in layout {INT8_LAYOUT!r} alone; "
            f"give that, or another dtype: {', '.join(STORED)}"
        )


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


def _int8_info(
    sources: Mapping[str, tuple[Row, Int8Leaf]],
    info: Mapping[str, TensorInfo],
    params: Mapping[str, Any],
) -> dict[str, TensorInfo]:
    """Returns type and shape of int8 tensors and of their scales."""
    shapes = {
        key + SCALE: _torch_shape(row, params, leaf.group) for key, (row, leaf) in sources.items()
    }
    values = {key: TensorInfo(_INT8, info[key].shape) for key in sources}
    return values | {key: TensorInfo(STORED["float32"], shape) for key, shape in shapes.items()}


def _int8_reader(
    sources: Mapping[str, tuple[Row, Int8Leaf]], rounded: set[str]
) -> Callable[[str], np.ndarray]:
    """Returns a function that makes an int8 tensor or its scales, and notes if it was rounded."""

    @functools.lru_cache(maxsize=1)  # values and scales are made at once, and read one by one
    def parts(key: str) -> tuple[np.ndarray, np.ndarray]:
        row, leaf = sources[key]
        made, to_torch = leaf.parts(row.layer), LAYOUTS[row.layout].to_torch
        rounded.update({key} if leaf.rounded else ())
        return to_torch(np.asarray(made.values)), to_torch(np.asarray(made.scale))

    return lambda key: parts(key.removesuffix(SCALE))[key.endswith(SCALE)]


def _cast(value: np.ndarray, kind: str) -> np.ndarray:
    """Returns a copy in a type of safetensors."""
    made = np.empty(value.shape, DTYPES[kind])
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        _copy(made, value)
    return made


def _copy(target: np.ndarray, value: np.ndarray) -> None:
    """Copies ``value`` into ``target``; a transposed matrix in strips, in a quarter of the time."""
    if value.ndim != 2 or value.flags.c_contiguous:
        target[...] = value
        return
    for start in range(0, value.shape[1], _STRIP):
        target[:, start : start + _STRIP] = value[:, start : start + _STRIP]


def _torch_shape(row: Row, template: Any, group: str | None = None) -> tuple[int, ...]:
    """Returns a tensor's shape in the released file; with its group, that of its scales."""
    shape = _leaf(template, row.path).shape
    shape = shape if row.layer is None else shape[1:]
    # A broadcast zero takes no memory.
    one = np.broadcast_to(np.float32(0), scale_shape(group, shape) if group else shape)
    return LAYOUTS[row.layout].to_torch(one).shape


def _int8_leaf(
    files: TensorFiles,
    names: Mapping[str, str],
    layers: Mapping[int | None, Row],
    shape: tuple[int, ...],
) -> Int8Leaf:
    """Returns an int8 parameter that stays on disk; ``layers`` are its rows."""
    group = group_of(next(iter(layers.values())).path) or ""

    def read(row: Row) -> Int8:
        values, scale = (files.read(names[name]) for name in (row.torch, row.torch + SCALE))
        refuse_not_finite({names[row.torch + SCALE]: not_finite(scale)})
        of_row = shape if row.layer is None else shape[1:]
        to_jax = LAYOUTS[row.layout].to_jax
        return Int8(to_jax(values, of_row), to_jax(scale, scale_shape(group, of_row)))

    def parts(layer: int | None) -> Int8:
        if layer in layers:
            return read(layers[layer])
        return jax.tree.map(lambda *some: np.stack(some), *map(read, layers.values()))

    return Int8Leaf(group, shape, parts)


def _int8_sources(
    params: Mapping[str, Any], stored: Mapping[str, Row | np.ndarray]
) -> dict[str, tuple[Row, Int8Leaf]]:
    """Returns row and parameter of the tensors that are written in int8."""
    sources = {}
    for key, row in stored.items():
        leaf = _leaf(params, row.path) if isinstance(row, Row) else None
        if isinstance(row, Row) and isinstance(leaf, Int8Leaf):
            sources[key] = row, leaf
    return sources


def _int8_rows(files: TensorFiles, config: XVLAConfig, names: Mapping[str, str]) -> dict[str, Row]:
    """Returns the rows whose tensors are int8, by released name.

    Raises:
        CheckpointError: of a group, some tensors are int8 and others are not.
    """
    members: dict[str, list[Row]] = {group: [] for group in GROUPS}
    for row in rows(config):
        group = group_of(row.path)
        if group and names[row.torch] in files.info:
            members[group].append(row)
    int8: dict[str, Row] = {}
    for group, some in members.items():
        chosen = {row.torch: row for row in some if files.info[names[row.torch]].dtype == _INT8}
        if 0 < len(chosen) < len(some):
            raise CheckpointError(
                f"{len(chosen)} of {len(some)} tensors of {group} are int8; all or none are "
                "expected: the file was changed after it was written"
            )
        int8 |= chosen
    return int8


def _leaf(tree: Any, path: Path) -> Any:
    for key in path:
        if key not in tree:
            raise CheckpointError(
                f"the parameter tree has no {'/'.join(path)}; it has {sorted(tree)} at {key!r}"
            )
        tree = tree[key]
    return tree
