"""JAX parameters <-> PyTorch state dicts, by the table in ``torch_names``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.torch_names import (
    BUFFERS,
    DIALECTS,
    EMBED_TOKENS,
    LAYOUTS,
    LOGITS_BIAS,
    SHARED,
    TEMPORAL,
    Dialect,
    Path,
    Row,
    detect_dialect,
    rows,
)

Tensors = Mapping[str, np.ndarray]


def from_torch(tensors: Tensors, config: XVLAConfig, template: Any) -> dict[str, Any]:
    """A state dict in any dialect -> the parameter tree, float32 numpy leaves.

    Args:
        tensors: the state dict.
        config: the model that the weights belong to.
        template: tree of anything with ``shape``, as ``abstract_params(config)`` gives it.

    Raises:
        CheckpointError: lists all missing, surplus and mis-shaped tensors at once.
    """
    dialect = detect_dialect(set(tensors))
    tensors = _untie(tensors, dialect)
    _account(tensors, torch_shapes(config, template), dialect)
    leaves: dict[Path, np.ndarray] = {}
    for row in rows(config):
        value = np.asarray(tensors[dialect.rename(row.torch)], dtype=np.float32)
        if row.torch in dialect.transposed:
            value = value.T
        shape = _leaf(template, row.path).shape
        layer_shape = shape if row.layer is None else shape[1:]
        value = LAYOUTS[row.layout].to_jax(value, layer_shape)
        if row.path not in leaves:
            leaves[row.path] = np.empty(shape, np.float32)
        leaves[row.path][... if row.layer is None else row.layer] = value
    return _nest(leaves)


def to_torch(params: Mapping[str, Any], config: XVLAConfig, layout: str) -> dict[str, np.ndarray]:
    """The parameter tree -> a state dict in the dialect ``layout``, float32, buffers included.

    Raises:
        CheckpointError: no such dialect, or the tree is not that of ``config``.
    """
    if layout not in DIALECTS:
        raise CheckpointError(f"layout is {layout!r}; known are {', '.join(DIALECTS)}")
    dialect = DIALECTS[layout]
    buffers = {
        TEMPORAL: temporal_table(config),
        LOGITS_BIAS: np.zeros((1, config.text.vocab_size), np.float32),
    }
    released = dict(iter_released(params, config)) | buffers
    state = {}
    for name, value in released.items():
        if name in dialect.absent:
            continue
        stored = dialect.tied_name if name == SHARED else name
        state[dialect.rename(stored)] = np.ascontiguousarray(
            value.T if name in dialect.transposed else value
        )
    return state


def iter_released(
    params: Mapping[str, Any], config: XVLAConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Released name and tensor of every parameter.

    The tree may be any that is shaped like the parameters (gradients too).
    """
    for row in rows(config):
        leaf = _leaf(params, row.path)
        value = np.asarray(leaf if row.layer is None else leaf[row.layer], dtype=np.float32)
        yield row.torch, LAYOUTS[row.layout].to_torch(value)


def torch_shapes(config: XVLAConfig, template: Any) -> dict[str, tuple[int, ...]]:
    """Released name -> shape in the released file, of every parameter; buffers are left out."""
    return {row.torch: _torch_shape(row, template) for row in rows(config)}


def temporal_table(config: XVLAConfig) -> np.ndarray:
    """The fixed sine/cosine table that the reference saves as a buffer, ``float32[rows, C]``.

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


def _untie(tensors: Tensors, dialect: Dialect) -> dict[str, np.ndarray]:
    """The state dict with the token table under its released name; either alias may be stored."""
    tensors = dict(tensors)
    alias = tensors.pop(dialect.rename(EMBED_TOKENS), None)
    if alias is None:
        return tensors
    shared = tensors.setdefault(dialect.rename(SHARED), alias)
    if shared is not alias and not np.array_equal(shared, alias):
        raise CheckpointError(
            f"{dialect.rename(SHARED)} and {dialect.rename(EMBED_TOKENS)} are one parameter "
            "of the model, but the file holds two different tensors"
        )
    return tensors


def _account(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], dialect: Dialect) -> None:
    """Every key must be used once and have the shape that the config implies."""
    problems, used = [], {dialect.rename(name) for name in BUFFERS}
    for name, shape in shapes.items():
        stored = dialect.rename(name)
        used.add(stored)
        wanted = shape[::-1] if name in dialect.transposed else shape
        if stored not in tensors:
            problems.append(f"missing    {stored} {list(wanted)}")
        elif tuple(tensors[stored].shape) != wanted:
            problems.append(
                f"mis-shaped {stored}: found {list(tensors[stored].shape)}, expected {list(wanted)}"
            )
    problems += [
        f"surplus    {name} {list(tensors[name].shape)}" for name in sorted(set(tensors) - used)
    ]
    if problems:
        raise CheckpointError(
            f"the weights ({dialect.name} layout) do not fit config.json; "
            f"{len(problems)} tensors differ:\n  " + "\n  ".join(problems)
        )


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


def _nest(leaves: Mapping[Path, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
