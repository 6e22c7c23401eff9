"""A kernel with a low-rank change beside it, ``W + A B``, of which A and B alone are trained.

An `AdaptedKernel` stands in the tree of parameters in the place of a kernel, so that no layer knows
of adapters: a layer reads its kernel, casts it and multiplies by it, whichever it is. A scan slices
its three arrays by layer.

`Dense` and `Conv` are Flax's own, which take the products to use as an option.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen.dtypes import promote_dtype

Array = jax.Array
_Operands = tuple[Array, Array, Array, Array]  # x, W, A, B

MERGE_SCOPE: Final = "merge_adapter"  # of W + A B in the names of a program's operations


def _merged(kernel: Array, a: Array, b: Array, dtype: Any) -> Array:
    """Returns ``W + A B``, rounded once to the computing type."""
    with jax.named_scope(MERGE_SCOPE):
        change = jnp.matmul(
            *(factor.astype(dtype) for factor in (a, b)),
            precision="highest",  # TPUs round float32 factors to bfloat16 at any lower one
            preferred_element_type=jnp.float32,
        )
        return (kernel + change).astype(dtype)


@jax.custom_vjp
def adapted_product(x: Array, kernel: Array, a: Array, b: Array) -> Array:
    """Multiplies ``x`` ``[..., in]`` by ``W + A B``; W takes no gradient.

    The matrix is merged where it is used and not kept: that is work on ``in * out`` numbers, the
    two products ``(x A) B`` would be work on all tokens times ``out``, and there are more tokens.
    The backward pass goes the other way: A and B take their gradients through ``(x A) B``, so that
    the largest product of a layer, the gradient of a matrix, is not formed.

    Args:
        x: ``[..., in]``, in the computing type.
        kernel: ``[in, out]``.
        a: ``[in, r]``, scaled.
        b: ``[r, out]``.
    """
    return x @ _merged(kernel, a, b, x.dtype)


def _forward(x: Array, kernel: Array, a: Array, b: Array) -> tuple[Array, _Operands]:
    return adapted_product(x, kernel, a, b), (x, kernel, a, b)


def _backward(operands: _Operands, slope: Array) -> tuple[Array, None, Array, Array]:
    x, kernel, a, b = operands
    low, high = a.astype(x.dtype), b.astype(x.dtype)
    slope_of_x = slope @ _merged(kernel, a, b, x.dtype).T  # [..., out] -> [..., in]
    # Those of (x A) B, sums over all tokens: [in, r] and [r, out]
    slope_of_a = jnp.einsum("...i,...r->ir", x, slope @ high.T)
    slope_of_b = jnp.einsum("...r,...o->ro", x @ low, slope)
    return slope_of_x, None, slope_of_a.astype(a.dtype), slope_of_b.astype(b.dtype)


adapted_product.defvjp(_forward, _backward)


class AdaptedKernel(struct.PyTreeNode):
    """A kernel and its change, of a linear layer or of a convolution; may be stacked by layer.

    The kernel is the first field: Flax compares its shape with the layer's.
    """

    kernel: Array  # [..., in, out]
    a: Array  # [..., in, r], scaled
    b: Array  # [..., r, out]; of a convolution, one of 1 x 1

    def astype(self, dtype: Any) -> AdaptedKernel:  # noqa: ARG002
        """Returns itself: the product rounds to the type of ``x``, after it has merged."""
        return self

    def __rmatmul__(self, x: Array) -> Array:
        """Returns ``x @ self``, see `adapted_product`."""
        return adapted_product(x, self.kernel, self.a, self.b)


def _cast(*operands: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input, kernel and bias to its computing type."""
    return [
        operand
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

    def convolve(kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), *geometry, **options)

    if isinstance(kernel, AdaptedKernel):
        # [B, H', W', r] -> [B, H', W', out]
        return convolve(kernel.kernel) + convolve(kernel.a) @ kernel.b[0, 0].astype(x.dtype)
    return convolve(kernel)


Dense = functools.partial(
    nn.Dense,
    kernel_init=nn.initializers.xavier_uniform(),
    promote_dtype=_cast,
    dot_general=_dot_general,
)
Conv = functools.partial(nn.Conv, promote_dtype=_cast, conv_general_dilated=_convolve)
