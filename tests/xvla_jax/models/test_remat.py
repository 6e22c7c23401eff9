"""Each policy gives the same gradients and computes again what it says."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xvla_jax.errors import ConfigError
from xvla_jax.models.layers import REMAT, rematerialised, stacked


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        y = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(4)(x)))
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
# product again (the second one's result is not needed), and both kinds do the tanh again.
@pytest.mark.parametrize(
    ("policy", "products", "tanhs"), [("none", 5, 1), ("dots", 5, 2), ("full", 6, 2)]
)
def test_what_is_computed_again(policy: str, products: int, tanhs: int) -> None:
    gradient, params = _gradient(policy, scanned=False)
    text = jax.jit(gradient).lower(params).as_text()
    assert len(re.findall(r"stablehlo\.dot_general", text)) == products
    assert len(re.findall(r"stablehlo\.tanh", text)) == tanhs


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config\.remat is 'True'; allowed are none, dots, full"):
        rematerialised(_Block, "True", scanned=False)
