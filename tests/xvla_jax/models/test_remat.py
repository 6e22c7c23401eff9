"""Each policy gives the same gradients and computes again what it says."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.models.davit import Block, ChannelAttention, WindowAttention
from xvla_jax.models.florence import BartLayer
from xvla_jax.models.layers import REMAT, Kept, rematerialised, stacked
from xvla_jax.models.soft_transformer import PolicyBlock


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        y = jnp.tanh(checkpoint_name(nn.Dense(4)(x), Kept.HIDDEN))
        y = nn.Dropout(0.5, deterministic=not train)(y)
        return x + nn.Dense(4)(jnp.sin(y)), None


def _gradient(policy: str, scanned: bool) -> Any:
    block = stacked(_Block, 2, remat=policy) if scanned else None
    module = block() if block else rematerialised(_Block, policy, scanned=False)()
    x, keys = jnp.arange(12.0).reshape(3, 4) / 12, {"dropout": jax.random.key(1)}
    params = module.init({"params": jax.random.key(0)}, x, False)["params"]

    def loss(params: Any) -> jax.Array:
        return (module.apply({"params": params}, x, True, rngs=keys)[0] ** 2).sum()  # pyright: ignore[reportIndexIssue]

    return jax.grad(loss), params


@pytest.mark.parametrize("scanned", [False, True])
def test_gradients_are_the_same_under_every_policy(scanned: bool) -> None:
    plain_gradient, params = _gradient("none", scanned)
    plain = plain_gradient(params)
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(plain))
    for policy in REMAT:
        gradient, _ = _gradient(policy, scanned)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            gradient(params),
            plain,
        )


# Forward 2 products and a tanh; backward 3 products, as x takes no gradient. "full" does the first
# product again (the second one's result is not needed), and all but "none" do the tanh again.
@pytest.mark.parametrize(
    ("policy", "products", "tanhs"),
    [("none", 5, 1), ("dots", 5, 2), ("named", 5, 2), ("full", 6, 2)],
)
def test_what_is_computed_again(policy: str, products: int, tanhs: int) -> None:
    gradient, params = _gradient(policy, scanned=False)
    text = jax.jit(gradient).lower(params).as_text()
    assert len(re.findall(r"stablehlo\.dot_general", text)) == products
    assert len(re.findall(r"stablehlo\.tanh", text)) == tanhs


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"config\.remat is 'True'; allowed are none, dots, named"
    ):
        rematerialised(_Block, "True", scanned=False)


_BLOCKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "head": (functools.partial(PolicyBlock, 8, 2, 16), (2, 5, 8)),
    "text": (functools.partial(BartLayer, tiny.CONFIG.text), (2, 5, tiny.CONFIG.text.d_model)),
    "window": (
        functools.partial(Block, functools.partial(WindowAttention, 2, 3), 0.5),
        (2, 4, 4, 8),
    ),
    "channel": (
        functools.partial(Block, functools.partial(ChannelAttention, 2, True), 0.5, True),
        (2, 4, 4, 8),
    ),
}


@pytest.mark.parametrize(
    ("name", "sums"), [("head", 4), ("text", 6), ("window", 4), ("channel", 4)]
)
def test_named_keeps_of_a_block_what_it_names_and_no_float32(name: str, sums: int) -> None:
    make, shape = _BLOCKS[name]
    block = rematerialised(make.func, "named", scanned=False)(*make.args, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    params = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False)["params"], x)

    def residuals(params: Any, x: jax.Array) -> Any:
        key = {"dropout": jax.random.key(1)}
        return jax.vjp(lambda p, x: block.apply({"params": p}, x, True, rngs=key), params, x)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, params, x))
    # the block's input, products of q, k and v in one or three, attention, the sum, the MLP
    assert len([a for a in kept if a.dtype == jnp.bfloat16 and a.size >= x.size]) == 1 + sums
    weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    assert {a.shape for a in kept if a.dtype == jnp.float32} <= weights
