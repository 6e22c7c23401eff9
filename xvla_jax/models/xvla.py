"""XVLA: encode an observation once, denoise a chunk of actions as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.models.florence import Florence
from xvla_jax.models.layers import Array
from xvla_jax.models.soft_transformer import HeadContext, SoftPromptedTransformer


class Context(struct.PyTreeNode):
    """What the head sees of an observation."""

    vlm_features: Array  # float[B, N + L, M]: first view and text, encoded together
    aux_visual_inputs: Array  # float[B, (V - 1) * N, M]: the other views, zeros where absent


class XVLA(nn.Module):
    """The whole model.

    Attributes:
        config: the model's shape.
        dtype: computing type; parameters stay float32, statistics and softmax are float32.
        remat: what the backward pass keeps of the blocks, a row of ``remat.REMAT``.
        unroll: every layer has parameters of its own, as `inference_params` makes them; a
            scan copies a layer's slice of the stacked weights before it multiplies by them.
        scan_vision: block pairs of the vision tower are compiled once a stage, see ``davit.DaViT``.
    """

    config: XVLAConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: bool = False
    scan_vision: bool = False

    def setup(self) -> None:
        """Declares the two halves."""
        c = self.config
        self.vlm = Florence(
            c.vision,
            c.text,
            remat=self.remat,
            unroll=self.unroll,
            scan_vision=self.scan_vision,
            dtype=self.dtype,
        )
        self.transformer = SoftPromptedTransformer(
            c, action_space(c).width, remat=self.remat, unroll=self.unroll, dtype=self.dtype
        )

    def encode(
        self, pixels: Array, view_mask: Array, input_ids: Array, *, train: bool = False
    ) -> Context:
        """Encodes an observation.

        Args:
            pixels: ``float32[B, V, H, W, 3]``, normalised.
            view_mask: ``bool[B, V]``; the first view is the main camera.
            input_ids: ``int32[B, L]``, padded to the length that the checkpoint was trained with.
            train: turns dropout and drop path on (needs the rng ``dropout``).
        """
        features, aux = self.vlm(pixels, view_mask, input_ids, train=train)
        return Context(vlm_features=features, aux_visual_inputs=aux)

    def prepare(self, context: Context, domain_id: Array) -> HeadContext:
        """The part of the head's work on a context that all denoising steps share."""
        return self.transformer.prepare(context.vlm_features, context.aux_visual_inputs, domain_id)

    def denoise(
        self,
        context: Context | HeadContext,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """The head alone: noisy ``[B, T, D]`` at time ``t`` ``[B]`` -> clean ``float32[B, T, D]``.

        The context is what `encode` or, better where it serves several steps, what `prepare`
        returns. No preprocessing by the action space takes place here: see ``xvla_jax.flow``.
        """
        if isinstance(context, Context):
            context = self.prepare(context, domain_id)
        return self.transformer(context, actions, proprio, domain_id, t, train=train)

    def __call__(
        self,
        pixels: Array,
        view_mask: Array,
        input_ids: Array,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """Encode and denoise in one go; this is what initialises the parameters."""
        context = self.encode(pixels, view_mask, input_ids, train=train)
        return self.denoise(context, actions, proprio, domain_id, t, train=train)


def init_params(model: XVLA, key: Array) -> dict[str, Any]:
    """Fresh float32 parameters, layers stacked whatever ``model.unroll`` says.

    Shapes depend on the config alone, so the smallest inputs will do.
    """
    width = action_space(model.config).width
    side = 32  # px; the smallest image that four stages of stride 4, 2, 2, 2 leave a token of
    variables = model.clone(unroll=False).init(
        key,
        jnp.zeros((1, 2, side, side, 3)),
        jnp.ones((1, 2), bool),
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, model.config.num_actions, width)),
        jnp.zeros((1, width)),
        jnp.zeros((1,), jnp.int32),
        jnp.ones((1,)),
    )
    return dict(variables["params"])


# Leaves that are stacked by layer, and so the start of the names of the layers' own parameters.
_STACKS: Final = (("vlm", "text_encoder", "layers"), ("transformer", "blocks"))


def inference_params(
    params: Mapping[str, Any],
    dtype: Any = jnp.float32,
    *,
    place: Callable[[np.ndarray], Any] = lambda leaf: leaf,
) -> dict[str, Any]:
    """Parameters for ``XVLA(config, dtype, unroll=True)``: ``layers`` -> ``layers_0``, ...

    Leaves have the computing type, except those of LayerNorm, which the model uses in float32: so
    the model would cast them anyway, on every call.

    Args:
        params: arrays, or anything that turns into one and can be indexed by layer.
        dtype: computing type.
        place: puts a leaf where it shall be, as soon as it is made.
    """

    def convert(path: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in path)

        def one(value: Any) -> Any:
            array = np.asarray(value)
            return place(array.astype(_inference_dtype(names, array.dtype, dtype), copy=False))

        if any(names[: len(stack)] == stack for stack in _STACKS):
            return [one(leaf[layer]) for layer in range(leaf.shape[0])]
        return one(leaf)

    return _apart(jax.tree_util.tree_map_with_path(convert, dict(params)), ())


def abstract_inference_params(config: XVLAConfig, dtype: Any, sharding: Any) -> dict[str, Any]:
    """Shapes of what `inference_params` makes, placed; allocates nothing."""

    def shaped(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        names = tuple(key.key for key in path)
        found = _inference_dtype(names, leaf.dtype, dtype)
        return jax.ShapeDtypeStruct(leaf.shape, found, sharding=sharding)

    def layers(path: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in path)
        if any(names[: len(stack)] == stack for stack in _STACKS):
            return [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)] * leaf.shape[0]
        return leaf

    stacks = jax.tree_util.tree_map_with_path(layers, abstract_params(config))
    return jax.tree_util.tree_map_with_path(shaped, _apart(stacks, ()))


def _inference_dtype(names: tuple[str, ...], stored: Any, dtype: Any) -> Any:
    return stored if names[-2].startswith("norm") else dtype  # LayerNorm


def _apart(node: Any, path: tuple[str, ...]) -> Any:
    """Lists of layers under each leaf of a stack -> a node per layer."""
    if not isinstance(node, Mapping):
        return node
    result: dict[str, Any] = {}
    for name, child in node.items():
        if (*path, name) not in _STACKS:
            result[name] = _apart(child, (*path, name))
            continue
        lists, shape = jax.tree.flatten(child, is_leaf=lambda leaf: isinstance(leaf, list))
        for i, layer in enumerate(zip(*lists, strict=True)):
            result[f"{name}_{i}"] = jax.tree.unflatten(shape, layer)
    return result


def abstract_params(config: XVLAConfig) -> dict[str, Any]:
    """Shapes and dtypes of the parameters as a tree of ``jax.ShapeDtypeStruct``.

    Allocates nothing.
    """
    return jax.eval_shape(lambda key: init_params(XVLA(config), key), jax.random.key(0))
