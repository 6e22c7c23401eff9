"""Soft-prompted Transformer: the policy's head, which denoises chunks of actions."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from xvla_jax.config import CONTEXT, XVLAConfig
from xvla_jax.models.layers import (
    KV,
    QKV,
    Array,
    DomainLinear,
    Kept,
    LayerNorm,
    Mlp,
    SelfAttention,
    gelu_tanh,
    stacked,
    time_embedding,
)
from xvla_jax.models.low_rank import Dense
from xvla_jax.sharding import batch_split

DROPOUT: Final = 0.1  # fixed in X-VLA: attention probabilities, after the GELU, after fc2


class PolicyBlock(nn.Module):
    """Pre-norm block: ``x + attention(LN1(x))``, ``x + mlp(LN2(x))``.

    Attributes:
        width: M.
        num_heads: of the attention.
        mlp_hidden: width of the MLP's hidden layer.
        hidden: first tokens that the others do not attend to.
        attention: a row of ``kernels.ATTENTION``.
        dtype: computing type.
    """

    width: int
    num_heads: int
    mlp_hidden: int
    hidden: int = 0
    attention: str = "xla"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the two halves and their norms."""
        self.norm1 = LayerNorm(dtype=self.dtype)
        self.attn = SelfAttention(
            self.width, self.num_heads, DROPOUT, self.attention, dtype=self.dtype
        )
        self.norm2 = LayerNorm(dtype=self.dtype)
        self.mlp = Mlp(self.mlp_hidden, gelu_tanh, DROPOUT, DROPOUT, dtype=self.dtype)

    def project(self, x: Array) -> QKV:
        """Returns query, key and value of tokens ``[B, S, M]``, a function of those alone."""
        return self.attn.project(self.norm1(x))

    def __call__(
        self, x: Array, train: bool, known: QKV | None = None, rows: int | None = None
    ) -> tuple[Array, None]:
        """Returns ``[B, rows, M]`` for ``[B, S, M]``, and None for the scan.

        Args:
            x: all tokens.
            train: turns dropout on.
            known: result of `project` for the last tokens of x.
            rows: number of first tokens to return; all by default.
        """
        # The last tokens need no projection where it is known.
        unknown = x if known is None else x[:, : -known[0].shape[1]]
        x = x[:, :rows] + self.attn(
            self.norm1(unknown), known=known, rows=rows, hidden=self.hidden, train=train
        )
        x = checkpoint_name(x, Kept.BETWEEN)
        return batch_split(x + self.mlp(self.norm2(x), train=train)), None

    def keep(
        self, x: Array, first: int, known: QKV | None = None, rows: int | None = None
    ) -> tuple[Array, KV]:
        """Returns `__call__`'s result, and key and value of all tokens behind the ``first``."""
        unknown = x if known is None else x[:, : -known[0].shape[1]]
        query, key, value = self.attn.joined(self.norm1(unknown), known)
        x = x[:, :rows] + self.attn.mix(query, key, value, rows=rows)
        return batch_split(x + self.mlp(self.norm2(x))), (key[:, first:], value[:, first:])

    def recall(self, x: Array, kept: KV) -> Array:
        """Returns ``[B, T, M]`` for the first tokens alone, which attend to ``kept`` ones too."""
        query, *own = self.attn.joined(self.norm1(x))
        # [B, T + S, K, E]: in the order of all tokens
        key, value = (jnp.concatenate(pair, axis=1) for pair in zip(own, kept, strict=True))
        x = x + self.attn.mix(query, key, value)
        return batch_split(x + self.mlp(self.norm2(x)))


class HeadContext(struct.PyTreeNode):
    """Part of the head's input that all denoising steps share."""

    tokens: Array  # [B, S, M]: observation with positions, then soft prompts
    projected: QKV | None  # q, k, v of the tokens in the first block; None where layers are scanned


class KeptContext(struct.PyTreeNode):
    """The context as the action tokens of a denoising step saw it, for further steps."""

    blocks: tuple[KV, ...]  # key and value of its tokens in each block, [B, S, K, E]


