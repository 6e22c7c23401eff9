"""XVLA: encode an observation once, denoise a chunk of actions as often as needed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.models.florence import Florence
from xvla_jax.models.layers import Array
from xvla_jax.models.soft_transformer import SoftPromptedTransformer


class Context(struct.PyTreeNode):
    """What the head sees of an observation."""

    vlm_features: Array  # float[B, N + L, M]: first view and text, encoded together
    aux_visual_inputs: Array  # float[B, (V - 1) * N, M]: the other views, zeros where absent


class XVLA(nn.Module):
    """The whole model.

    Attributes:
        config: the model's shape.
        dtype: computing type; parameters stay float32, statistics and softmax are float32.
        remat: recompute the blocks of both towers in the backward pass.
    """

    config: XVLAConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """Declares the two halves."""
        c = self.config
        self.vlm = Florence(c.vision, c.text, remat=self.remat, dtype=self.dtype)
        self.transformer = SoftPromptedTransformer(
            c, action_space(c).width, remat=self.remat, dtype=self.dtype
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

    def denoise(
        self,
        context: Context,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """The head alone: noisy ``[B, T, D]`` at time ``t`` ``[B]`` -> clean ``float32[B, T, D]``.

        No preprocessing by the action space takes place here: see ``xvla_jax.flow``.
        """
        return self.transformer(
            context.vlm_features,
            context.aux_visual_inputs,
            actions,
            proprio,
            domain_id,
            t,
            train=train,
        )

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
    """Fresh float32 parameters.

    Shapes depend on the config alone, so the smallest inputs will do.
    """
    width = action_space(model.config).width
    side = 32  # px; the smallest image that four stages of stride 4, 2, 2, 2 leave a token of
    variables = model.init(
        key,
        jnp.zeros((1, 2, side, side, 3)),
        jnp.ones((1, 2), bool),
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, 1, width)),
        jnp.zeros((1, width)),
        jnp.zeros((1,), jnp.int32),
        jnp.ones((1,)),
    )
    return dict(variables["params"])


def abstract_params(config: XVLAConfig) -> dict[str, Any]:
    """Shapes and dtypes of the parameters as a tree of ``jax.ShapeDtypeStruct``.

    Allocates nothing.
    """
    return jax.eval_shape(lambda key: init_params(XVLA(config), key), jax.random.key(0))
