"""Weights in int8 with a float32 scale for each output channel; activations keep their type.

An `Int8` stands in the tree of parameters in the place of a matrix, as an ``AdaptedKernel`` does,
so no layer knows of it: a layer reads its kernel, casts it and multiplies by it, whichever it is.
The product runs over the integers in the computing type, which holds them exactly, adds up in
float32, and is scaled behind: no float copy of the weights is kept.

`GROUPS` says which parameters may be int8. On the host an `Int8Leaf` stands for one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

Array = jax.Array
_LARGEST: Final = 127  # symmetric: -128 is not used, so there is no zero point


class Int8(struct.PyTreeNode):
    """A matrix, a convolution or a table in int8; numpy arrays on the host.

    The values are the first field: Flax compares their shape with the layer's.
    """

    values: Any  # int8[..., in, out]
    scale: Any  # float32, as many axes; 1 long where one scale serves all values

    def astype(self, dtype: Any) -> Int8:
        """Returns itself: the product casts the values to the type of its other factor."""
        del dtype
        return self

    def __getitem__(self, rows: Any) -> Int8:
        """Returns rows of the leading axis, such as the matrices of domains."""
        return Int8(self.values[rows], self.scale[rows])

    def __rmatmul__(self, x: Array) -> Array:
        """Returns ``x @ self``, in the type of x."""
        return self.multiplied(jnp.matmul, x)

    def multiplied(self, product: Callable[..., Array], x: Array) -> Array:
        """Returns ``product(x, self)`` in the type of x; a scale belongs to a channel of it."""
        # The cast waits for x: else all weights would be cast before the sampler's loop, and kept.
        x, values = jax.lax.optimization_barrier((x, self.values))
        y = product(x, values.astype(x.dtype), preferred_element_type=jnp.float32)
        return (y * self.scale).astype(x.dtype)

    def expanded(self) -> Array:
        """Returns the float32 values that it stands for."""
        return self.values.astype(jnp.float32) * self.scale


# Programs that are kept on disk name the node in their arguments.
jax.export.register_pytree_node_serialization(
    Int8,
    serialized_name="xvla_jax.models.int8.Int8",
    serialize_auxdata=lambda _: b"",  # there is none
    deserialize_auxdata=lambda _: (),
)


def lookup(table: Any, rows: Array) -> Array:
    """Returns rows of a table ``[V, M]``; float32 where it is int8."""
    return table[rows].expanded() if isinstance(table, Int8) else jnp.asarray(table)[rows]


@dataclasses.dataclass(frozen=True)
class Group:
    """A row of `GROUPS`: parameters that are int8 together.

    Attributes:
        pattern: of their paths, joined by "/".
        shared: axes along which values share a scale, from the last; a leading axis of layers or
            domains is not among them.
    """

    pattern: str
    shared: tuple[int, ...] = (-2,)  # inputs of [..., in, out]


_BLOCK: Final = r"vlm/vision_tower/stage\d+_\w+/"
_TEXT: Final = "vlm/text_encoder/"
_HEAD: Final = "transformer/"
# Depthwise convolutions, norms, biases, positions and soft prompts are in no row: 0.8 % of all.
GROUPS: Final[Mapping[str, Group]] = {
    "vision_embed": Group(r"vlm/vision_tower/embed\d+/conv/kernel", (-4, -3, -2)),
    "vision_attention": Group(_BLOCK + "attention/(qkv|proj)/kernel"),
    "vision_mlp": Group(_BLOCK + "mlp/fc[12]/kernel"),
    "image_projection": Group("vlm/image_projector/projection"),
    "token_table": Group(_TEXT + "token_embedding", (-1,)),  # a scale for each token
    "text_attention": Group(_TEXT + r"layers/self_attn/\w+/kernel"),
    "text_mlp": Group(_TEXT + "layers/mlp/fc[12]/kernel"),
    "context_projection": Group(_HEAD + "(vlm|aux_visual)_proj/kernel"),
    "action_encoder": Group(_HEAD + "action_encoder/kernel"),
    "head_attention": Group(_HEAD + "blocks/attn/(qkv|proj)/kernel"),
    "head_mlp": Group(_HEAD + "blocks/mlp/fc[12]/kernel"),
    "action_decoder": Group(_HEAD + "action_decoder/kernel"),
}


# Groups that are rounded by default; docs/fast_and_smooth.md has the drift of each.
DEFAULT_GROUPS: Final = tuple(name for name in GROUPS if not name.startswith("action_"))


def group_of(path: Collection[str]) -> str | None:
    """Returns the row of `GROUPS` that a parameter belongs to, by its path of keys."""
    joined = "/".join(path)
    return next((name for name, row in GROUPS.items() if re.fullmatch(row.pattern, joined)), None)


def scale_shape(group: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the scales of a parameter of a group."""
    kept = list(shape)
    for axis in GROUPS[group].shared:
        kept[axis] = 1
    return tuple(kept)


def quantised(value: np.ndarray, group: str) -> Int8:
    """Rounds an array to int8 by the largest value of each channel.

    A channel of zeros has the scale 0. Values that were int8 before stay as they are.
    """
    top = np.abs(value).max(axis=GROUPS[group].shared, keepdims=True)
    scale = np.asarray(top / np.float32(_LARGEST), np.float32)
    steps = value / np.where(scale > 0, scale, np.float32(1))
    np.rint(steps, out=steps)
    return Int8(np.clip(steps, -_LARGEST, _LARGEST).astype(np.int8), scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Int8Leaf:
    """A parameter that is int8 in the computation; elsewhere a float32 array, made at each use.

    Attributes:
        group: row of `GROUPS`.
        shape: of the complete leaf.
        parts: returns one layer (an index into the leading axis) in int8, or all of the leaf for
            None, as numpy arrays.
        rounded: the values were float32 before, and are no longer exact.
    """

    group: str
    shape: tuple[int, ...]
    parts: Callable[[int | None], Int8]
    rounded: bool = False

    @property
    def dtype(self) -> np.dtype:
        """float32: the type of what the leaf stands for."""
        return np.dtype(np.float32)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __getitem__(self, layer: int) -> np.ndarray:
        return self._expanded(layer)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._expanded(None), dtype=dtype, copy=copy)

    def _expanded(self, layer: int | None) -> np.ndarray:
        part = self.parts(layer)
        return np.asarray(part.values) * np.asarray(part.scale)  # int8 times float32 is float32


def int8_params(params: Mapping[str, Any], groups: Collection[str]) -> dict[str, Any]:
    """Returns parameters of which those of some groups are `Int8Leaf`.

    They are rounded as they are used; leaves that are int8 already stay as they are.
    """

    def rounded(path: tuple[str, ...], leaf: Any) -> Any:
        group = group_of(path)
        if group is None or group not in groups or isinstance(leaf, Int8Leaf):
            return leaf

        def parts(layer: int | None) -> Int8:
            value = leaf if layer is None else leaf[layer]
            return quantised(np.asarray(value, np.float32), group)

        return Int8Leaf(group, leaf.shape, parts, rounded=True)

    flat = flatten_dict(dict(params))
    return unflatten_dict({path: rounded(path, leaf) for path, leaf in flat.items()})


def int8_groups(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the groups whose parameters are int8, in the order of `GROUPS`."""
    leaves = jax.tree.leaves(params)
    present = {leaf.group for leaf in leaves if isinstance(leaf, Int8Leaf)}
    return tuple(name for name in GROUPS if name in present)
