"""DaViT vision tower: attention inside windows of tokens alternates with attention of channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xvla_jax.config import VisionConfig
from xvla_jax.models.kernels import attend, attend_packed, depthwise_conv3x3, takes_packed
from xvla_jax.models.layers import (
    Array,
    Kept,
    LayerNorm,
    Mlp,
    PackedQKV,
    gelu_erf,
    rematerialised,
    rematerialised_function,
    split_qkv,
)
from xvla_jax.models.low_rank import Conv, Dense
from xvla_jax.models.packing import pack
from xvla_jax.sharding import batch_split


def spans(length: int, side: int) -> list[tuple[slice, int]]:
    """Cuts an axis into spans of windows of one size: full windows, then the remainder.

    Yields each span and the side of its windows.
    """
    full = length - length % side
    spans = [(slice(0, full), side), (slice(full, length), length - full)]
    return [(span, size) for span, size in spans if span.start < span.stop]


def _split(x: Array, height: int, width: int) -> Array:
    """``[B, H, W, ...]`` -> windows ``[B, H / height, W / width, height * width, ...]``."""
    batch, rows, columns, *rest = x.shape
    # [B, H / height, height, W / width, width, ...], then the window's two axes side by side
    x = x.reshape(batch, rows // height, height, columns // width, width, *rest).swapaxes(2, 3)
    return x.reshape(batch, rows // height, columns // width, height * width, *rest)


def _join(x: Array, height: int, width: int) -> Array:
    """Inverse of `_split`."""
    batch, rows, columns, _, *rest = x.shape
    # [B, rows, height, columns, width, ...]: the axes of the map side by side again
    x = x.reshape(batch, rows, columns, height, width, *rest).swapaxes(2, 3)
    return x.reshape(batch, rows * height, columns * width, *rest)


def _attend_by_window(window: int, forms: str, *qkv: Array) -> Array:
    """Cuts windows out of maps ``[B, H, W, K, E]``, attends inside them, and joins the results."""

    def attend_span(rows: slice, height: int, columns: slice, width: int) -> Array:
        # Windows of the span, as [B, rows, columns, height * width, K, E].
        query, key, value = (_split(y[:, rows, columns], height, width) for y in qkv)
        out = attend(
            query,
            key,
            value,
            scale=query.shape[-1] ** -0.5,
            zero_keys=window**2 - height * width,
            forms=forms,
        )
        return _join(out, height, width)

    # Up to four spans: full windows, the right edge, the bottom edge, the corner.
    down, across = (spans(length, window) for length in qkv[0].shape[1:3])
    return jnp.concatenate(
        [
            jnp.concatenate([attend_span(*span, *other) for other in across], axis=2)
            for span in down
        ],
        axis=1,
    )


class WindowAttention(nn.Module):
    """Attention inside square windows.

    X-VLA pads the map at the right and bottom to full windows, and its padded cells are attended
    like any other. They are zero after the norm, so their k and v are the biases. A key's bias has
    no effect, and the bias of the values can be added to the result, so these keys and values are
    zeros, of which `attend` takes the number. This is the form for all backends: padding the map
    costs 1.3 times the cycles at stage 0 and 1.9 times at stage 1 on TPU (the v5e compiler's
    estimate, with gradients), and 1.7 times the time at stage 0 on CPU.
    """

    num_heads: int
    window: int
    attention: str = "xla"  # a row of ``kernels.ATTENTION``
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        project = PackedQKV(self.num_heads, dtype=self.dtype, name="qkv")
        packed = functools.partial(takes_packed, self.attention, masked=False)
        batch, height, width, channels = x.shape
        shape = (batch, height, width, 3 * channels)
        if packed(shape, self.dtype, self.num_heads, window=self.window):
            out = self._packed(*project.together(x))
        else:
            # q, k, v: [B, H, W, K, E]; the bias: [K, E]
            *qkv, value_bias = project(x)
            out = _attend_by_window(self.window, self.attention, *qkv)
            out = (out + value_bias).reshape(x.shape)  # [B, H, W, K, E] -> [B, H, W, C]
        out = checkpoint_name(out, Kept.ATTENDED)
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(out)

    def _packed(self, y: Array, bias: Array) -> Array:
        """``[B, H, W, 3 * C]``, the product before its bias ``[3 * C]`` -> ``[B, H, W, C]``."""
        of_query, _, of_value = jnp.split(bias, 3)
        scale = (len(of_query) // self.num_heads) ** -0.5

        def apart(y: Array, bias: Array, kept: None) -> Array:
            del kept
            all_three = jnp.pad(bias.ravel(), (0, len(of_query)))  # the last one is not used
            *qkv, _ = split_qkv(y, all_three, self.num_heads)
            out = _attend_by_window(self.window, self.attention, *qkv)
            return out.reshape(*y.shape[:-1], -1)

        out = attend_packed(
            apart,
            y,
            # The bias of the values is added to the result: it is the value of absent cells too.
            jnp.stack([of_query, jnp.zeros_like(of_query)]),
            None,
            num_heads=self.num_heads,
            scale=scale,
            window=self.window,
            forms=self.attention,
        )
        return out + of_value


class ChannelAttention(nn.Module):
    """Attention among the channels of a group, over all tokens; q is scaled by tokens^-0.5."""

    num_groups: int
    flat: bool = False  # see `Block`
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        batch, height, width, channels = x.shape
        tokens = height * width
        inside = (batch, tokens, channels) if self.flat else x.shape
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(x.reshape(inside))
        qkv = checkpoint_name(qkv, Kept.PROJECTED)
        # [..., 3 * C] -> three of [..., C] -> of [B, H * W, groups, c]
        groups = (batch, tokens, self.num_groups, channels // self.num_groups)
        query, key, value = (part.reshape(groups) for part in jnp.split(qkv, 3, axis=-1))
        # Channels of q by channels of k: [B, groups, c, c]
        scores = jnp.einsum(
            "bmgi,bmgj->bgij", query * tokens**-0.5, key, preferred_element_type=jnp.float32
        )
        weights = nn.softmax(scores, axis=-1).astype(value.dtype)
        # [B, H * W, groups, c] -> [..., C]
        out = jnp.einsum("bgij,bmgj->bmgi", weights, value).reshape(inside)
        out = checkpoint_name(out, Kept.ATTENDED)
        return Dense(channels, dtype=self.dtype, name="proj")(out).reshape(x.shape)


# Attention by kind of block, in the order in which the blocks of a pair run.
Pair = Mapping[str, Callable[..., nn.Module]]


class DropPath(nn.Module):
    """Drops the residual branch of an image with probability ``rate``; scales the kept by 1 / keep.

    In a scan the rate is a traced number.
    """

    rate: float | Array

    @nn.compact
    def __call__(self, x: Array, order: Array | None = None, *, train: bool) -> Array:
        """``[B, ...] -> [B, ...]``; with the ``order`` of packed images, see `DaViT`."""
        if not train or (isinstance(self.rate, float) and self.rate == 0.0):
            return x
        keep = 1.0 - self.rate
        images = x.shape[0] if order is None else order.size
        shape = (images,) + (1,) * (x.ndim - 1)  # one draw an image
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        if order is not None:  # packed images take the draws of their slots
            kept = pack(kept, order, x.shape[0] // order.shape[0])
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros_like(x))


class DepthwiseConv3x3(nn.Module):
    """Depthwise 3 x 3 convolution with a bias, which keeps the map's size."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        channels = x.shape[-1]
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2), out_axis=3
        )
        kernel = self.param("kernel", init, (3, 3, 1, channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,)).astype(self.dtype)
        return depthwise_conv3x3(x.astype(self.dtype), kernel, bias)


