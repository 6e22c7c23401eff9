"""Each guard lists what it guards against, and nothing in a correct step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.xvla_jax import tiny
from xvla_jax.lora import adapted_params, apply_adapter
from xvla_jax.planning import hlo
from xvla_jax.planning.programs import (
    gathers_of_optimizer_state,
    gradients_of_merged,
    host_calls,
    sums_of_activations,
    wide_products,
)
from xvla_jax.sharding import global_batch
from xvla_jax.training.state import TrainState


def _module(function: Any, *arguments: Any, **options: Any) -> hlo.Module:
    return hlo.parse(jax.jit(function, **options).lower(*arguments).compile().as_text())


def test_a_callback_is_listed() -> None:
    def step(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: None, x.sum())
        return x + 1

    assert len(host_calls(_module(step, jnp.ones(4)))) == 1
    assert host_calls(_module(lambda x: x + 1, jnp.ones(4))) == []


def test_products_of_two_float32_operands_are_listed() -> None:
    x = jnp.ones((4, 4))
    assert len(wide_products(_module(jnp.matmul, x, x))) == 1
    mixed = """
ENTRY %main (l: f32[4,4], r: bf16[4,4]) -> f32[4,4] {
  %l = f32[4,4] parameter(0)
  %r = bf16[4,4] parameter(1)
  ROOT %y = f32[4,4] convolution(%l, %r), dim_labels=bf_io->bf
}
"""
    assert wide_products(hlo.parse(mixed)) == []


def test_the_gradients_of_matrices_that_an_adapter_changes_are_listed() -> None:
    pair = {"a": jnp.ones((64, 8)), "b": jnp.ones((8, 64))}
    base, x = jnp.ones((64, 64)), jnp.ones((4, 64))

    def module(*, apart: bool) -> hlo.Module:
        def loss(pair: Any, merged: Any) -> jax.Array:
            tensors, scales = {"w": pair}, {("w",): 2.0}
            weights = (
                adapted_params(merged, tensors, scales)
                if apart
                else apply_adapter({"w": base}, tensors, scales)
            )
            return ((x @ weights["w"]) ** 2).sum()

        def gradient(pair: Any) -> Any:
            return jax.grad(loss)(pair, apply_adapter({"w": base}, {"w": pair}, {("w",): 2.0}))

        return _module(gradient, pair)

    assert len(gradients_of_merged(module(apart=False))) == 2, "of a and of b"
    assert gradients_of_merged(module(apart=True)) == []
    names = wide_products(module(apart=True))
    assert len(names) == 5, "x @ w; x @ a, and its slope; the gradients of a and of b"


@pytest.mark.parametrize(("placed", "count"), [(P("fsdp"), 0), (P(), 1)])
def test_a_gather_of_optimizer_state_is_listed(placed: P, count: int) -> None:
    mesh = tiny.mesh(2, 4)
    split = jax.ShapeDtypeStruct((256, 256), np.float32, sharding=NamedSharding(mesh, P("fsdp")))

    def update(state: TrainState) -> Any:
        return state.params - state.opt_state[0], jnp.sqrt((state.opt_state[0] ** 2).sum())

    zero = jnp.zeros([], jnp.int32)
    state = TrainState(zero, split, (split,), {}, zero)
    out = (NamedSharding(mesh, placed), NamedSharding(mesh, P()))
    module = _module(update, state, out_shardings=out)
    assert len(gathers_of_optimizer_state(module)) == count


@pytest.mark.parametrize(("rows", "count"), [(P("fsdp"), 1), (P(), 0)])
def test_a_sum_of_activations_is_listed(rows: P, count: int) -> None:
    mesh = tiny.mesh(2, 4)
    x = jax.ShapeDtypeStruct((128, 64), np.float32, sharding=NamedSharding(mesh, P("data")))
    w = jax.ShapeDtypeStruct((64, 256), np.float32, sharding=NamedSharding(mesh, rows))

    def loss(w: Any, x: Any) -> Any:
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data", *rows)))
        y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("data")))
        return (y**2).sum()

    assert len(sums_of_activations(_module(jax.grad(loss), w, x))) == count


@pytest.mark.slow
def test_the_train_step_keeps_its_state_where_it_is_and_leaves_the_host_alone() -> None:
    batch = global_batch(tiny.batch(), tiny.mesh(2, 4))
    with jax.set_mesh(tiny.mesh(2, 4)):
        lowered = tiny.train_step().lower(tiny.abstract(2, 4), batch)
    module = hlo.parse(lowered.compile().as_text())
    names = [line.op_name for line in module.computations[module.entry].values()]
    assert any(name.startswith("state.opt_state") for name in names), "it is known by its name"
    assert gathers_of_optimizer_state(module) == []
    assert sums_of_activations(module) == []
    assert host_calls(module) == []