class SoftPromptedTransformer(nn.Module):
    """Predicts clean actions from noisy ones, the context and the domain's soft prompt.

    Attributes:
        config: the model's shape.
        action_width: D.
        remat: a row of ``layers.REMAT``, which says what the backward pass keeps of the blocks.
        unroll: blocks are modules of their own, not one scan (see ``inference.inference_params``).
        attention: a row of ``kernels.ATTENTION``.
        dtype: computing type.
    """

    config: XVLAConfig
    action_width: int
    remat: str = "none"
    unroll: bool = False
    attention: str = "xla"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares projections, tables and blocks."""
        c = self.config
        self.action_encoder = self._per_domain(c.hidden_size)
        self.action_decoder = self._per_domain(self.action_width)
        # Context tokens to the head's width, by one shared layer or one per domain.
        self.vlm_proj, self.aux_visual_proj = (
            self._per_domain(c.hidden_size)
            if c.use_hetero_proj
            else Dense(c.hidden_size, dtype=self.dtype)
            for _ in range(2)
        )
        table = nn.initializers.normal(0.02)
        self.pos_emb = self.param("pos_emb", table, (c.max_len_seq, c.hidden_size))
        if c.len_soft_prompts:
            shape = (c.num_domains, c.len_soft_prompts, c.hidden_size)
            self.soft_prompts = self.param("soft_prompts", table, shape)
        # Without sight of the actions the context is one computation for all steps.
        self.apart = c.context_attends_to == CONTEXT
        hidden = c.num_actions if self.apart else 0
        mlp_hidden = int(c.hidden_size * c.mlp_ratio)
        shape = (c.hidden_size, c.num_heads, mlp_hidden, hidden, self.attention)
        self.blocks: Any = (
            [PolicyBlock(*shape, dtype=self.dtype) for _ in range(c.depth)]
            if self.unroll
            else stacked(PolicyBlock, c.depth, remat=self.remat)(*shape, dtype=self.dtype)
        )
        self.norm = LayerNorm(dtype=self.dtype)

    def prepare(
        self, vlm_features: Array, aux_visual_inputs: Array, domain_id: Array
    ) -> HeadContext | KeptContext:
        """Computes all that depends neither on the noisy actions nor on the time.

        That is the context in all blocks where it does not attend to actions and ``unroll`` is
        set; else it is its part of the first block.

        Args:
            vlm_features: ``[B, N + L, M]``.
            aux_visual_inputs: ``[B, (V - 1) * N, M]``; may have no tokens.
            domain_id: ``[B]`` integers in range.
        """
        c = self.config
        # Context tokens: [B, S, M], S = N + L + (V - 1) * N
        x = jnp.concatenate(
            [
                self._project(self.vlm_proj, vlm_features, domain_id),
                self._project(self.aux_visual_proj, aux_visual_inputs, domain_id),
            ],
            axis=1,
        )
        length = c.num_actions + x.shape[1]
        if length > c.max_len_seq:
            raise ValueError(
                f"{length} tokens reach the head; max_len_seq is {c.max_len_seq} (config.json)"
            )
        # The first T positions are those of the actions, which `__call__` puts in front.
        x = x + self.pos_emb[c.num_actions : length].astype(x.dtype)
        if c.len_soft_prompts:  # [B, S + P, M]: behind the positions, as prompts have none
            x = jnp.concatenate([x, self.soft_prompts[domain_id].astype(x.dtype)], axis=1)
        if self.unroll and self.apart:
            return self._kept(x)
        return HeadContext(x, self.blocks[0].project(x) if self.unroll else None)

    def _kept(self, x: Array) -> KeptContext:
        """Returns the context ``[B, S + P, M]`` in all blocks, computed without actions."""
        blocks: list[KV] = []
        for block in self.blocks[:-1]:
            x, kept = block.keep(x, 0)
            blocks.append(kept)
        _, key, value = self.blocks[-1].project(x)  # of the last one nothing else is seen
        return KeptContext((*blocks, (key, value)))

    def __call__(
        self,
        context: HeadContext | KeptContext,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
        *,
        train: bool = False,
    ) -> Array:
        """Predicts the clean chunk.

        Args:
            context: see `prepare`; from `keep`, only the tokens of the actions are computed.
            actions: noisy chunk ``[B, T, D]``.
            proprio: ``[B, D]``.
            domain_id: ``[B]`` integers in range.
            t: flow time ``[B]``, or of each action ``[B, T]``.
            train: turns dropout on.

        Returns:
            ``float32[B, T, D]``.
        """
        x = self._embed(actions, proprio, domain_id, t)  # [B, T, M]
        if isinstance(context, KeptContext):
            for block, kept in zip(self.blocks, context.blocks, strict=True):
                x = block.recall(x, kept)
            return self._decode(x, domain_id)
        chunk = x.shape[1]
        x = jnp.concatenate([x, context.tokens], axis=1)  # [B, T + S + P, M]
        if self.unroll:
            # The context enters the first block projected, and leaves the last one unused.
            for i, block in enumerate(self.blocks):
                known = context.projected if i == 0 else None
                x, _ = block(x, train, known, chunk if i == self.config.depth - 1 else None)
        else:
            x, _ = self.blocks(x, train)
        return self._decode(x[:, :chunk], domain_id)

    def keep(
        self,
        context: HeadContext | KeptContext,
        actions: Array,
        proprio: Array,
        domain_id: Array,
        t: Array,
    ) -> tuple[Array, KeptContext]:
        """Predicts the clean chunk, and keeps the context of this step for `__call__`.

        Raises:
            ValueError: the blocks are one scan.
        """
        if isinstance(context, KeptContext):  # that of every step
            return self(context, actions, proprio, domain_id, t), context
        if not self.unroll:
            raise ValueError("the context is kept by block: the model needs unroll=True")
        x = self._embed(actions, proprio, domain_id, t)  # [B, T, M]
        chunk = x.shape[1]
        x = jnp.concatenate([x, context.tokens], axis=1)  # [B, T + S + P, M]
        blocks: list[KV] = []
        for i, block in enumerate(self.blocks):
            known = context.projected if i == 0 else None
            x, kept = block.keep(x, chunk, known, chunk if i == self.config.depth - 1 else None)
            blocks.append(kept)
        return self._decode(x, domain_id), KeptContext(tuple(blocks))

    def _embed(self, actions: Array, proprio: Array, domain_id: Array, t: Array) -> Array:
        """Returns the tokens of a noisy chunk, with positions, ``[B, T, M]``."""
        c = self.config
        chunk = actions.shape[1]
        if chunk != c.num_actions:
            raise ValueError(f"a chunk of {chunk} actions; num_actions is {c.num_actions}")
        # Each action token sees proprio and time: [B, D + time] -> [B, T, D + time]
        time = time_embedding(t, c.dim_time)
        if t.ndim == 1:
            state = jnp.concatenate([proprio, time], axis=-1)
            state = jnp.broadcast_to(state[:, None], (*actions.shape[:2], state.shape[-1]))
        else:  # times of their own
            rows = jnp.broadcast_to(proprio[:, None], (*actions.shape[:2], proprio.shape[-1]))
            state = jnp.concatenate([rows, time], axis=-1)
        x = self.action_encoder(jnp.concatenate([actions, state], axis=-1), domain_id)  # [B, T, M]
        return x + self.pos_emb[:chunk].astype(x.dtype)

    def _decode(self, x: Array, domain_id: Array) -> Array:
        """Decodes the action tokens: ``[B, T, M]`` -> ``float32[B, T, D]``."""
        return self.action_decoder(self.norm(x), domain_id).astype(jnp.float32)

    def _per_domain(self, features: int) -> DomainLinear:
        return DomainLinear(features, self.config.num_domains, dtype=self.dtype)

    def _project(self, layer: nn.Module, x: Array, domain_id: Array) -> Array:
        return layer(x, domain_id) if self.config.use_hetero_proj else layer(x)
