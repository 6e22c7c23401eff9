"""Weights to compute with, of a base and an adapter: kept apart for training, merged otherwise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax.checkpoints.names import Path
from xvla_jax.checkpoints.safetensors_files import StoredLeaf
from xvla_jax.errors import CheckpointError
from xvla_jax.lora.adapter import Adapter
from xvla_jax.models.low_rank import AdaptedKernel

MERGE_SCOPE: Final = "merge_adapter"  # of `apply_adapter` in the names of a program's operations

# TPUs round float32 factors to bfloat16 at any lower precision.
_product = functools.partial(jnp.matmul, precision="highest")


def adapted_params(
    merged: Mapping[str, Any], tensors: Mapping[str, Any], scales: Mapping[Path, Any]
) -> dict[str, Any]:
    """Returns merged parameters that are differentiated in the adapter's tensors alone.

    The model computes what it does with ``merged``. Gradients are those of `apply_adapter`, up to
    rounding, but none has the size of a merged matrix: see ``xvla_jax/models/low_rank.py``.

    Args:
        merged: from `apply_adapter`; constants.
        tensors: see `Adapter`; may be traced.
        scales: see `Adapter`.
    """

    def beside(leaf: Any, change: Any, path: Path) -> Any:
        if not isinstance(change, Mapping):
            return change
        return AdaptedKernel(leaf, scales[path] * change["a"], change["b"])

    return _merged(merged, tensors, beside)


def apply_adapter(
    params: Mapping[str, Any],
    tensors: Mapping[str, Any],
    scales: Mapping[Path, Any],
    *,
    product: Callable[[Any, Any], Any] = _product,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Returns the parameters with an adapter's tensors merged; the originals stay unchanged.

    Args:
        params: the base's parameters; leaves that do not change are passed on, not copied.
        tensors: see `Adapter`; may be traced.
        scales: see `Adapter`.
        product: matrix product with batch axes.
        dtype: of the matrices that change by a pair. With the model's computing type, to which the
            model casts them anyway, the merged copy and its gradient are smallest.

    Raises:
        CheckpointError: the adapter changes a parameter that is not there or has another shape.
    """

    def merge(leaf: Any, change: Any, path: Path) -> Any:
        if not isinstance(change, Mapping):
            return change
        return (leaf + product(scales[path] * change["a"], change["b"])).astype(dtype)

    with jax.named_scope(MERGE_SCOPE):
        return _merged(params, tensors, merge)


def merge_adapter(params: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Merges an adapter on the host, for a merged checkpoint.

    A leaf on disk (`StoredLeaf`) stays there, and is read and merged when it is used.
    """

    def value(leaf: Any, change: Any, scale: Any, layer: int | None) -> np.ndarray:
        if layer is not None:
            leaf, scale = leaf[layer], scale[layer]
            change = {name: factor[layer] for name, factor in change.items()}
        return np.asarray(leaf) + np.matmul(scale * change["a"], change["b"])

    def merge(leaf: Any, change: Any, path: Path) -> Any:
        if not isinstance(change, Mapping):
            return change
        merged = functools.partial(value, leaf, change, adapter.scales[path])
        return StoredLeaf(leaf.shape, merged) if isinstance(leaf, StoredLeaf) else merged(None)

    return _merged(params, adapter.tensors, merge)


def _merged(
    params: Mapping[str, Any],
    tensors: Mapping[str, Any],
    merge: Callable[[Any, Any, Path], Any],
) -> dict[str, Any]:
    """Returns ``merge(leaf, change, path)`` where there is a change, the leaf itself elsewhere."""

    def visit(node: Any, change: Any, path: Path) -> Any:
        where = "/".join(path)
        if not isinstance(node, Mapping):
            pair = isinstance(change, Mapping)
            shape = (*change["a"].shape[:-1], change["b"].shape[-1]) if pair else change.shape
            if shape != node.shape:
                raise CheckpointError(
                    f"the adapter's {where} is {list(shape)}, the base's {list(node.shape)}: "
                    "it was trained on another base"
                )
            return merge(node, change, path)
        strange = sorted(change.keys() - node.keys())
        if strange:
            raise CheckpointError(
                f"the adapter changes {strange} of {where or 'the model'}, which has "
                f"{sorted(node)}: it was trained on another base"
            )
        return {
            key: visit(child, change[key], (*path, key)) if key in change else child
            for key, child in node.items()
        }

    return visit(params, tensors, ())
