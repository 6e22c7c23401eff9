"""A train step with packed views is the padded step: on any mesh, and with all other options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import sharding
from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig
from xvla_jax.models import kernels
from xvla_jax.models.fused_attention import fused_attention
from xvla_jax.models.xvla import XVLA, init_params
from xvla_jax.planning import flops, hlo
from xvla_jax.planning.programs import GUARDS, exchanges_of_packed_views
from xvla_jax.planning.traffic import pieces
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, abstract_state, init_state
from xvla_jax.training.step import make_train_step

_SIZE = 32
_SHARE = 0.75  # of the 8 slots that four samples have on each of 8 devices: 6 places
_RECIPE = Recipe(
    XVLA(tiny.ONE_STAGE),
    OptimizerConfig(schedule="constant", iters=100, learning_rate=1e-3, freeze_steps=0),
)
_FITTING = (1, 2, 1, 1) * 8  # images of each sample: 5 a device
_OVERFLOWING = (1, 2, 1, 1) * 6 + (2,) * 8  # 8 on the last two of 8 devices


def _batch(counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A batch whose samples have so many images; those of absent views are zero."""
    batch = tiny.batch(size=_SIZE)
    mask = np.arange(3) < np.array(counts)[:, None]
    images = np.where(mask[:, :, None, None, None], batch["images"], 0).astype(np.uint8)
    return batch | {"view_mask": mask, "images": images[:, :2]}


def _packed(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, model=recipe.model.clone(packed_views=_SHARE))


class _Program:
    """A compiled train step and what it gives for a batch, from the fresh state of seed 0."""

    def __init__(self, recipe: Recipe, data: int, fsdp: int) -> None:
        self._mesh = tiny.mesh(data, fsdp)
        self._recipe = recipe
        step = make_train_step(recipe, tiny.PROCESSOR, seed=0)
        state = abstract_state(recipe, self._mesh)
        with jax.set_mesh(self._mesh):
            batch = sharding.global_batch(_batch(_FITTING), self._mesh)
            self._step = step.lower(state, batch).compile()
        self.module = hlo.parse(self._step.as_text())

    def __call__(self, counts: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
        """Returns the moments after a step, which show every gradient, and the metrics."""
        state = init_state(self._recipe, self._mesh, seed=0, params=_params())
        with jax.set_mesh(self._mesh):
            batch = sharding.global_batch(_batch(counts), self._mesh)
            state, metrics = self._step(state, batch)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        return jax.tree.map(np.asarray, moments), jax.tree.map(np.asarray, metrics)


@functools.cache
def _params() -> Any:
    made = jax.jit(functools.partial(init_params, _RECIPE.model))(jax.random.key(0, impl="rbg"))
    return jax.tree.map(np.asarray, made)


# Also several draws of an observation, each with a delay.
_LORA_IN_PARTS = dataclasses.replace(
    _RECIPE,
    model=XVLA(dataclasses.replace(tiny.ONE_STAGE, rtc_max_delay=2)),
    lora=LoraConfig(rank=2, alpha=4),
    accumulate=2,
    noise_draws=2,
)
_HEADS = dataclasses.replace(
    _RECIPE, config=dataclasses.replace(_RECIPE.config, mode="prompts_and_heads")
)


@functools.cache
def _program(recipe: Recipe, data: int, fsdp: int) -> _Program:
    return _Program(recipe, data, fsdp)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [_FITTING, _OVERFLOWING], ids=["fitting", "overflowing"])
