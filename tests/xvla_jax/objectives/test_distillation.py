"""Distillation: the teacher's chunk as a target, the student's times, and what checkpoints hold."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow, sharding
from xvla_jax.batch import normalise
from xvla_jax.checkpoints.relabel import relabelled_config
from xvla_jax.errors import ConfigError
from xvla_jax.models.inference import inference_params
from xvla_jax.models.xvla import XVLA, abstract_params
from xvla_jax.objectives.distillation import Distillation
from xvla_jax.planning.report import bytes_of
from xvla_jax.training.state import abstract_state, init_state, place_teacher
from xvla_jax.training.step import make_train_step

_B, _K, _T = 2, 2, tiny.CONFIG.num_actions
# One block of each tower: quick to compile.
_TEXT = dataclasses.replace(tiny.ONE_STAGE.text, encoder_layers=1)
_MODEL = XVLA(dataclasses.replace(tiny.ONE_STAGE, depth=1, text=_TEXT))
_DISTILL = Distillation.of(_MODEL, "exact3", 1)
_RECIPE = dataclasses.replace(tiny.RECIPE, model=_MODEL, distill=_DISTILL)


def _inputs() -> dict[str, Any]:
    """Two observations with two views; the second one lacks a channel."""
    host: dict[str, Any] = tiny.batch(size=_B)
    pixels = normalise(host.pop("images")[:, :2], tiny.PROCESSOR.mean, tiny.PROCESSOR.std)
    mask = np.ones((_B, 20), bool)
    mask[1, 2] = False
    return host | {"pixels": pixels, "channel_mask": mask, "view_mask": host["view_mask"][:, :2]}


@functools.cache
def _params() -> Any:
    """Returns parameters of the model as numpy arrays, without a program that makes them."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        constant = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)
        if constant is None:
            return rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, constant, np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(_MODEL.config))


def test_times_are_those_of_the_students_steps() -> None:
    spread = flow.stratified_time(jnp.float32(0.3), 8)
    for steps in (1, 2, 3):
        times = dataclasses.replace(_DISTILL, steps=steps).times(spread)
        expected = [(steps - i) / steps for i in range(steps)]
        assert sorted(set(times.tolist()), reverse=True) == pytest.approx(expected)
        counts = np.unique(times, return_counts=True)[1]
        assert counts.max() - counts.min() <= 1


@pytest.mark.slow
def test_targets_are_the_chunks_of_the_teachers_sampler() -> None:
    """Row by row as a policy's program makes them, whose context serves one chunk."""
    batch, params = _inputs(), inference_params(_params())
    noise = np.random.default_rng(1).normal(size=(_B, _K, _T, 20)).astype(np.float32)
    several = np.asarray(jax.jit(_DISTILL.targets)(params, batch, noise))
    assert several.shape == noise.shape
    model = _DISTILL.teacher
    views = [batch[name] for name in ("pixels", "view_mask", "input_ids")]

    @jax.jit
    def acted(noise: Any, mask: Any) -> jax.Array:
        context: Any = model.apply({"params": params}, *views, method="encode")
        rows = batch["proprio"], batch["domain_id"]
        return flow.sample(model, params, context, *rows, noise=noise, steps=3, channel_mask=mask)

    for k in range(_K):
        chunk = acted(noise[:, k], batch["channel_mask"])
        np.testing.assert_allclose(several[:, k], chunk, atol=3e-6)
    every = np.asarray(acted(noise[:, 0], np.ones((_B, 20), bool)))
    assert np.abs(several[1, 0] - every[1]).max() > 1e-5, "a channel without data stays hidden"
    assert 0 < several[..., 9].min() < several[..., 9].max() < 1, "grippers are probabilities"


