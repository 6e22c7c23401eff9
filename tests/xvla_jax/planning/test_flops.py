"""FLOPs of programs whose work is known by hand."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from xvla_jax.errors import ProgramError
from xvla_jax.planning import flops

_X, _W = jnp.ones((4, 8)), jnp.ones((8, 8))
_ONCE = 2 * 4 * 8 * 8


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


def test_stages_are_found_by_name() -> None:
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        with jax.named_scope("near"):
            x = jnp.sin(x @ w)
        with jax.named_scope("far"):
            return jnp.sin(_scan(x, w)) @ w

    found = flops.flops_by_stage(_text(program, _X, _W), {"near": "/near/", "none": "/none/"})
    assert found == {"near": _ONCE, "none": 0, "other": 8 * _ONCE}


def test_a_loop_of_unknown_length_is_refused() -> None:
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 1e6, lambda y: y @ w, x)

    with pytest.raises(ProgramError, match="no known trip count"):
        flops.products(_text(program, _X, _W))
    with pytest.raises(ProgramError, match="no ENTRY computation"):
        flops.products("module @jit_f {}")
