"""The vision tower with its block pairs in a scan: the same parameters and numbers as in a loop."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.models.davit import Block, ChannelAttention, DaViT, WindowAttention

_PAIRS, _WIDTH, _DRAWS = 2, 8, 4000
_CONFIG = dataclasses.replace(
    tiny.CONFIG.vision,
    depths=(_PAIRS,),
    dim_embed=(_WIDTH,),
    num_heads=(2,),
    num_groups=(2,),
    patch_size=(7,),
    patch_stride=(4,),
    patch_padding=(3,),
    patch_prenorm=(False,),
    drop_path_rate=0.6,
)
_RATES = np.linspace(0, 0.6, 2 * _PAIRS)


def _params(tower: DaViT) -> Any:
    return jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


@pytest.mark.slow
def test_values_and_gradients_are_those_of_the_loop() -> None:
    loop, scan = DaViT(_CONFIG, remat="full"), DaViT(_CONFIG, remat="full", scan=True)
    params = _params(scan)
    assert tiny.equal(params, _params(loop))
    # 5 x 4 cells: windows of 3 x 3 do not divide them
    pixels = jax.random.normal(jax.random.key(1), (2, 20, 16, 3))

    def loss_and_gradient(tower: DaViT) -> Any:
        def loss(params: Any) -> jax.Array:
            return (jnp.asarray(tower.apply({"params": params}, pixels)) ** 2).mean()

        lowered = jax.jit(jax.value_and_grad(loss)).lower(params)
        assert ("while" in lowered.as_text()) == tower.scan
        return lowered.compile()(params)

    plain, scanned = loss_and_gradient(loop), loss_and_gradient(scan)
    jax.tree.map(_assert_rounding_apart, plain, scanned)


def _assert_rounding_apart(plain: jax.Array, scanned: jax.Array) -> None:
    """Sums of a leaf cancel, so rounding is measured by its largest value, not by each."""
    np.testing.assert_allclose(scanned, plain, rtol=0, atol=1e-5 * float(jnp.abs(plain).max()))


def test_each_branch_is_dropped_at_its_own_rate() -> None:
    """Branch k, of 2 a block, adds 1 to channel k of a map of zeros; kept, it counts 1 / keep."""
    tower = DaViT(_CONFIG, scan=True)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: _params(tower))
    )
    blocks = [f"stage0_{kind}{j}" for j in range(_PAIRS) for kind in ("spatial", "channel")]
    for i, name in enumerate(blocks):
        params[name]["attention"]["proj"]["bias"][2 * i] = 1.0
        params[name]["mlp"]["fc2"]["bias"][2 * i + 1] = 1.0
    pixels = jnp.zeros((_DRAWS, 8, 8, 3))
    rngs = {"dropout": jax.random.key(2)}
    out = np.asarray(
        jax.jit(lambda p: tower.apply({"params": p}, pixels, train=True, rngs=rngs))(params)
    )
    drawn = out[:, 0, 0]
    np.testing.assert_array_equal(out, np.broadcast_to(drawn[:, None, None], out.shape))
    keep = np.repeat(1.0 - _RATES, 2)
    np.testing.assert_allclose((drawn > 0).mean(axis=0), keep, atol=0.04)  # five deviations
    np.testing.assert_allclose(drawn.max(axis=0), 1.0 / keep, rtol=1e-6)
    same = np.corrcoef(drawn[:, 2:].T) - np.eye(6)
    assert np.abs(same).max() < 0.1, "every branch draws for itself"


@pytest.mark.parametrize("kind", [pytest.param("window", marks=pytest.mark.slow), "channel"])
def test_a_flat_block_gives_the_numbers_of_a_block_on_a_map(kind: str) -> None:
    """The same bits forward, dropped images included; gradients up to the order of sums."""
    window = functools.partial(WindowAttention, 2, 3)
    forms = {False: window, True: window}
    if kind == "channel":
        forms = {flat: functools.partial(ChannelAttention, 2, flat) for flat in forms}
    x = jax.random.normal(jax.random.key(1), (3, 5, 4, 8))
    params = Block(forms[False], 0.4).init(jax.random.key(0), x)

    def loss_and_gradients(flat: bool) -> Any:
        block = Block(forms[flat], 0.4, flat)

        def loss(params: Any, x: jax.Array) -> jax.Array:
            y = block.apply(params, x, True, rngs={"dropout": jax.random.key(2)})
            return (jnp.asarray(y) ** 3).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    (value, gradients), (flat_value, flat_gradients) = map(loss_and_gradients, (False, True))
    assert flat_value == value
    jax.tree.map(_assert_rounding_apart, gradients, flat_gradients)