class Block(nn.Module):
    """Depthwise conv, attention, depthwise conv, MLP: four residuals, the 2nd and 4th pre-norm.

    Attributes:
        attention: makes its module.
        drop_path: rate.
        flat: what is no convolution runs on ``[B, H * W, C]``. The numbers are the same, gradients
            up to rounding. On a map TPU's compiler copies wide gradients between layouts, and with
            images and tokens on one axis it copies them too.
        dtype: computing type.
    """

    attention: Callable[..., nn.Module]
    drop_path: float | Array
    flat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False, order: Array | None = None) -> Array:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        drop = DropPath(self.drop_path)
        x = x + DepthwiseConv3x3(dtype=self.dtype, name="conv1")(x)
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = self.attention(dtype=self.dtype, name="attention")
        x = checkpoint_name(x + drop(attention(y), order, train=train), Kept.BETWEEN)
        x = x + DepthwiseConv3x3(dtype=self.dtype, name="conv2")(x)
        shape, width = x.shape, x.shape[-1]
        inside = (shape[0], -1, width) if self.flat else shape
        # [B * H * W, C], or flat: on a map, TPU's compiler turns the MLP's products into
        # convolutions over windows, which take six times as long to compile.
        rows = inside if self.flat else (-1, width)
        x = x.reshape(inside)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x).reshape(rows)
        y = Mlp(4 * width, gelu_erf, dtype=self.dtype, name="mlp")(y)
        return (x + drop(y.reshape(x.shape), order, train=train)).reshape(shape)


