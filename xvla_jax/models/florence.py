"""Encoder side of Florence-2: image tokens, text embedding and the BART encoder."""

from __future__ import annotations

import functools
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import Scope
from jax.ad_checkpoint import checkpoint_name

from xvla_jax.config import TextConfig, VisionConfig
from xvla_jax.models.davit import DaViT
from xvla_jax.models.int8 import lookup
from xvla_jax.models.kernels import attend
from xvla_jax.models.layers import (
    Array,
    Dropout,
    Kept,
    KeyProjection,
    LayerNorm,
    Mlp,
    gelu_erf,
    stacked,
    weights_shape,
)
from xvla_jax.models.low_rank import Dense
from xvla_jax.models.packing import Packing, pack, packing_of, second_pass, unpack
from xvla_jax.sharding import batch_split

POSITION_OFFSET: Final = 2  # BART's position table starts two rows late
_table_init = nn.initializers.normal(0.02)


class ImageProjector(nn.Module):
    """Turns the tower's last map into image tokens of the text width."""

    config: VisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, h, h, C] -> [B, N, M]``."""
        c = self.config
        height, width, channels = x.shape[1:]
        rows = self.param("row_embeddings", _table_init, (c.max_pos_embeddings, channels // 2))
        columns = self.param(
            "column_embeddings", _table_init, (c.max_pos_embeddings, channels - channels // 2)
        )
        # A gather on the device would clamp silently.
        if max(height, width) > c.max_pos_embeddings:
            raise ValueError(
                f"the image map is {height} x {width}, "
                f"the position tables have {c.max_pos_embeddings} rows"
            )
        position = jnp.concatenate(  # [h, w, C]: columns (x) first, then rows (y)
            [
                jnp.broadcast_to(columns[None, :width], (height, width, columns.shape[1])),
                jnp.broadcast_to(rows[:height, None], (height, width, rows.shape[1])),
            ],
            axis=-1,
        )
        # Row 0 of the fixed table of sines and cosines, as there is one frame: 0, 1, 0, 1, ...
        temporal = (jnp.arange(channels) % 2).astype(x.dtype)
        # Flat tokens: [B, h * w, C]
        x = (x + position.astype(x.dtype) + temporal).reshape(x.shape[0], height * width, channels)
        mean = x.mean(axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        # One frame: the mean over time and the last frame are the tokens themselves.
        sources = {"spatial_avg_pool": mean, "temporal_avg_pool": x, "last_frame": x}
        # [B, N, C], N = h * w + 1 at release: the mean first
        x = jnp.concatenate([sources[name] for name in c.image_feature_source], axis=1)
        projection = self.param(
            "projection", nn.initializers.normal(channels**-0.5), (channels, c.projection_dim)
        )
        x = x.astype(self.dtype) @ projection.astype(self.dtype)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class BartAttention(nn.Module):
    """Self-attention with four separate projections; q is scaled after its bias."""

    num_heads: int
    dropout: float
    attention: str = "xla"  # a row of ``kernels.ATTENTION``
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """``[B, S, M] -> [B, S, M]``."""
        width = x.shape[-1]
        heads = (*x.shape[:-1], self.num_heads, width // self.num_heads)  # [B, S, K, E]
        query = Dense(width, dtype=self.dtype, name="q_proj")(x)
        query = checkpoint_name(query, Kept.PROJECTED).reshape(heads)
        key = KeyProjection(dtype=self.dtype, name="k_proj")(x).reshape(heads)
        value = Dense(width, dtype=self.dtype, name="v_proj")(x)
        value = checkpoint_name(value, Kept.PROJECTED).reshape(heads)
        kept = Dropout(self.dropout, deterministic=not train).mask(weights_shape(query, key))
        scale = query.shape[-1] ** -0.5
        out = attend(
            query, key, value, scale=scale, kept=kept, rate=self.dropout, forms=self.attention
        )
        out = checkpoint_name(out.reshape(x.shape), Kept.ATTENDED)  # [B, S, M]
        return Dense(width, dtype=self.dtype, name="out_proj")(out)


class BartLayer(nn.Module):
    """Post-norm layer: ``LN1(x + attention)``, then ``LN2(x + mlp)``; returns a scan's pair."""

    config: TextConfig
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        """``[B, S, M] -> [B, S, M]``."""
        c = self.config
        y = BartAttention(
            c.encoder_attention_heads,
            c.attention_dropout,
            self.attention,
            dtype=self.dtype,
            name="self_attn",
        )(x, train=train)
        y = Dropout(c.dropout, deterministic=not train)(y)
        x = checkpoint_name(x + y, Kept.BETWEEN)
        x = LayerNorm(dtype=self.dtype, name="norm1")(x)
        y = Mlp(
            c.encoder_ffn_dim,
            gelu_erf,
            c.activation_dropout,
            c.dropout,
            dtype=self.dtype,
            name="mlp",
        )(x, train=train)
        return batch_split(LayerNorm(dtype=self.dtype, name="norm2")(x + y)), None


