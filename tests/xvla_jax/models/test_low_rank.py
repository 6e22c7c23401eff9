"""A pair beside a kernel: what a merged kernel gives, and no gradient of the kernel's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.xvla_jax import products
from xvla_jax.models.layers import REMAT, KeyProjection, Mlp, PackedQKV, stacked
from xvla_jax.models.low_rank import AdaptedKernel, Conv, Dense

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 8)), jnp.float32)

RANK = 2


class _Block(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        mlp = Mlp(12, nn.gelu, hidden_dropout=0.5, dtype=self.dtype, name="mlp")
        return x + mlp(x, train=train), None


def _layers(dtype: Any = jnp.float32) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Layers that an adapter changes, with the arguments of their call beside x."""
    scans: dict[str, Any] = {
        f"scan, remat {name}": (stacked(_Block, 3, remat=name)(dtype=dtype), (True,))
        for name in REMAT
    }
    return scans | {
        "linear": (Dense(6, dtype=dtype), ()),
        "packed": (PackedQKV(2, dtype=dtype), ()),
        "key": (KeyProjection(dtype=dtype), ()),
        "convolution": (Conv(6, (3, 3), strides=2, padding=1, dtype=dtype), ()),
    }


def _random(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), shapes)


def _case(name: str, dtype: Any = jnp.float32) -> tuple[Any, Any, Callable[..., jax.Array]]:
    """Parameters, pairs for all kernels, and a loss of parameters and x."""
    layer, arguments = _layers(dtype)[name]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(lambda: layer.init(keys, X, *arguments))["params"]
    params = _random(shapes, 1)

    kernels = {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}

    def pair(leaf: Any) -> Any:
        *window, fan_in, out = leaf.shape  # of a scan, the layers come first
        ones = window if "scan" in name else [1] * len(window)
        shapes = {"a": (*window, fan_in, RANK), "b": (*ones, RANK, out)}
        return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    pairs = _random({path: pair(leaf) for path, leaf in kernels.items()}, 2)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        y = layer.apply({"params": params}, x, *arguments, rngs={"dropout": jax.random.key(2)})
        leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(y)]
        return sum((jnp.sin(leaf / 4).sum() for leaf in leaves), start=jnp.zeros(()))

    return params, pairs, loss


def _changed(params: Any, pairs: Any, *, merged: bool) -> Any:
    flat: dict[Any, Any] = dict(flatten_dict(params))
    for path, pair in pairs.items():
        kernel, a, b = flat[path], pair["a"], pair["b"]
        complete = kernel + a @ b
        flat[path] = complete if merged else AdaptedKernel(jax.lax.stop_gradient(complete), a, b)
    return unflatten_dict(flat)


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        *((name, jnp.float32, 1e-5) for name in _layers()),
        ("scan, remat full", jnp.bfloat16, 5e-2),
        ("convolution", jnp.bfloat16, 5e-2),
    ],
)
def test_a_pair_gives_loss_and_gradients_of_the_merged_kernel(
    name: str, dtype: Any, bound: float
) -> None:
    params, pairs, loss = _case(name, dtype)

    def gradients(merged: bool) -> Any:
        @jax.jit
        def of(pairs: Any, x: jax.Array) -> jax.Array:
            return loss(_changed(params, pairs, merged=merged), x)

        return jax.value_and_grad(of, argnums=(0, 1))(pairs, X)

    (apart, changes), (merged, expected) = gradients(merged=False), gradients(merged=True)
    np.testing.assert_allclose(apart, merged, rtol=bound, atol=bound)
    assert abs(float(merged) - float(loss(params, X))) > 0.1, "the pairs matter"
    for a, b in zip(jax.tree.leaves(changes), jax.tree.leaves(expected), strict=True):
        assert float(jnp.linalg.norm(b)) > 0.1
        assert float(jnp.linalg.norm(a - b)) <= bound * float(jnp.linalg.norm(b))


@pytest.mark.parametrize("name", ["scan, remat dots", "linear", "convolution"])
def test_no_gradient_has_the_size_of_a_kernel(name: str) -> None:
    params, pairs, loss = _case(name)

    def shapes(merged: bool) -> set[tuple[int, ...]]:
        def of(pairs: Any) -> jax.Array:
            return loss(_changed(params, pairs, merged=merged), X)

        return products.shapes(jax.make_jaxpr(jax.grad(of))(pairs).jaxpr, longer=RANK)

    stack = 1 if "scan" in name else 0
    flat: Any = flatten_dict(params)
    kernels = {tuple(sorted(flat[path].shape[stack:])) for path in pairs}
    assert kernels & shapes(merged=True), "the gradient of a complete matrix is seen as one"
    assert not kernels & shapes(merged=False)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (Dense(6, dtype=jnp.bfloat16), nn.Dense(6, dtype=jnp.bfloat16)),
        (Conv(6, (3, 3), padding=1, dtype=None), nn.Conv(6, (3, 3), padding=1)),
    ],
)
def test_without_a_pair_the_program_is_that_of_flax(ours: nn.Module, plain: nn.Module) -> None:
    texts = []
    for layer in (ours, plain):
        shapes = jax.eval_shape(lambda layer=layer: layer.init(jax.random.key(0), X))
        lowered = jax.jit(layer.apply).lower(shapes, X)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]
