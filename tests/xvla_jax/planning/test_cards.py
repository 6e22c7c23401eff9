"""Cards against a program whose memory is a formula, and the tiny model as it is compiled."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.planning.cards import CPU, Card, card_plans, cards, compiled_memory, smaller
from xvla_jax.planning.chips import GIB
from xvla_jax.planning.programs import Memory, Run, bytes_of
from xvla_jax.training.optimizer import OptimizerConfig

_RUN = Run(
    config=tiny.CONFIG,
    processor=tiny.PROCESSOR,
    optimizer=OptimizerConfig(schedule="xvla_paper", iters=10),
    dtype=jnp.float32,
    remat="none",
    batch_size=8,
    views=2,
    data=-1,
    fsdp=1,
)


def _formula(run: Run) -> Memory:
    """16 GiB of state, or 4 with an adapter, and 2 GiB of each sample, 1 with full remat."""
    state = 16 * GIB if run.lora is None else 4 * GIB
    sample = {"none": 2.0, "dots": 1.5, "named": 1.2, "full": 1.0}[run.remat] * GIB
    return Memory(state, 0, 0, int(run.batch_size * sample), 0)


def test_each_card_has_an_answer_and_each_program_is_compiled_once() -> None:
    asked: list[Run] = []

    def measure(run: Run) -> Memory:
        asked.append(run)
        return _formula(run)

    gpu = cards("gpu")
    assert gpu is not None
    small, middle, large = card_plans(_RUN, gpu, measure=measure)
    assert (small["fits"], middle["fits"], large["fits"]) == (False, True, True)
    assert small["nearest"]["change"].endswith("--config.batch_size=4")
    assert "--config.remat=full" in small["nearest"]["change"]
    assert (small["nearest"]["peak"], small["nearest"]["accumulation"]) == (20 * GIB, 2)
    assert middle["advice"] == "", "32 of 48 GiB are less than JAX takes"
    assert len(asked) == 5, "batch 8 with none, dots, named and full, then 4"
    wide = dataclasses.replace(_RUN, batch_size=12)
    (tight,) = card_plans(wide, cards("gpu:48") or (), measure=measure)
    assert (tight["fits"], tight["advice"]) == (True, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95")


def test_a_card_too_small_for_the_state_gets_an_adapter_or_nothing() -> None:
    (plan,) = card_plans(_RUN, (Card("gpu:16", 16 * GIB),), measure=_formula)
    assert plan["nearest"]["change"] == "--config.lora.rank=8 --config.remat=full"
    assert plan["nearest"]["peak"] == 12 * GIB
    (none,) = card_plans(_RUN, (Card("gpu:4", 4 * GIB),), measure=_formula)
    assert none["nearest"] is None


def test_smaller_runs_change_one_thing_after_the_other() -> None:
    runs = [(r.remat, r.batch_size, r.lora is not None) for _, r in smaller(_RUN)]
    assert runs[:6] == [
        ("dots", 8, False),
        ("named", 8, False),
        ("full", 8, False),
        ("full", 4, False),
        ("full", 2, False),
        ("full", 1, False),
    ]
    assert runs[6:] == [("full", batch, True) for batch in (8, 4, 2, 1)]


def test_names_of_cards() -> None:
    machine = cards("cpu")
    assert machine is not None
    (cpu,) = machine
    assert (cpu.name, cpu.bytes > GIB, cpu.advice(10**15)) == (CPU, True, "")
    assert [card.bytes / GIB for card in cards("gpu") or ()] == [24, 48, 80]
    assert cards("v5e:4x4") is None
    with pytest.raises(ConfigError, match=r"'gpu:32' is not known; .* gpu:24, gpu:48, gpu:80"):
        cards("gpu:32")


@pytest.mark.slow
def test_the_memory_of_a_compiled_step_holds_its_state_and_grows_with_the_batch() -> None:
    small, large = (compiled_memory(dataclasses.replace(_RUN, batch_size=size)) for size in (2, 8))
    state = bytes_of(_RUN.state(tiny.mesh(1, 1)))
    assert small.arguments >= state * 0.9
    assert large.peak > small.peak > small.arguments
