"""FLOPs of traced programs, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from xvla_jax.planning.flops import peak_flops, traced_flops

_SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def _product(x: jax.Array) -> jax.Array:
    return x @ x


def _scanned(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda c, _: (jax.checkpoint(_product)(c), None), x, None, length=5)[0]


def _branching(x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)


def _convolved(x: jax.Array) -> jax.Array:
    """A picture of 8 x 8 with 3 channels, 16 kernels of 5 x 5."""
    picture, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((5, 5, 3, 16))
    numbers = ("NHWC", "HWIO", "NHWC")
    return x.sum() + jax.lax.conv_general_dilated(
        picture, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


_ONE = 2 * 4**3


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_product, _ONE),
        (jax.jit(_product), _ONE),
        (_scanned, 5 * _ONE),
        (_branching, 2 * _ONE),
        (jax.vmap(_product), 4 * 2 * 4),  # four rows, each a dot of two vectors
        (_convolved, 2 * 8 * 8 * 16 * 5 * 5 * 3),
        # forward, and a product for each operand
        (jax.grad(lambda x: jax.jit(_product)(x).sum()), 3 * _ONE),
        (lambda x: jnp.einsum("ij,bjk->bik", x, jnp.zeros((7, 4, 4))), 7 * _ONE),
    ],
)
def test_counts(function: Callable[[jax.Array], jax.Array], expected: int) -> None:
    assert traced_flops(function, _SQUARE) == expected


def test_peaks_are_by_the_kind_of_device() -> None:
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("cpu") is None
