"""XVLA: encodes an observation once, denoises a chunk of actions as often as needed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from xvla_jax.actions import action_space
from xvla_jax.compilation.stored import stored_shapes
from xvla_jax.config import XVLAConfig
from xvla_jax.models.florence import Florence
from xvla_jax.models.layers import Array
from xvla_jax.models.soft_transformer import (
    HeadContext,
    KeptContext,
    SoftPromptedTransformer,
)


class Context(struct.PyTreeNode):
    """Tokens of an observation, as the head takes them."""

    vlm_features: Array  # float[B, N + L, M]: first view and text, encoded together
    aux_visual_inputs: Array  # float[B, (V - 1) * N, M]: the other views, zeros where absent


class XVLA(nn.Module):
    """The complete model.

    Attributes:
        config: the model's shape.
        dtype: computing type; parameters stay float32, statistics and softmax are float32.
        remat: a row of ``layers.REMAT``, which says what the backward pass keeps of the blocks.
        unroll: each layer has parameters of its own, see ``inference.inference_params``; a scan
            would copy a layer's slice of the stacked weights before each product.
        scan_vision: compiles the block pairs of a vision stage once, see ``davit.DaViT``.
        packed_views: in training, images that the vision tower runs at once, as a share of a
            device's view slots; 0 runs all slots. See ``packing``.
        attention: forms of attention by platform, a row of ``kernels.ATTENTION``.
    """

    config: XVLAConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: bool = False
    scan_vision: bool = False
    packed_views: float = 0.0
    attention: str = "xla"

    def setup(self) -> None:
        """Declares the two halves."""
        c = self.config
        self.vlm = Florence(
            c.vision,
            c.text,
            remat=self.remat,
            unroll=self.unroll,
            scan_vision=self.scan_vision,
            packed_views=self.packed_views,
            attention=self.attention,
            dtype=self.dtype,
        )
        self.transformer = SoftPromptedTransformer(
            c,
            action_space(c).width,
            remat=self.remat,
            unroll=self.unroll,
            attention=self.attention,
            dtype=self.dtype,
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
        # Shapes: [B, N + L, M] of the main camera and the text, [B, (V - 1) * N, M] of the others.
        features, aux = self.vlm(pixels, view_mask, input_ids, train=train)
        return Context(vlm_features=features, aux_visual_inputs=aux)

    def prepare(self, context: Context, domain_id: Array) -> HeadContext | KeptContext:
        """Does the part of the head's work on a context that all denoising steps share."""
        return self.transformer.prepare(context.vlm_features, context.aux_visual_inputs, domain_id)

    def denoise(
        self,
        context: Context | HeadContext | KeptContext,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """Runs the head: noisy ``[B, T, D]`` at time ``t`` ``[B]`` -> clean ``float32[B, T, D]``.

        With times ``[B, T]`` each action has its own.
        The context comes from `encode` or, which saves work where it serves several steps, from
        `prepare`; from `keep`, it is that of an earlier step. The caller preprocesses by the action
        space: see ``xvla_jax.flow``.
        """
        if isinstance(context, Context):
            context = self.prepare(context, domain_id)
        return self.transformer(context, actions, proprio, domain_id, t, train=train)

    def keep(
        self,
        context: HeadContext | KeptContext,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
    ) -> tuple[Array, KeptContext]:
        """Does what `denoise` does, and returns the context that further steps may use."""
        return self.transformer.keep(context, actions, proprio, domain_id, t)

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
        """Encodes and denoises in one call, which also initialises all parameters.

        ``actions``, ``proprio`` and ``t`` may have K rows for each observation, side by side,
        ``[B * K, ...]``. Each observation is encoded once.
        """
        context: Context | HeadContext | KeptContext = self.encode(
            pixels, view_mask, input_ids, train=train
        )
        draws = len(t) // len(domain_id)
        if draws > 1:
            context = self.prepare(context, domain_id)
            # [B, ...] -> [B * K, ...]: a broadcast, so each device keeps its observations
            context, domain_id = jax.tree.map(
                lambda x: jnp.repeat(x, draws, axis=0), (context, domain_id)
            )
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


def abstract_params(config: XVLAConfig) -> dict[str, Any]:
    """Shapes and dtypes of the parameters as a tree of ``jax.ShapeDtypeStruct``.

    Allocates nothing.
    """
    return jax.tree.map(lambda leaf: leaf, _abstract_params(config))  # a tree of the caller's own


@functools.lru_cache(maxsize=4)
def _abstract_params(config: XVLAConfig) -> dict[str, Any]:
    """Traces the model, which takes a second at the released size, or reads what was traced."""

    def trace() -> dict[str, Any]:
        return jax.eval_shape(lambda key: init_params(XVLA(config), key), jax.random.key(0))

    return stored_shapes(trace, {"parameters of": config.to_dict()})
