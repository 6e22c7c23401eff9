"""The soft-prompted Transformer: the policy's head."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from flax import linen as nn

from xvla_jax.config import XVLAConfig
from xvla_jax.models.layers import (
    Array,
    Dense,
    DomainLinear,
    LayerNorm,
    Mlp,
    SelfAttention,
    gelu_tanh,
    stacked,
    time_embedding,
)

DROPOUT: Final = 0.1  # fixed in X-VLA: attention probabilities, after the GELU, after fc2


class PolicyBlock(nn.Module):
    """Pre-norm block: ``x + attention(LN1(x))``, ``x + mlp(LN2(x))``.

    Scanned, hence the pair that it returns.
    """

    num_heads: int
    mlp_hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        """``[B, S, M] -> [B, S, M]``."""
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + SelfAttention(self.num_heads, DROPOUT, dtype=self.dtype, name="attn")(
            y, train=train
        )
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        mlp = Mlp(self.mlp_hidden, gelu_tanh, DROPOUT, DROPOUT, dtype=self.dtype, name="mlp")
        return x + mlp(y, train=train), None


class SoftPromptedTransformer(nn.Module):
    """Noisy actions, context and the domain's soft prompt in; clean actions out."""

    config: XVLAConfig
    action_width: int
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        vlm_features: Array,
        aux_visual_inputs: Array,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """Predicts the clean chunk.

        Args:
            vlm_features: ``[B, N + L, M]``.
            aux_visual_inputs: ``[B, (V - 1) * N, M]``; may have no tokens.
            actions: noisy chunk ``[B, T, D]``.
            proprio: ``[B, D]``.
            domain_id: ``[B]`` integers in range.
            t: flow time ``[B]``, 1 = noise, 0 = data.
            train: turns dropout on (needs the rng ``dropout``).

        Returns:
            ``float32[B, T, D]``.
        """
        c = self.config
        batch, chunk, _ = actions.shape
        repeated = jnp.concatenate([proprio, time_embedding(t, c.dim_time)], axis=-1)
        tokens = jnp.concatenate(
            [actions, jnp.broadcast_to(repeated[:, None], (batch, chunk, repeated.shape[-1]))],
            axis=-1,
        )
        action_tokens = self._per_domain(c.hidden_size, "action_encoder")(tokens, domain_id)
        vlm = self._project("vlm_proj", vlm_features, domain_id)
        aux = self._project("aux_visual_proj", aux_visual_inputs, domain_id)
        x = jnp.concatenate([action_tokens, vlm, aux], axis=1)

        positions = self.param(
            "pos_emb", nn.initializers.normal(0.02), (c.max_len_seq, c.hidden_size)
        )
        if x.shape[1] > c.max_len_seq:
            raise ValueError(
                f"{x.shape[1]} tokens reach the head; max_len_seq is {c.max_len_seq} (config.json)"
            )
        x = x + positions[: x.shape[1]].astype(x.dtype)

        if c.len_soft_prompts:  # appended after the positions: prompts have none
            shape = (c.num_domains, c.len_soft_prompts, c.hidden_size)
            prompts = self.param("soft_prompts", nn.initializers.normal(0.02), shape)[domain_id]
            x = jnp.concatenate([x, prompts.astype(x.dtype)], axis=1)

        mlp_hidden = int(c.hidden_size * c.mlp_ratio)
        make_blocks = stacked(PolicyBlock, c.depth, remat=self.remat)
        blocks = make_blocks(c.num_heads, mlp_hidden, dtype=self.dtype, name="blocks")
        x, _ = blocks(x, train)
        x = LayerNorm(dtype=self.dtype, name="norm")(x[:, :chunk])
        clean = self._per_domain(self.action_width, "action_decoder")(x, domain_id)
        return clean.astype(jnp.float32)

    def _per_domain(self, features: int, name: str) -> DomainLinear:
        return DomainLinear(features, self.config.num_domains, dtype=self.dtype, name=name)

    def _project(self, name: str, x: Array, domain_id: Array) -> Array:
        """Context tokens to the head's width, by one shared layer or one per domain."""
        if self.config.use_hetero_proj:
            return self._per_domain(self.config.hidden_size, name)(x, domain_id)
        return Dense(self.config.hidden_size, dtype=self.dtype, name=name)(x)
