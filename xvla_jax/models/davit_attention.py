"""The two attentions of DaViT: windows of tokens, and groups of channels."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from xvla_jax.models.layers import Array, Dense, PackedQKV, attend


def _spans(length: int, side: int) -> list[tuple[slice, int]]:
    """A padded axis cut into stretches of windows of one size: whole windows, then what is left."""
    whole = length - length % side
    spans = [(slice(0, whole), side), (slice(whole, length), length - whole)]
    return [(span, size) for span, size in spans if span.start < span.stop]


def _split(x: Array, height: int, width: int) -> Array:
    """``[B, H, W, ...]`` -> windows ``[B, H / height, W / width, height * width, ...]``."""
    batch, rows, columns, *rest = x.shape
    x = x.reshape(batch, rows // height, height, columns // width, width, *rest).swapaxes(2, 3)
    return x.reshape(batch, rows // height, columns // width, height * width, *rest)


def _join(x: Array, height: int, width: int) -> Array:
    """The inverse of `_split`."""
    batch, rows, columns, _, *rest = x.shape
    x = x.reshape(batch, rows, columns, height, width, *rest).swapaxes(2, 3)
    return x.reshape(batch, rows * height, columns * width, *rest)


class WindowAttention(nn.Module):
    """Attention inside square windows; X-VLA pads the map at the right and bottom to whole windows.

    Its padded cells are attended like any other. They are zero after the norm, so their k and v are
    the biases. They are not computed here: a key's bias has no effect, so those keys are zero, and
    the bias of the values can be added to the result, so those values are zero too.
    """

    num_heads: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        *qkv, value_bias = PackedQKV(self.num_heads, dtype=self.dtype, name="qkv")(x)

        def attend_windows(rows: slice, height: int, columns: slice, width: int) -> Array:
            query, key, value = (_split(y[:, rows, columns], height, width) for y in qkv)
            out = attend(
                query,
                key,
                value,
                scale=query.shape[-1] ** -0.5,
                zero_keys=self.window**2 - height * width,
            )
            return _join(out, height, width)

        down, across = (_spans(length, self.window) for length in x.shape[1:3])
        out = jnp.concatenate(
            [
                jnp.concatenate([attend_windows(*span, *other) for other in across], axis=2)
                for span in down
            ],
            axis=1,
        )
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(
            (out + value_bias).reshape(x.shape)
        )


class ChannelAttention(nn.Module):
    """Channels of a group attend to each other over all tokens.

    q is scaled by (number of tokens)^-0.5.
    """

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        batch, height, width, channels = x.shape
        tokens = height * width
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(batch, tokens, 3, self.num_groups, channels // self.num_groups)
        query, key, value = (qkv[:, :, i] for i in range(3))  # [B, tokens, groups, c]
        scores = jnp.einsum(
            "bmgi,bmgj->bgij", query * tokens**-0.5, key, preferred_element_type=jnp.float32
        )
        weights = nn.softmax(scores, axis=-1).astype(value.dtype)  # rows: channels of q
        out = jnp.einsum("bgij,bmgj->bmgi", weights, value).reshape(x.shape)
        return Dense(channels, dtype=self.dtype, name="proj")(out)
