"""Losses, gradients and AdamW steps against the original: all that compiles the backward pass."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.xvla_jax import golden
from tests.xvla_jax.golden import assert_close
from xvla_jax import flow
from xvla_jax.checkpoints import torch_tensors
from xvla_jax.training.groups import label_tree, xvla_groups
from xvla_jax.training.optimizer import OptimizerConfig, make_optimizer

pytestmark = pytest.mark.parametrize("name", golden.CASES)

# Zero in exact arithmetic, as softmax ignores a constant: the reference holds rounding noise.
_NOISE = "self_attn.k_proj.bias"

_global_norm = jax.jit(optax.tree.norm)


def _norms(tree: Any, case: golden.Case) -> dict[str, float]:
    return {
        name: float(np.linalg.norm(value.astype(np.float64)))
        for name, value in torch_tensors.iter_released(tree, case.config)
    }


def test_losses_by_name_and_times(name: str) -> None:
    case = golden.load(name)
    for step in range(3):
        t = flow.stratified_time(jnp.asarray(case.inputs["train_u"][step]), len(case.pixels))
        np.testing.assert_allclose(t, case.outputs[f"train_t/{step}"], atol=1e-6, rtol=0)
    terms, _ = case.loss_and_grads(case.params, 0)
    expected = {k.removeprefix("loss/") for k in case.outputs if k.startswith("loss/")} - {"total"}
    assert set(terms) == expected
    for term, value in terms.items():
        assert_close("loss/*", value, case.outputs[f"loss/{term}"], rtol=5e-6)
    assert_close("loss/*", sum(map(float, terms.values())), case.outputs["loss/total"], rtol=5e-6)


def test_gradients(name: str) -> None:
    case = golden.load(name)
    out = case.outputs
    _, grads = case.loss_and_grads(case.params, 0)
    actual = _norms(grads, case)
    assert set(actual) == set(out["grad/names"])
    total = float(out["grad/global_norm"])
    assert_close("grad/global_norm", float(_global_norm(grads)), total, rtol=1e-5)
    for parameter, expected in zip(out["grad/names"], out["grad/norms"], strict=True):
        if parameter.endswith(_NOISE):
            assert actual[parameter] < 1e-6 * total
        else:
            assert_close("grad/norms", actual[parameter], expected, rtol=1e-4)
    full = dict(torch_tensors.iter_released(grads, case.config))
    compared = 0
    for key, expected in out.items():
        if key.startswith("grad_full/"):
            compared += 1
            assert_close(
                "grad_full/*", full[key.removeprefix("grad_full/")], expected, of_largest=1e-4
            )
    assert compared >= 10


def test_the_padding_row_takes_no_gradient(name: str) -> None:
    case = golden.load(name)
    _, grads = case.loss_and_grads(case.params, 0)
    table = np.asarray(grads["vlm"]["text_encoder"]["token_embedding"])
    assert (table[1] == 0).all()
    assert np.abs(table[0]).max() > 0
    assert np.abs(table[2]).max() > 0


def test_three_adamw_steps(name: str) -> None:
    case = golden.load(name)
    out = case.outputs
    meta = json.loads((golden.FOLDER / name / "meta.json").read_text())
    config = OptimizerConfig(
        schedule="xvla_release",
        iters=10,
        learning_rate=meta["learning_rate"],
        learning_coef=meta["learning_coef"],
        freeze_steps=0,
        weight_decay=meta["weight_decay"],
        betas=tuple(meta["betas"]),
        eps=meta["eps"],
        max_grad_norm=meta["max_grad_norm"],
    )
    optimizer = make_optimizer(config, xvla_groups(config.learning_coef))
    start = jax.tree.map(np.asarray, dict(case.params))
    params, state = start, optimizer.init(start)
    update = jax.jit(_updated, static_argnums=0)
    losses, norms = [], []
    for step in range(3):
        terms, grads = case.loss_and_grads(params, step)
        losses.append(sum(map(float, terms.values())))
        norms.append(float(_global_norm(grads)))
        params, state = update(optimizer, grads, state, params)
        if step in (0, 2):
            _compare_parameters(case, start, params, f"adamw/step{step + 1}")
    assert_close("adamw/losses", losses, out["adamw/losses"], rtol=1e-4)
    assert_close("adamw/grad_norms", norms, out["adamw/grad_norms"], rtol=1e-4)
    after = sum(float(v) for v in case.loss_and_grads(params, 0)[0].values())
    assert_close("adamw/loss_after", after, out["adamw/loss_after"], rtol=1e-4)


def _updated(optimizer: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(
        grads, state, params, norm=optax.tree.norm(grads), finite=jnp.array(True)
    )
    return optax.apply_updates(params, updates), state


def _compare_parameters(case: golden.Case, start: Any, params: Any, key: str) -> None:
    actual = _norms(params, case)
    change = _norms(jax.tree.map(lambda a, b: np.asarray(a) - b, params, start), case)
    names = case.outputs["grad/names"]
    for parameter, norm, update in zip(
        names, case.outputs[f"{key}/param_norms"], case.outputs[f"{key}/update_norms"], strict=True
    ):
        if parameter.endswith(_NOISE):
            continue  # Adam divides noise by noise
        assert_close("adamw/*/param_norms", actual[parameter], norm, rtol=1e-6)
        assert_close("adamw/*/update_norms", change[parameter], update, rtol=2e-3)


def test_every_parameter_is_in_the_reference_group(name: str) -> None:
    case = golden.load(name)
    labels = label_tree(case.params, xvla_groups(1.0))
    by_path = {
        tuple(k.key for k in path): label.groups[0].name
        for path, label in jax.tree_util.tree_leaves_with_path(labels)
    }
    ours = {row.torch: by_path[row.path] for row in torch_tensors.rows(case.config)}
    assert ours == dict(
        zip(case.outputs["grad/names"], case.outputs["adamw/group_of"], strict=True)
    )
