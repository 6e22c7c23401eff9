"""DaViT vision tower: windows of tokens and groups of channels attend in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xvla_jax.config import VisionConfig
from xvla_jax.models.layers import (
    Array,
    Dense,
    LayerNorm,
    Mlp,
    PackedQKV,
    attend,
    gelu_erf,
)
from xvla_jax.models.remat import rematerialised
from xvla_jax.sharding import batch_split


class DropPath(nn.Module):
    """Drops a whole residual branch per image with probability ``rate``.

    Kept branches are scaled by 1 / keep.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """``[B, ...] -> [B, ...]``."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


class DepthwiseConv3x3(nn.Module):
    """Depthwise 3x3, stride 1, zero padding 1, bias, as nine shifted products.

    The same numbers as a grouped convolution; XLA's gradient of a grouped convolution is far slower
    on CPU.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        height, width, channels = x.shape[1:]
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2), out_axis=3
        )
        kernel = self.param("kernel", init, (3, 3, 1, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = (
            padded[:, dy : dy + height, dx : dx + width] * kernel[dy, dx, 0]
            for dy in range(3)
            for dx in range(3)
        )
        return sum(taps, start=bias)


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


class Block(nn.Module):
    """Depthwise conv, attention, depthwise conv, MLP.

    Every line is a residual; norms come before attention and MLP.
    """

    attention: Callable[..., nn.Module]
    drop_path: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        drop = DropPath(self.drop_path)
        x = x + DepthwiseConv3x3(dtype=self.dtype, name="conv1")(x)
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = self.attention(dtype=self.dtype, name="attention")
        x = x + drop(attention(y), train=train)
        x = x + DepthwiseConv3x3(dtype=self.dtype, name="conv2")(x)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], gelu_erf, dtype=self.dtype, name="mlp")(y)
        return x + drop(y, train=train)


class ConvEmbed(nn.Module):
    """The convolution that opens a stage, with LayerNorm before (``prenorm``) or after it."""

    features: int
    kernel: int
    stride: int
    padding: int
    prenorm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C_in] -> [B, H', W', features]``."""
        norm = LayerNorm(dtype=self.dtype, name="norm")
        if self.prenorm:
            x = norm(x)
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.padding,
            dtype=self.dtype,
            name="conv",
        )(x)
        return x if self.prenorm else norm(x)


class DaViT(nn.Module):
    """The tower: images to the last stage's map."""

    config: VisionConfig
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array, *, train: bool = False) -> Array:
        """Normalised ``[B, H, W, 3] -> [B, H', W', C]``; 224 px gives 7 x 7 x 2048 at release."""
        c = self.config
        rates = iter(np.linspace(0.0, c.drop_path_rate, 2 * sum(c.depths)).tolist())
        blocks = rematerialised(Block, self.remat, scanned=False)
        x = pixels.astype(self.dtype)
        for i, depth in enumerate(c.depths):
            x = ConvEmbed(
                c.dim_embed[i],
                c.patch_size[i],
                c.patch_stride[i],
                c.patch_padding[i],
                c.patch_prenorm[i],
                dtype=self.dtype,
                name=f"embed{i}",
            )(x)
            for j in range(depth):
                window = functools.partial(WindowAttention, c.num_heads[i], c.window_size)
                channel = functools.partial(ChannelAttention, c.num_groups[i])
                for kind, attention in (("spatial", window), ("channel", channel)):
                    block = blocks(
                        attention, next(rates), dtype=self.dtype, name=f"stage{i}_{kind}{j}"
                    )
                    x = batch_split(block(x, train))
        return x
