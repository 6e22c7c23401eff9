"""A kernel with a low-rank change, ``W + scale * A B``, of which A and B alone are trained.

An `AdaptedKernel` stands in the tree of parameters in the place of a kernel, so that no layer knows
of adapters: a layer reads its kernel, casts it and multiplies by it, whichever it is. A scan slices
its three arrays by layer.

The merged matrix is made once a step, outside of what is differentiated, and A and B take their
gradients through ``(x A) B``: no gradient has the size of a matrix. The product ``x W + (x A) B``,
which merges nothing, would pass once more over every result, forward and backward. Two blocks of
the head on v5e, estimated by the planner from compiled programs, in ms; before, the merged weights
were differentiated:

| samples | before | ``x W + (x A) B`` | now |
|---:|---:|---:|---:|
| 32 | 15.7 | 16.3 | 14.8 |
| 8 | 2.99 | not run | 2.40 |

`Dense` and `Conv` are Flax's own, which take the products to use as an option.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.linen.dtypes import promote_dtype

from xvla_jax.models.int8 import Int8

Array = jax.Array
_Product = Callable[[Array, Array], Array]
_Operands = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted_product(product: _Product, x: Array, merged: Array, a: Array, b: Array) -> Array:
    """Returns ``product(x, merged)``, differentiable in x, A and B.

    Args:
        product: linear in both operands: of a linear layer, or a convolution.
        x: ``[..., in]``, in the computing type.
        merged: ``[..., in, out]``, in the computing type; taken for a constant.
        a: ``[..., in, r]``, scaled.
        b: ``[r, out]``.
    """
    del a, b
    return product(x, merged)


def _forward(
    product: _Product, x: Array, merged: Array, a: Array, b: Array
) -> tuple[Array, _Operands]:
    return product(x, merged), (x, merged, a, b)


def _backward(
    product: _Product, operands: _Operands, slope: Array
) -> tuple[Array, None, Array, Array]:
    x, merged, a, b = operands
    small_a, small_b = a.astype(x.dtype), b.astype(x.dtype)
    (slope_of_x,) = jax.linear_transpose(lambda x: product(x, merged), x)(slope)
    # Sums over all tokens, as of (x A) B: of A [..., in, r] and of B [r, out]
    (slope_of_a,) = jax.linear_transpose(lambda a: product(x, a), small_a)(slope @ small_b.T)
    slope_of_b = jnp.einsum("...r,...o->ro", product(x, small_a), slope)
    return slope_of_x, None, slope_of_a.astype(a.dtype), slope_of_b.astype(b.dtype)


adapted_product.defvjp(_forward, _backward)


class AdaptedKernel(struct.PyTreeNode):
    """A merged kernel and its pair, of a linear layer or of a convolution; may be stacked by layer.

    The kernel is the first field: Flax compares its shape with the layer's.
    """

    merged: Array  # [..., in, out]
    a: Array  # [..., in, r], scaled
    b: Array  # [..., r, out]; of a convolution, one of 1 x 1

    def astype(self, dtype: Any) -> AdaptedKernel:
        """Casts the merged kernel; the pair keeps its type, in which its gradients are added up."""
        return self.replace(merged=self.merged.astype(dtype))

    def __rmatmul__(self, x: Array) -> Array:
        """Returns ``x @ self``."""
        return self.multiplied(jnp.matmul, x)

    def multiplied(self, product: _Product, x: Array) -> Array:
        """Returns ``product(x, self)``, of a linear layer or a convolution."""
        b = self.b.reshape(self.b.shape[-2:])  # [..., r, out] -> [r, out]
        return adapted_product(product, x, self.merged, self.a, b)


# Nodes that stand in the place of a kernel, and multiply by themselves.
_KERNELS: Final = (AdaptedKernel, Int8)


def _cast(*operands: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts a layer's input, kernel and bias to its computing type."""
    return [
        operand.astype(dtype)
        if isinstance(operand, _KERNELS)
        else promote_dtype(operand, dtype=dtype, inexact=inexact)[0]
        for operand in operands
    ]


def _dot_general(x: Array, kernel: Any, *dimensions: Any, **options: Any) -> Array:
    """Product of a linear layer, which contracts the last axis of ``x`` with the kernel's first."""
    if isinstance(kernel, _KERNELS):
        return x @ kernel
    return jax.lax.dot_general(x, kernel, *dimensions, **options)


def _convolve(x: Array, kernel: Any, *geometry: Any, **options: Any) -> Array:
    """Convolution; of a pair, A is one with r channels, and B multiplies each place by itself."""
    convolve = functools.partial(_convolved, geometry, options)
    return kernel.multiplied(convolve, x) if isinstance(kernel, _KERNELS) else convolve(x, kernel)


def _convolved(
    geometry: tuple[Any, ...], options: dict[str, Any], x: Array, kernel: Array, **more: Any
) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, *geometry, **options, **more)


Dense = functools.partial(
    nn.Dense,
    kernel_init=nn.initializers.xavier_uniform(),
    promote_dtype=_cast,
    dot_general=_dot_general,
)
Conv = functools.partial(nn.Conv, promote_dtype=_cast, conv_general_dilated=_convolve)
