"""Each form of a kernel gives the plain form's numbers; a program holds the form of its backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xvla_jax.models import kernels

_Case = tuple[tuple[Any, ...], dict[str, Any]]  # operands and options


def _draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _attention(
    batch: tuple[int, ...], rows: int, keys: int, zero_keys: int = 0, rate: float = 0.0
) -> _Case:
    query, key, value = _draw((*batch, rows, 2, 4), (*batch, keys, 2, 4), (*batch, keys, 2, 4))
    kept = jax.random.bernoulli(jax.random.key(1), 1 - rate, (*batch, 2, rows, keys))
    options = {"scale": 2.0, "zero_keys": zero_keys, "rate": rate}
    return (query, key, value, kept if rate else None), options


def _convolution(height: int, width: int) -> _Case:
    return tuple(_draw((2, height, width, 5), (3, 3, 1, 5), (5,))), {}


ATTENTION_CASES = {
    "tokens": _attention((3,), 7, 7),
    "windows": _attention((2, 3, 2), 6, 6),
    "fewer queries": _attention((3,), 2, 7),
    "zero keys": _attention((2, 3, 2), 4, 4, zero_keys=5),
    "one zero key": _attention((3,), 4, 4, zero_keys=1),
    "dropout": _attention((3,), 7, 5, rate=0.3),
    "zero keys and dropout": _attention((3,), 4, 4, zero_keys=5, rate=0.3),
    "all dropped": _attention((3,), 4, 4, rate=1.0),
}
_CONVOLUTION_CASES = {"map": _convolution(4, 6), "one cell": _convolution(1, 1)}
_ROWS = [
    pytest.param(plain, form, *case, id=f"{name} on {backend}: {label}")
    for name, plain, forms, cases in (
        ("attention", kernels.plain_attention, kernels.ATTENTION["xla"], ATTENTION_CASES),
        ("conv", kernels.grouped_convolution, kernels.DEPTHWISE_CONV, _CONVOLUTION_CASES),
    )
    for backend, form in forms.items()
    for label, case in cases.items()
]


@pytest.mark.parametrize(("plain", "form", "operands", "options"), _ROWS)
def test_a_form_gives_the_plain_forms_values_and_gradients(
    plain: kernels.Form, form: kernels.Form, operands: tuple[Any, ...], options: dict[str, Any]
) -> None:
    def value_and_gradients(function: kernels.Form) -> Any:
        def loss(*factors: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = function(*factors, *operands[3:], **options)
            weights = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape) / out.size
            return (out * weights).sum(), out

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*operands[:3])

    (_, expected), expected_gradients = value_and_gradients(plain)
    (_, actual), gradients = value_and_gradients(form)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_plain_attention_weighs_values_by_the_softmax_of_scores() -> None:
    """Scores 0 and log 3, so weights 1/4 and 3/4; four zero keys halve them."""
    query, key = jnp.ones((1, 1, 1)), jnp.array([0.0, np.log(3.0)]).reshape(2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(2, 1, 1)
    attend = functools.partial(kernels.plain_attention, query, key, value, None, scale=1.0, rate=0)
    assert attend(zero_keys=0).item() == pytest.approx(1 + 6)
    assert attend(zero_keys=4).item() == pytest.approx((1 + 6) / 2)


def test_plain_convolution_pads_with_zeros() -> None:
    """A kernel of ones counts neighbours, two channels apart: 4 at a corner of the map, 6, 9."""
    x = jnp.ones((1, 3, 3, 2))
    out = kernels.grouped_convolution(x, jnp.ones((3, 3, 1, 2)), jnp.array([0.0, 10.0]))
    assert out[0, ..., 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert out[0, ..., 1].tolist() == [[14, 16, 14], [16, 19, 16], [14, 16, 14]]


def _loss(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.jit(jax.grad(lambda *x: jnp.square(function(*x)).sum(), argnums=(0, 1, 2)))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_a_program_holds_the_form_of_the_platform_that_it_is_lowered_for(platform: str) -> None:
    """Also for TPU and GPU on a machine without one, and with gradients."""
    traced = _loss(kernels.depthwise_conv3x3).trace(*_convolution(4, 6)[0])
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == (platform not in kernels.DEPTHWISE_CONV)


def test_nothing_of_the_other_forms_is_kept_for_the_backward_pass() -> None:
    """In a scan, as in the policy's blocks: temporary memory is that of the form alone."""
    (query, key, value, _), _ = _attention((3,), 16, 16)

    def temporaries(attend: Callable[..., jax.Array]) -> int:
        def layers(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            step = lambda x, _: (x + attend(x, key, value), None)  # noqa: E731
            return jax.lax.scan(step, query, None, length=4)[0]

        compiled = _loss(layers).lower(query, key, value).compile()
        assert "conditional" not in (compiled.as_text() or "")
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    options: dict[str, Any] = {"scale": 1.0, "zero_keys": 0, "rate": 0.0}
    alone = lambda q, k, v: kernels.ATTENTION["xla"]["cpu"](q, k, v, None, **options)  # noqa: E731
    assert temporaries(functools.partial(kernels.attend, scale=1.0)) == temporaries(alone)