class TextEncoder(nn.Module):
    """Token table and BART encoder, without a mask: padding tokens are attended like any other."""

    config: TextConfig
    remat: str = "none"
    unroll: bool = False
    attention: str = "xla"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the tables and the scanned layers."""
        c = self.config
        self.token_embedding = self.param("token_embedding", _table_init, (c.vocab_size, c.d_model))
        rows = c.max_position_embeddings + POSITION_OFFSET
        self.position_embedding = self.param("position_embedding", _table_init, (rows, c.d_model))
        self.norm = LayerNorm(dtype=self.dtype)
        shape = (c, self.attention)
        self.layers: Any = (
            [BartLayer(*shape, dtype=self.dtype) for _ in range(c.encoder_layers)]
            if self.unroll
            else stacked(BartLayer, c.encoder_layers, remat=self.remat)(*shape, dtype=self.dtype)
        )
        self.embed_dropout = Dropout(c.dropout)

    def embed(self, input_ids: Array) -> Array:
        """Embeds token ids, ``[B, L] -> [B, L, M]``."""
        tokens = lookup(self.token_embedding, input_ids)
        # The padding row takes no gradient, as with PyTorch's padding_idx.
        padding = (input_ids == self.config.pad_token_id)[..., None]
        return jnp.where(padding, jax.lax.stop_gradient(tokens), tokens).astype(self.dtype)

    def __call__(self, image_tokens: Array, input_ids: Array, *, train: bool = False) -> Array:
        """Encodes image tokens ``[B, N, M]`` and ids ``[B, L]`` as ``[B, N + L, M]``."""
        # The first view's tokens, then the instruction: one sequence.
        x = jnp.concatenate([image_tokens, self.embed(input_ids)], axis=1)
        length = x.shape[1]
        if length + POSITION_OFFSET > self.position_embedding.shape[0]:
            raise ValueError(
                f"{length} image and text tokens; text_config.max_position_embeddings is "
                f"{self.config.max_position_embeddings}"
            )
        x = x + self.position_embedding[POSITION_OFFSET : POSITION_OFFSET + length].astype(
            self.dtype
        )
        # BART norms the sum of embeddings before the first layer.
        x = self.embed_dropout(self.norm(x), deterministic=not train)
        if not self.unroll:
            return self.layers(x, train)[0]
        for layer in self.layers:
            x, _ = layer(x, train)
        return x


class Florence(nn.Module):
    """Runs all views through the tower, and the first view and the text through the encoder."""

    vision: VisionConfig
    text: TextConfig
    remat: str = "none"
    unroll: bool = False
    scan_vision: bool = False
    packed_views: float = 0.0
    attention: str = "xla"
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares the three parts."""
        self.vision_tower = DaViT(
            self.vision,
            remat=self.remat,
            scan=self.scan_vision,
            attention=self.attention,
            dtype=self.dtype,
        )
        self.image_projector = ImageProjector(self.vision, dtype=self.dtype)
        self.text_encoder = TextEncoder(
            self.text,
            remat=self.remat,
            unroll=self.unroll,
            attention=self.attention,
            dtype=self.dtype,
        )

    def __call__(
        self, pixels: Array, view_mask: Array, input_ids: Array, *, train: bool = False
    ) -> tuple[Array, Array]:
        """Encodes normalised pixels ``[B, v, H, W, 3]``, mask ``[B, V]`` and ids ``[B, L]``.

        ``v`` may be less than V: the other slots are absent in all samples, and are not computed.

        Returns:
            ``vlm_features`` ``[B, N + L, M]`` and ``aux_visual_inputs`` ``[B, (V - 1) * N, M]``. An
            absent view is N tokens of exactly zero, attended like any other.
        """
        tokens = self.view_tokens(pixels, view_mask, train=train)  # [B, V, N, M]
        # Only the main camera is encoded with the text; [B, V - 1, N, M] -> [B, (V - 1) * N, M]
        features = self.text_encoder(tokens[:, 0], input_ids, train=train)
        return features, tokens[:, 1:].reshape(tokens.shape[0], -1, tokens.shape[-1])

    def view_tokens(self, pixels: Array, view_mask: Array, *, train: bool = False) -> Array:
        """Encodes views ``[B, v, H, W, 3]`` as tokens ``[B, V, N, M]``, zeros where absent."""
        batch, shown = pixels.shape[:2]
        # Views are images of their own to the tower: [B * v, H, W, 3] -> [B * v, N, M]
        images = pixels.reshape(batch * shown, *pixels.shape[2:])
        packing = packing_of(view_mask[:, :shown], self.packed_views) if train else None
        if packing is None:
            tokens = self.image_tokens(images, None, train)
        else:
            tokens = self._packed_tokens(images, packing)
        tokens = tokens.reshape(batch, shown, *tokens.shape[1:])  # [B, v, N, M]
        # Slots that were not computed, then absent views among the others, become zeros.
        unseen = view_mask.shape[1] - shown
        tokens = jnp.pad(tokens, ((0, 0), (0, unseen), (0, 0), (0, 0)))  # [B, V, N, M]
        return jnp.where(view_mask[:, :, None, None], tokens, jnp.zeros_like(tokens))

    def image_tokens(self, images: Array, order: Array | None, train: bool) -> Array:
        """Encodes images ``[I, H, W, 3]`` as tokens ``[I, N, M]``; ``order`` as for `DaViT`."""
        return self.image_projector(self.vision_tower(images, order, train=train))

    def _packed_tokens(self, images: Array, packing: Packing) -> Array:
        """Encodes the images that are there: ``[I, H, W, 3] -> [I, N, M]``, others undefined."""
        order, places = packing.order, packing.places
        first = self.image_tokens(pack(images, order, places), order, True)
        # The other slots in turn; their images are encoded only where a device needs it.
        order = jnp.roll(packing.order, -places, axis=1)
        others = pack(images, order, order.shape[1] - places)
        # Named as this module: its drop path then draws for a slot what the first pass would draw.
        scope = cast(Scope, self.scope)
        run = functools.partial(_apply_image_tokens, self.clone(parent=None))
        second = second_pass(run, packing.overflow, self.variables, others, order, scope.rngs)
        return unpack(first, jnp.asarray(second), packing.order)


def _apply_image_tokens(
    florence: Florence, variables: Any, images: Array, order: Array, rngs: Any
) -> Array:
    """Applies `Florence.image_tokens` with given variables and keys, as a pure function."""
    tokens = florence.apply(variables, images, order, True, method="image_tokens", rngs=rngs)
    return jnp.asarray(tokens)