class ConvEmbed(nn.Module):
    """Convolution that opens a stage, with LayerNorm before (``prenorm``) or after it."""

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
        x = Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.padding,
            dtype=self.dtype,
            name="conv",
        )(x)
        return x if self.prenorm else norm(x)


class DaViT(nn.Module):
    """The tower: images to the last stage's map.

    Attributes:
        config: the tower's shape.
        remat: a row of ``layers.REMAT``, which says what the backward pass keeps of the blocks.
        scan: runs the block pairs of a stage as one scan, which compiles a pair once, and flattens
            maps in the blocks (see `Block`): the form for TPU. Drop path then draws other masks
            than without.
        attention: a row of ``kernels.ATTENTION``.
        dtype: computing type.
    """

    config: VisionConfig
    remat: str = "none"
    scan: bool = False
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Array, order: Array | None = None, *, train: bool = False) -> Array:
        """Normalised ``[B, H, W, 3] -> [B, H', W', C]``; 224 px gives 7 x 7 x 2048 at release.

        Packed images come with ``order`` ``int32[G, n]``: each of G devices has the images of the
        first of its slots in that order. Drop path draws for all slots.
        """
        c = self.config
        # Drop path rates rise evenly over all blocks, two to a pair.
        rates = iter(np.linspace(0.0, c.drop_path_rate, 2 * sum(c.depths)).tolist())
        x = pixels.astype(self.dtype)
        # Each stage makes the map smaller and wider: 56, 28, 14, 7 tokens a side at release.
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
            pair = {
                "spatial": functools.partial(
                    WindowAttention, c.num_heads[i], c.window_size, self.attention
                ),
                "channel": functools.partial(ChannelAttention, c.num_groups[i], self.scan),
            }
            pair_rates = [[next(rates) for _ in pair] for _ in range(depth)]
            # Parameters are made by the blocks themselves, so a scan has to wait for them.
            scanned = self.scan and depth > 1 and not self.is_initializing()
            run = self._scanned_stage if scanned else self._stage
            x = run(x, f"stage{i}", pair, pair_rates, train, order)
        return x

    def _stage(
        self,
        x: Array,
        name: str,
        pair: Pair,
        rates: list[list[float]],
        train: bool,
        order: Array | None,
    ) -> Array:
        blocks = rematerialised(Block, self.remat, scanned=False)
        for j, pair_rates in enumerate(rates):
            for (kind, attention), rate in zip(pair.items(), pair_rates, strict=True):
                block = blocks(
                    attention, rate, self.scan, dtype=self.dtype, name=f"{name}_{kind}{j}"
                )
                x = batch_split(block(x, train, order))
        return x

    def _scanned_stage(
        self,
        x: Array,
        name: str,
        pair: Pair,
        rates: list[list[float]],
        train: bool,
        order: Array | None,
    ) -> Array:
        params = self.variables["params"]
        pairs = [{kind: params[f"{name}_{kind}{j}"] for kind in pair} for j in range(len(rates))]
        keys = None
        if train and np.any(rates):
            keys = jax.random.split(self.make_rng("dropout"), (len(rates), len(pair)))

        # One turn of the scan is a pair of blocks, with its parameters, rates and keys.
        def step(x: Array, turn: Any) -> tuple[Array, None]:
            params, rates, keys = turn
            for i, (kind, attention) in enumerate(pair.items()):
                block = functools.partial(_apply_block, attention, self.dtype)
                block = rematerialised_function(block, self.remat)
                x = block(x, params[kind], rates[i], None if keys is None else keys[i], order)
                x = batch_split(x)
            return x, None

        # Checkpoints keep blocks apart, so they are stacked here: [pairs, ...].
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        return jax.lax.scan(step, x, (stacked, jnp.asarray(rates), keys))[0]


def _apply_block(
    attention: Callable[..., nn.Module],
    dtype: Any,
    x: Array,
    params: Any,
    rate: Array,
    key: Array | None,
    order: Array | None,
) -> Array:
    """Applies a block with the given parameters; drops nothing without a key."""
    block = Block(attention, rate, flat=True, dtype=dtype, parent=None)
    rngs = {} if key is None else {"dropout": key}
    return jnp.asarray(block.apply({"params": params}, x, key is not None, order, rngs=rngs))
