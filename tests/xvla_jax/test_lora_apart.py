"""The complete step with an adapter kept apart, held against the same model with merged weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.xvla_jax import products, tiny
from xvla_jax import flow, sharding
from xvla_jax.batch import normalise
from xvla_jax.lora import LoraConfig, init_adapter
from xvla_jax.models.xvla import abstract_params
from xvla_jax.training.state import Recipe, abstract_state
from xvla_jax.training.step import make_train_step

# Linear layers of all kinds, some layers of the stacks alone, and the convolutions of the tower.
_LORA = LoraConfig(
    rank=2,
    alpha=6,
    target_modules=r".*((convs|blocks)\.\d.*(proj|qkv|fc1)|1\..*fc2|[kqv]_proj|(vlm|visual)_proj)",
)
_MODEL = tiny.MODEL.clone(remat="full", scan_vision=True)
_RECIPE = dataclasses.replace(tiny.RECIPE, model=_MODEL, lora=_LORA)


def _batch(size: int = 8) -> dict[str, np.ndarray]:
    host = tiny.batch(size=size)
    return host | {"images": host["images"][:, :2]}


@functools.cache
def _base() -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), abstract_params(tiny.CONFIG)
    )


def _tensors() -> Any:
    """A trained adapter: B is not zero where a layer is adapted."""
    fresh = init_adapter(_base(), tiny.CONFIG, _LORA.peft(), seed=3).tensors
    rng = np.random.default_rng(1)

    def moved(path: Any, leaf: Any) -> Any:
        if path[-1].key != "b":
            return leaf
        a: Any = fresh
        for key in path[:-1]:
            a = a[key.key]
        used = np.abs(a["a"]).reshape(a["a"].shape[0], -1).max(axis=1) > 0
        layers = used.reshape(-1, *[1] * (leaf.ndim - 1)) if leaf.ndim == 3 else 1.0
        return (layers * rng.normal(0, 0.1, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(moved, fresh)


def _gradients(recipe: Recipe, data: int, fsdp: int, *, merged: bool = False) -> Any:
    """Loss and gradients of the adapter's tensors on a mesh, with dropout."""
    mesh = tiny.mesh(data, fsdp)
    noise = np.random.default_rng(2).normal(size=(8, tiny.CONFIG.num_actions, 20))
    host = _batch() | {"noise": noise.astype(np.float32)}

    def loss(tensors: Any, base: Any, batch: Any) -> jax.Array:
        pixels = normalise(batch["images"], tiny.PROCESSOR.mean, tiny.PROCESSOR.std)
        weights = recipe.merged(tensors, base)
        if not merged:
            weights = recipe.weights(tensors, jax.lax.stop_gradient(weights))
        terms = flow.loss_terms(
            recipe.model,
            weights,
            batch | {"pixels": pixels},
            noise=batch["noise"],
            t=jnp.linspace(0.1, 0.9, 8),
            rng=jax.random.key(5),
        )
        return sum(terms.values(), start=jnp.zeros(()))

    state = abstract_state(recipe, mesh)
    placed = [
        jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, shapes))
        for tree, shapes in ((_tensors(), state.params), (_base(), state.base))
    ]
    with jax.set_mesh(mesh):
        value, grads = jax.jit(jax.value_and_grad(loss))(*placed, sharding.global_batch(host, mesh))
    return float(value), flatten_dict(jax.device_get(grads))


def _assert_close(actual: Any, expected: Any, *, bound: float) -> None:
    (value, grads), (other, others) = actual, expected
    assert value == pytest.approx(other, rel=bound)
    for path, leaf in others.items():
        error = np.linalg.norm(grads[path] - leaf)
        assert error <= bound * np.linalg.norm(leaf), f"{path}: {error / np.linalg.norm(leaf):.2g}"


@pytest.mark.slow
def test_no_gradient_in_the_step_has_the_size_of_an_adapted_matrix() -> None:
    mesh = tiny.mesh(1, 1)
    # 5 samples: the numbers of tokens are no widths of the model
    state, batch = abstract_state(_RECIPE, mesh), sharding.global_batch(_batch(5), mesh)
    step: Any = make_train_step(_RECIPE, tiny.PROCESSOR, seed=0)
    shapes = products.shapes(step.trace(state, batch).jaxpr.jaxpr, longer=_LORA.rank)
    assert _RECIPE.adapter is not None
    base: Any = flatten_dict(abstract_params(tiny.CONFIG))
    kernels = {
        tuple(sorted(base[path].shape[1 if scale.ndim else 0 :]))
        for path, scale in _RECIPE.adapter.scales.items()
    }
    assert {(32, 96), (3, 3, 8, 16)} <= kernels
    assert shapes
    assert kernels & shapes == set(), "all that has its size is a @ b"


@pytest.mark.slow
def test_loss_and_gradients_are_those_of_merged_weights_on_any_mesh() -> None:
    merged = _gradients(_RECIPE, 1, 1, merged=True)
    for mesh in ((8, 1), (2, 4)):
        _assert_close(_gradients(_RECIPE, *mesh), merged, bound=1e-5)
    head = merged[1]["transformer", "blocks", "mlp", "fc2", "kernel", "a"]
    assert not head[0].any(), "the first layer of the head is not adapted"
    assert head[1].any()
