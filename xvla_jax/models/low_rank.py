"""A kernel with a low-rank change beside it: ``x @ (W + A B)`` computed as ``x @ W + (x @ A) @ B``.

An `AdaptedKernel` stands in the tree of parameters in the place of a kernel, so that no layer knows
of adapters: a layer reads its kernel, casts it and multiplies by it, whichever it is. A scan slices
its three arrays by layer. With W constant, the backward pass has products with W alone: neither
``W + A B`` nor a gradient of W's size is formed.

`Dense` and `Conv` are Flax's own, which take the products to use as an option.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import linen as nn
from flax import struct
from flax.linen.dtypes import promote_dtype

Array = jax.Array


class AdaptedKernel(struct.PyTreeNode):
    """A kernel and its change, of a linear layer or of a convolution; may be stacked by layer.

    The kernel is the first field: Flax compares its shape with the layer's.
    """

    kernel: Array  # [..., in, out]
    a: Array  # [..., in, r], scaled
    b: Array  # [..., r, out]; of a convolution, one of 1 x 1

    def astype(self, dtype: Any) -> AdaptedKernel:
        """Casts all three arrays."""
        return jax.tree.map(lambda leaf: leaf.astype(dtype), self)

    def __rmatmul__(self, x: Array) -> Array:
        """Multiplies ``x`` ``[..., S, in]`` by the changed kernel."""
        # Two products of rank r, a hundredth of the kernel's work: [..., S, r] -> [..., S, out]
        return x @ self.kernel + (x @ self.a) @ self.b


def _cast(*operands: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input, kernel and bias to its computing type."""
    return [
        operand.astype(dtype)
        if isinstance(operand, AdaptedKernel)
        else promote_dtype(operand, dtype=dtype, inexact=inexact)[0]
        for operand in operands
    ]


def _dot_general(x: Array, kernel: Any, *dimensions: Any, **options: Any) -> Array:
    """Product of a linear layer, which contracts the last axis of ``x`` with the kernel's first."""
    if isinstance(kernel, AdaptedKernel):
        return x @ kernel
    return jax.lax.dot_general(x, kernel, *dimensions, **options)


def _convolve(x: Array, kernel: Any, *geometry: Any, **options: Any) -> Array:
    """Convolution; of a pair, A is one with r channels, and B multiplies each place by itself."""
    convolve = functools.partial(jax.lax.conv_general_dilated, x)
    if isinstance(kernel, AdaptedKernel):
        low = convolve(kernel.a, *geometry, **options)  # [B, H', W', r]
        return convolve(kernel.kernel, *geometry, **options) + low @ kernel.b[0, 0]
    return convolve(kernel, *geometry, **options)


Dense = functools.partial(
    nn.Dense,
    kernel_init=nn.initializers.xavier_uniform(),
    promote_dtype=_cast,
    dot_general=_dot_general,
)
Conv = functools.partial(nn.Conv, promote_dtype=_cast, conv_general_dilated=_convolve)