def test_a_squared_error_of_a_logit_takes_the_logit() -> None:
    """SO-101's grippers; poses and joints compare logits by cross-entropy alone."""
    space = flow.action_space(relabelled_config(tiny.CONFIG, "so101_bimanual", 0))
    raw = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 3, 20)), jnp.float32)
    chunk = space.postprocess(raw)
    assert np.abs(chunk - raw[..., :12]).max() > 0.1
    np.testing.assert_allclose(space.as_target(chunk), raw[..., :12], atol=1e-5)
    space = flow.action_space(tiny.CONFIG)
    chunk = space.postprocess(raw)
    np.testing.assert_array_equal(space.as_target(chunk), chunk)
    soft = space.losses(raw, chunk)["gripper_loss"]
    for shift in (-0.1, 0.1):  # lowest where the student's probability is the teacher's
        other = raw.at[..., jnp.asarray([9, 19])].add(shift)
        assert float(space.losses(other, chunk)["gripper_loss"]) > float(soft)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_compares_the_student_with_its_teacher(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded actions are not read; noise, times and targets go together, without dropout."""

    def targets(_: Distillation, params: Any, batch: Any, noise: jax.Array) -> jax.Array:
        return noise * params["factor"] + batch["proprio"][:, None, :1]

    def show(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, **given: Any
    ) -> dict[str, jax.Array]:
        assert given["rng"] is None
        expected = 3.0 * noise + batch["proprio"][:, None, :1]
        difference = jnp.abs(batch["actions"] - expected).max((1, 2))
        return {"difference": difference + 0.0 * params["w"], "t": given["t"]}

    monkeypatch.setattr(Distillation, "targets", targets)
    monkeypatch.setattr(flow, "sample_losses", show)
    student = dataclasses.replace(_DISTILL, steps=2)
    recipe = dataclasses.replace(tiny.ONE_WEIGHT, distill=student, accumulate=parts)
    state = recipe.fresh({"w": jnp.ones(())})
    state = state.replace(step=jnp.int32(0), teacher={"factor": jnp.float32(3.0)})
    run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
    after, metrics = run(state, sharding.global_batch(tiny.batch(), tiny.mesh(1, 1)))
    assert float(metrics["difference"]) < 1e-5
    assert float(metrics["t"]) == pytest.approx(0.75)  # half of the rows each at 1 and 1/2
    assert float(after.teacher["factor"]) == 3.0


def test_a_teacher_is_placed_apart_in_the_computing_type() -> None:
    mesh = tiny.mesh(1, 2)
    shapes = abstract_state(_RECIPE, mesh)
    assert bytes_of(shapes.teacher) == bytes_of(shapes.params)
    half = Distillation.of(_MODEL.clone(dtype=jnp.bfloat16), "exact3", 1)
    shapes = abstract_state(dataclasses.replace(_RECIPE, distill=half), mesh)
    assert bytes_of(shapes.teacher) < 0.6 * bytes_of(shapes.params)


@pytest.mark.slow
def test_a_student_comes_nearer_to_its_teacher() -> None:
    """Steps on one batch; the teacher stays what it was."""
    mesh, params = tiny.mesh(1, 1), _params()
    state = init_state(_RECIPE, mesh, seed=0, params=params)
    state = place_teacher(state, _RECIPE, mesh, params)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (state, abstract_state(_RECIPE, mesh)))
    assert kinds[0] == kinds[1]
    run, losses = make_train_step(_RECIPE, tiny.PROCESSOR, seed=0), []
    batch = tiny.batch()
    batch["images"] = batch["images"][:, :2]
    placed = sharding.global_batch(batch, mesh)
    with jax.set_mesh(mesh):
        for _ in range(30):
            state, metrics = run(state, placed)
            losses.append(float(metrics["position_loss"] + metrics["rotate6D_loss"]))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3]), losses
    assert tiny.equal(state.teacher, inference_params(params))


@pytest.mark.parametrize(
    ("plan", "steps", "message"),
    [
        ("exact99", 1, r"config.distill.teacher_plan is 'exact99'; allowed are exact10"),
        ("adaptive10", 1, r"'adaptive10', whose samples stop by themselves; allowed are exact10"),
        ("exact3", 3, r"config.distill.steps is 3; 0 for no distillation, or 1 to 2 of the 3"),
        ("exact10", -1, r"config.distill.steps is -1; 0 for no distillation, or 1 to 9"),
    ],
)
def test_plans_and_steps_that_do_not_fit_are_refused(plan: str, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation.of(_MODEL, plan, steps)
