"""Calls of attention in a train step, by the shapes of the model, and the forms that serve them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from xvla_jax.models.davit import spans
from xvla_jax.models.fused_attention import serves
from xvla_jax.models.kernels import takes_packed
from xvla_jax.models.xvla import XVLA
from xvla_jax.processor import Processor


class Call(NamedTuple):
    """One call of attention, for one sample, image or window.

    Attributes:
        part: of the model.
        rows: queries.
        keys: keys.
        num_heads: K.
        width: E.
        masked: dropout draws a mask.
    """

    part: str
    rows: int
    keys: int
    num_heads: int
    width: int
    masked: bool

    def fused(self, itemsize: int) -> bool:
        """True where the kernel serves it."""
        heads = (self.num_heads, self.width)
        shapes = ((1, self.rows, *heads), (1, self.keys, *heads))
        return serves(*shapes, itemsize=itemsize, masked=self.masked)


def calls(model: XVLA, processor: Processor) -> Iterator[Call]:
    """Yields the calls of a train step; maps that are not cut into windows count as one window."""
    c = model.config
    vision, text, side = c.vision, c.text, processor.image_size
    for i, heads in enumerate(vision.num_heads):
        side += 2 * vision.patch_padding[i] - vision.patch_size[i]
        side = side // vision.patch_stride[i] + 1
        channels, part = vision.dim_embed[i], f"windows of stage {i}"
        shape = (1, side, side, 3 * channels)
        options: dict[str, Any] = {"window": vision.window_size, "masked": False}
        if takes_packed(model.attention, shape, model.dtype, heads, **options):
            yield Call(part, side**2, side**2, heads, channels // heads, False)
            continue
        sizes = [size for _, size in spans(side, vision.window_size)]
        for tokens in sorted({a * b for a in sizes for b in sizes}):
            yield Call(part, tokens, tokens, heads, channels // heads, False)
    # As florence.ImageProjector has it: the mean is one token, the other sources are the map.
    of_image = sum(1 if s == "spatial_avg_pool" else side**2 for s in vision.image_feature_source)
    length = of_image + processor.text_length
    heads = text.encoder_attention_heads
    dropped = text.attention_dropout > 0
    yield Call("text encoder", length, length, heads, text.d_model // heads, dropped)
    context = length + (processor.num_views - 1) * of_image + c.len_soft_prompts
    heads, width = c.num_heads, c.hidden_size // c.num_heads
    yield Call("head", c.num_actions + context, c.num_actions + context, heads, width, True)


def summary(model: XVLA, processor: Processor) -> str:
    """Returns the model's attention and, of the kernel, what it does not serve."""
    if model.attention == "xla":
        return model.attention
    itemsize = jnp.dtype(model.dtype).itemsize
    others = [call for call in calls(model, processor) if not call.fused(itemsize)]
    if not others:
        return f"{model.attention}, in all attention but that of channels"
    listed = ", ".join(f"{call.part} ({call.rows} x {call.keys} tokens)" for call in others)
    return f"{model.attention}, but xla for {listed}: too large for the core's memory"