@pytest.mark.parametrize(
    ("recipe", "data", "fsdp"),
    [(_RECIPE, 8, 1), (_RECIPE, 2, 4), (_LORA_IN_PARTS, 2, 2)],
    ids=["8x1", "2x4", "lora in parts"],
)
def test_a_packed_step_is_the_padded_step(
    recipe: Recipe, data: int, fsdp: int, counts: tuple[int, ...]
) -> None:
    moments, metrics = _program(_packed(recipe), data, fsdp)(counts)
    padded_moments, padded = _program(recipe, 1, 1)(counts)
    extra = {"packed_unused", "packed_overflow"}
    assert set(metrics) - set(padded) == extra
    for name, value in padded.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    for ours, theirs in zip(moments, padded_moments, strict=True):
        largest = max(float(abs(theirs).max()), 1e-12)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * largest)
    assert float(metrics["packed_overflow"]) == (0.0 if counts is _FITTING else 1.0)


@pytest.mark.slow
def test_a_frozen_tower_packs_all_the_same() -> None:
    _, metrics = _program(_packed(_HEADS), 2, 4)(_OVERFLOWING)
    _, padded = _program(_RECIPE, 1, 1)(_OVERFLOWING)
    for name in ("loss", "grad_norm/action_heads", "grad_norm/soft_prompts"):
        np.testing.assert_allclose(metrics[name], padded[name], rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_the_compiled_step_computes_the_places_alone() -> None:
    """In the planner's eyes too, which skips the second pass; nothing goes between devices."""
    packed, padded = _program(_packed(_RECIPE), 2, 4).module, _program(_RECIPE, 1, 1).module
    assert exchanges_of_packed_views(packed) == []
    assert GUARDS["exchanges of packed views"] is exchanges_of_packed_views
    of_tower = [
        sum(piece.flops for piece in pieces(module) if "image_tokens" in piece.op_name)
        for module in (packed, padded)
    ]
    assert 8 * of_tower[0] == pytest.approx(_SHARE * of_tower[1], rel=0.02)


def test_traced_flops_leave_the_second_pass_out() -> None:
    """Eight places for the sixteen slots of eight samples: the work of one view of each."""
    batch = {name: value[:8] for name, value in _batch(_FITTING).items()}
    halved = dataclasses.replace(_RECIPE, model=_RECIPE.model.clone(packed_views=0.5))
    state = abstract_state(_RECIPE, tiny.mesh(1, 1))
    one_view = batch | {"images": batch["images"][:, :1]}
    assert flops.step_flops(halved, tiny.PROCESSOR, state, batch) == flops.step_flops(
        _RECIPE, tiny.PROCESSOR, state, one_view
    )


def test_the_trace_that_is_compiled_counts_the_same() -> None:
    """A run of one device counts the program that it lowers, on its mesh and with its state."""
    batch = {name: value[:8] for name, value in _batch(_FITTING).items()}
    mesh = tiny.mesh(1, 1)
    state, step = abstract_state(_RECIPE, mesh), make_train_step(_RECIPE, tiny.PROCESSOR, seed=0)
    with jax.set_mesh(mesh):
        traced = step.trace(state, batch)
    counted = flops.step_flops(_RECIPE, tiny.PROCESSOR, state, batch)
    assert flops.flops_of(traced) == counted > 0


@pytest.mark.parametrize("share", [-0.5, 1.01])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"config.packed_views is"):
        dataclasses.replace(_RECIPE, model=_RECIPE.model.clone(packed_views=share))


@pytest.mark.slow
def test_a_step_that_attends_in_one_kernel_is_the_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plain step is compiled already; the kernel runs as JAX operations."""
    interpreted = functools.partial(fused_attention, interpret=True)
    monkeypatch.setitem(kernels.ATTENTION, "fused", {"cpu": interpreted})  # pyright: ignore[reportArgumentType]
    model = _RECIPE.model.clone(attention="fused", remat="named")
    fused = _Program(dataclasses.replace(_RECIPE, model=model), 1, 1)
    (moments, metrics), (plain_moments, plain) = (
        program(_FITTING) for program in (fused, _program(_RECIPE, 1, 1))
    )
    np.testing.assert_allclose(metrics["loss"], plain["loss"], rtol=1e-5)
    for ours, theirs in zip(moments, plain_moments, strict=True):
        largest = max(float(abs(theirs).max()), 1e-12)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)
