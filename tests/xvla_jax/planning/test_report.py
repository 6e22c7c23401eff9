"""The searches against a chip whose memory is a formula."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import pytest

from tests.xvla_jax import tiny
from xvla_jax.planning.programs import DoesNotFitError, Memory, Run
from xvla_jax.planning.report import largest_batch, nearest_fit, neighbours
from xvla_jax.training.optimizer import OptimizerConfig

_RUN = Run(
    config=tiny.CONFIG,
    processor=tiny.PROCESSOR,
    optimizer=OptimizerConfig(schedule="xvla_release", iters=10),
    dtype=jnp.bfloat16,
    remat="none",
    batch_size=64,
    views=2,
    data=-1,
    fsdp=4,
)
_DEVICES, _LIMIT = 16, 16_000.0


class _Chip:
    """State 4000 bytes, and bytes for each sample of 16 chips; a jump at 512 that no line sees."""

    def __init__(self, per_sample: int = 20, jump: int = 0) -> None:
        self.per_sample, self.jump, self.asked = per_sample, jump, []

    def __call__(self, run: Run) -> int:
        self.asked.append(run.batch_size)
        share = {"none": 1.0, "dots": 0.5, "named": 0.48, "full": 0.25}[run.remat]
        late = self.jump if run.batch_size >= 512 else 0
        peak = int(16_000 / run.fsdp + share * self.per_sample * run.batch_size + late)
        if peak > _LIMIT:
            raise DoesNotFitError(f"RESOURCE_EXHAUSTED: needs ({peak / 2**20}M)")
        return peak


def _largest(chip: _Chip, run: Run = _RUN) -> tuple[int, int]:
    best = largest_batch(run, chip(run), chip, devices=_DEVICES, limit=_LIMIT)
    assert best.compilations == len(chip.asked) - 1
    assert chip(dataclasses.replace(run, batch_size=best.batch_size)) == best.peak <= _LIMIT
    assert best.per_sample == pytest.approx(chip.per_sample * _DEVICES, rel=0.3)
    return best.batch_size, best.compilations


def test_a_straight_line_takes_few_compilations() -> None:
    batch_size, compilations = _largest(_Chip())
    # (0.98 * 16000 - 4000) / 20 = 584, rounded down to complete samples a chip
    assert batch_size == 576
    assert compilations <= 3


def test_a_jump_is_stepped_back_from() -> None:
    batch_size, compilations = _largest(_Chip(jump=3000))
    assert 432 <= batch_size < 512
    assert compilations <= 4


def test_the_smallest_batch_looks_up_for_its_line() -> None:
    run = dataclasses.replace(_RUN, batch_size=16)
    assert _largest(_Chip(), run)[0] == 576
    # twice as much does not fit: what fits is what was asked for
    alone = largest_batch(run, 15_000, _Chip(per_sample=700), devices=16, limit=_LIMIT)
    assert (alone.batch_size, alone.compilations) == (16, 1)


def test_neighbours_go_from_cheap_to_dear() -> None:
    steps = [(r.remat, r.fsdp, r.batch_size) for _, r in neighbours(_RUN, devices=_DEVICES)]
    assert steps == [
        ("dots", 4, 64),
        ("named", 4, 64),
        ("full", 4, 64),
        ("full", 8, 64),
        ("full", 16, 64),
        ("full", 16, 32),
        ("full", 16, 16),
    ]


def test_the_nearest_fit_says_what_to_change() -> None:
    chip = _Chip(per_sample=400)
    best = nearest_fit(_RUN, chip, devices=_DEVICES, held=lambda r: 0, limit=_LIMIT)
    assert best is not None
    change, run, peak = best
    assert (run.remat, run.batch_size, peak) == ("full", 64, 4000 + 6400)
    assert change == (
        "--config.remat=full --config.mesh.data=-1 --config.mesh.fsdp=4 --config.batch_size=64"
    )
    # a state that is too large by itself is not compiled
    held = nearest_fit(_RUN, chip, devices=_DEVICES, held=lambda r: 10**9, limit=_LIMIT)
    assert held is None
    assert len(chip.asked) == 3


def test_what_the_compiler_asked_for_is_read() -> None:
    first = "RESOURCE_EXHAUSTED: the total memory required (29.5G) exceeds available HBM (15.75G)."
    assert DoesNotFitError(first).needed == 29.5 * 2**30
    second = "RESOURCE_EXHAUSTED: Ran out of memory. Used 17.25G of 15.75G hbm."
    assert DoesNotFitError(second).needed == 17.25 * 2**30
    assert math.isnan(DoesNotFitError("RESOURCE_EXHAUSTED").needed)


def test_donated_outputs_are_counted_once() -> None:
    assert Memory(arguments=10, outputs=8, aliased=7, temporaries=5, code=1).peak == 17


def test_the_planned_model_is_the_one_of_the_config() -> None:
    run = dataclasses.replace(
        _RUN, scan_vision=True, remat="full", attention="fused", ema_decay=0.5
    )
    model = run.recipe.model
    assert (model.scan_vision, model.remat, run.recipe.ema_decay) == (True, "full", 0.5)
    assert model.attention == "fused"
