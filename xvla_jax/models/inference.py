"""Parameters as inference uses them, each layer apart in the computing type; and its inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax.config import XVLAConfig
from xvla_jax.models.int8 import Int8, Int8Leaf, group_of, scale_shape
from xvla_jax.models.xvla import abstract_params
from xvla_jax.processor import Processor

_READERS: Final = min(4, os.cpu_count() or 1)
# Paths of the parameters that are stacked by layer.
_STACKS: Final = (("vlm", "text_encoder", "layers"), ("transformer", "blocks"))


def inference_params(
    params: Mapping[str, Any],
    dtype: Any = jnp.float32,
    *,
    place: Callable[[np.ndarray], Any] = lambda leaf: leaf,
) -> dict[str, Any]:
    """Parameters for ``XVLA(config, dtype, unroll=True)``: ``layers`` -> ``layers_0``, ...

    Leaves are cast to the computing type, as the model would do on each call; those of LayerNorm
    stay float32, in which the model uses them, and an `Int8Leaf` stays int8.

    Args:
        params: arrays, or values that numpy turns into arrays and that can be indexed by layer.
        dtype: computing type.
        place: puts each leaf on its device as soon as it is made, so the host holds one for each of
            its few threads: reading, checking and copying wait for memory and disk.
    """

    def convert(names: tuple[str, ...], leaf: Any, layer: int | None) -> Any:
        if isinstance(leaf, Int8Leaf):
            return jax.tree.map(lambda part: place(np.asarray(part)), leaf.parts(layer))
        # Cast on the host and placed at once: a float32 copy on the device would double its peak.
        array = np.asarray(leaf if layer is None else leaf[layer])
        return place(array.astype(_inference_dtype(names, array.dtype, dtype), copy=False))

    with ThreadPoolExecutor(_READERS) as pool:

        def start(path: Any, leaf: Any) -> Any:
            names = tuple(key.key for key in path)
            if _in_stack(names):
                return [pool.submit(convert, names, leaf, i) for i in range(leaf.shape[0])]
            return pool.submit(convert, names, leaf, None)

        started = jax.tree_util.tree_map_with_path(start, dict(params))
        try:
            return _apart(jax.tree.map(lambda future: future.result(), started), ())
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, the leaves that wait


def abstract_inference_params(
    config: XVLAConfig, dtype: Any, sharding: Any, *, int8: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the shapes of `inference_params` with a sharding; allocates nothing.

    ``int8`` names the groups of parameters that are int8.
    """

    def shaped(names: tuple[str, ...], shape: tuple[int, ...], stored: Any) -> Any:
        group = group_of(names)
        if group is None or group not in int8:
            kind = _inference_dtype(names, stored, dtype)
            return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
        scale = scale_shape(group, shape)
        parts = ((shape, jnp.int8), (scale, jnp.float32))
        return Int8(*(jax.ShapeDtypeStruct(*part, sharding=sharding) for part in parts))

    def layers(path: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in path)
        if _in_stack(names):
            return [shaped(names, leaf.shape[1:], leaf.dtype)] * leaf.shape[0]
        return shaped(names, leaf.shape, leaf.dtype)

    return _apart(jax.tree_util.tree_map_with_path(layers, abstract_params(config)), ())


def example_inputs(
    processor: Processor, shape: tuple[int, int], views: int, batch: int
) -> dict[str, np.ndarray]:
    """Returns inputs of zeros.

    Args:
        processor: of the policy.
        shape: of a chunk, T and D.
        views: number of images of an observation.
        batch: number of observations.
    """
    side = processor.image_size
    return {
        "images": np.zeros((batch, views, side, side, 3), processor.pixel_dtype),
        "view_mask": np.tile(np.arange(processor.num_views) < views, (batch, 1)),
        "input_ids": np.ones((batch, processor.text_length), np.int32),
        "proprio": np.zeros((batch, shape[1]), np.float32),
        "domain_id": np.zeros(batch, np.int32),
        "seed": np.zeros(batch, np.uint32),
        "prefix": np.zeros((batch, *shape), np.float32),
        "prefix_weight": np.zeros((batch, shape[0]), np.float32),
    }


def _in_stack(names: tuple[str, ...]) -> bool:
    return any(names[: len(stack)] == stack for stack in _STACKS)


def _inference_dtype(names: tuple[str, ...], stored: Any, dtype: Any) -> Any:
    return stored if names[-2].startswith("norm") else dtype  # LayerNorm


def _apart(node: Any, path: tuple[str, ...]) -> Any:
    """Turns the lists of layers under the leaves of a stack into a node for each layer."""
    if not isinstance(node, Mapping):
        return node
    result: dict[str, Any] = {}
    for name, child in node.items():
        if (*path, name) not in _STACKS:
            result[name] = _apart(child, (*path, name))
            continue
        # The stack's leaves are lists, one value for each layer: transpose to trees by layer.
        lists, shape = jax.tree.flatten(child, is_leaf=lambda leaf: isinstance(leaf, list))
        for i, layer in enumerate(zip(*lists, strict=True)):
            result[f"{name}_{i}"] = jax.tree.unflatten(shape, layer)
    return result
