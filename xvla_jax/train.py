"""TrainState, its sharded initialisation, and the jitted train step.

All randomness of a step is a function of (seed, step): noise, flow time, dropout. Nothing depends
on the number of hosts or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from xvla_jax import flow
from xvla_jax.batch import normalise
from xvla_jax.models.xvla import XVLA, init_params
from xvla_jax.processor import Processor
from xvla_jax.sharding import tree_shardings

Array = jax.Array
Metrics = dict[str, Array]


class TrainState(struct.PyTreeNode):
    """What a step changes."""

    step: Array  # int32, steps taken
    params: Any
    opt_state: Any


def abstract_state(model: XVLA, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    shapes = jax.eval_shape(
        lambda key: _fresh(model, optimizer, init_params(model, key)), jax.random.key(0)
    )
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(
    model: XVLA,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    params: Mapping[str, Any] | None = None,
) -> TrainState:
    """A fresh state on the mesh, from given parameters (numpy or jax) or from random ones.

    Every leaf is made where it lives: the whole model is never on one device.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    if params is None:
        make = jax.jit(
            lambda key: _fresh(model, optimizer, init_params(model, key)), out_shardings=shardings
        )
        # rbg: compiles in a third of the time that a threefry for each of hundreds of leaves takes
        return make(jax.random.key(seed, impl="rbg"))
    placed = jax.device_put(dict(params), shardings.params)
    return jax.jit(lambda p: _fresh(model, optimizer, p), out_shardings=shardings)(placed)


def _fresh(model: XVLA, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    del model
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.init(params))


def make_train_step(
    model: XVLA, optimizer: optax.GradientTransformation, processor: Processor, *, seed: int
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """The jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    Metrics: the loss terms, ``loss``, ``grad_norm`` (before clipping).
    """

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        noise_key, time_key, dropout_key = jax.random.split(
            jax.random.fold_in(jax.random.key(seed), state.step), 3
        )
        actions = batch["actions"]
        noise = jax.random.normal(noise_key, actions.shape, jnp.float32)
        t = flow.stratified_time(jax.random.uniform(time_key), actions.shape[0])
        inputs = {k: v for k, v in batch.items() if k != "images"}
        inputs["pixels"] = normalise(batch["images"], processor.mean, processor.std)

        def loss(params: Any) -> tuple[Array, Metrics]:
            terms = flow.loss_terms(model, params, inputs, noise=noise, t=t, rng=dropout_key)
            return sum(terms.values(), start=jnp.zeros(())), terms

        (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = dict(terms) | {"loss": total, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
