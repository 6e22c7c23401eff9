"""FLOPs of compiled programs and of traced functions whose work is known by hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from xvla_jax.errors import ProgramError
from xvla_jax.planning import flops

_X, _W = jnp.ones((4, 8)), jnp.ones((8, 8))
_ONCE = 2 * 4 * 8 * 8
_SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def _text(f: Callable[..., jax.Array], *arguments: jax.Array) -> str | None:
    return jax.jit(f).lower(*arguments).compile().as_text()


def _scan(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda y, _: (jnp.sin(y @ w), None), x, length=7)[0]


def _nested(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 5, lambda _, y: _scan(y, w), x)


def _batched(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("bij,bjk->bik", jnp.sin(jnp.stack([x, 2 * x])), jnp.stack([w, w + 1]))


@pytest.mark.parametrize(
    ("program", "runs"),
    [(jnp.matmul, 1), (_scan, 7), (_nested, 35), (_batched, 2)],
    ids=["once", "scan", "loops in loops", "batch"],
)
def test_products(program: Callable[..., jax.Array], runs: int) -> None:
    assert sum(flops.flops_by_stage(_text(program, _X, _W), {}).values()) == runs * _ONCE


def test_convolution() -> None:
    def convolve(x: jax.Array, k: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=numbers)

    text = _text(convolve, jnp.ones((1, 9, 9, 3)), jnp.ones((3, 3, 3, 5)))
    assert sum(flops.flops_by_stage(text, {}).values()) == 2 * (4 * 4 * 5) * (3 * 3 * 3)


def test_stages_are_matched_by_name() -> None:
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.named_scope("near"):
            x = jnp.sin(x @ w)
        with jax.named_scope("far"):
            return jnp.sin(_scan(x, w)) @ w

    by_stage = flops.flops_by_stage(_text(program, _X, _W), {"near": "/near/", "none": "/none/"})
    assert by_stage == {"near": _ONCE, "none": 0, "other": 8 * _ONCE}


def test_a_loop_of_unknown_length_is_refused() -> None:
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 1e6, lambda y: y @ w, x)

    with pytest.raises(ProgramError, match="no known trip count"):
        flops.products(_text(program, _X, _W))
    with pytest.raises(ProgramError, match="no ENTRY computation"):
        flops.products("module @jit_f {}")


def _product(x: jax.Array) -> jax.Array:
    return x @ x


def _scanned(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda c, _: (jax.checkpoint(_product)(c), None), x, None, length=5)[0]


def _branching(x: jax.Array) -> jax.Array:
    return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)


def _convolved(x: jax.Array) -> jax.Array:
    """An image of 8 x 8 with 3 channels, 16 kernels of 5 x 5."""
    image, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((5, 5, 3, 16))
    numbers = ("NHWC", "HWIO", "NHWC")
    return x.sum() + jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=numbers
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
    assert flops.traced_flops(function, _SQUARE) == expected


def test_peaks_are_by_the_kind_of_device() -> None:
    assert flops.peak_of("TPU v5 lite") == (197e12, 819e9)
    assert flops.peak_of("TPU v5p") == (459e12, 2765e9)
    assert flops.peak_of("NVIDIA H200") == (989e12, 4800e9)
    assert flops.peak_of("cpu") is None
