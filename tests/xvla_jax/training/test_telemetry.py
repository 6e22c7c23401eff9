"""Time of a run, on a clock that is set by hand; its log; and a stand-in for wandb."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from xvla_jax.errors import ConfigError
from xvla_jax.training.telemetry import (
    METRICS_NAME,
    JsonLines,
    MetricsWriter,
    Watch,
    all_lines,
    duration,
    goodput,
    open_sinks,
    read_metrics,
)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_those_since_the_last_reading_without_compilation() -> None:
    clock = _Clock()
    watch = Watch(10, 40, began=90.0, flops=3e12, peak=6e12, clock=clock)
    clock.now += 50  # the first step compiles
    watch.step(waited_s=7.0, samples=8)
    for _ in range(4):
        clock.now += 2
        watch.step(waited_s=0.5, samples=8)
    with watch.waiting("checkpoint"):
        clock.now += 2
    rates = watch.read()
    assert rates["samples_per_s"] == 32 / 10
    assert rates["step_s"] == 8 / 4, "saving is not part of a step"
    assert rates["data_wait_share"] == 0.2
    assert rates["checkpoint_wait_share"] == 0.2
    assert rates["validation_wait_share"] == 0.0
    assert rates["tflops_per_s"] == pytest.approx(3 * 4 / 10)
    assert rates["mfu"] == pytest.approx(12 / 10 / 6)
    assert rates["session_s_total"] == 70
    assert rates["useful_s_total"] == 6
    assert rates["goodput"] == 6 / 70
    assert rates["session_start"] == 10

    clock.now += 5
    watch.step(waited_s=0.0, samples=8)
    later = watch.read()
    assert later["samples_per_s"] == 8 / 5
    assert later["data_wait_share"] == 0.0
    assert later["useful_s_total"] == 11
    line = watch.line(16, later | {"loss": 1.5, "grad_norm": 2.0})
    assert line == (
        "step 16/40  loss 1.5  grad_norm 2  1.6 samples/s  data wait 0%  ETA 2 min 00 s"
    )


def test_the_first_step_has_no_rate() -> None:
    clock = _Clock()
    watch = Watch(0, 2, began=100.0, clock=clock)
    watch.step(waited_s=1.0, samples=8)
    rates = watch.read()
    assert "step_s" not in rates
    assert "mfu" not in rates
    assert watch.line(1, rates | {"grad_norm": 1.0}) == "step 1/2  grad_norm 1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600 * 30 + 61, "30 h 01 min")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _line(session: float, start: int, step: int, total: float, useful: float) -> dict[str, float]:
    return {
        "session": session,
        "session_start": start,
        "step": step,
        "session_s_total": total,
        "useful_s_total": useful,
    }


def test_goodput_leaves_out_what_was_done_again() -> None:
    """Killed at step 60, resumed from 40."""
    lines = [_line(1.0, 0, 20, 40, 20), _line(1.0, 0, 40, 60, 38), _line(1.0, 0, 60, 80, 55)]
    lines += [_line(2.0, 40, 60, 50, 20), _line(2.0, 40, 80, 70, 40)]
    assert goodput(lines) == {
        "seconds": 150,
        "useful_s": 38 + 40,
        "goodput": 78 / 150,
        "sessions": 2,
        "steps_repeated": 20,
    }
    assert goodput([{"step": 1}])["goodput"] == 0.0, "a log of an older version"


_WANDB = {"project": "robots", "entity": "", "name": "", "mode": "offline"}


def test_a_late_line_adds_to_that_of_its_step(tmp_path: Path) -> None:
    with MetricsWriter(JsonLines(tmp_path)) as writer:
        for step, scalars in ((1, {"loss": 5.0}), (2, {"loss": 4.0}), (1, {"success": 0.5})):
            writer.write(step, scalars)
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 5.0, "success": 0.5},
        {"step": 2, "loss": 4.0},
    ]


def test_the_newest_line_of_a_step_counts_and_a_torn_one_does_not(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    with MetricsWriter(JsonLines(tmp_path)) as writer:
        for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0)):
            writer.write(step, {"loss": loss})
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 1.0})[:-4])
    with MetricsWriter(JsonLines(tmp_path)) as writer:  # resumed from step 1
        writer.write(2, {"loss": 2.5})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 2.5},
        {"step": 3, "loss": 3.0},
    ]
    assert [line["step"] for line in all_lines(tmp_path)] == [1, 2, 3, 2]


class _Run:
    def __init__(self, **options: Any) -> None:
        self.options = options
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, scalars: dict[str, float], step: int) -> None:
        self.rows.append((step, scalars))

    def finish(self) -> None:
        self.finished = True


def test_a_resumed_run_continues_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[_Run] = []

    def init(**options: Any) -> _Run:
        runs.append(_Run(**options))
        return runs[-1]

    fake = types.ModuleType("wandb")
    monkeypatch.setattr(fake, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    workdir = tmp_path / "fold towels"
    workdir.mkdir()
    for step in (1, 2):
        with MetricsWriter(*open_sinks(workdir, {"seed": 3, "wandb": _WANDB})) as writer:
            writer.write(step, {"loss": 0.5})
    with MetricsWriter(*open_sinks(workdir, {"seed": 3, "wandb": _WANDB})) as writer:
        for step, loss in ((6, 0.4), (3, 0.1)):
            writer.write(step, {"loss": loss})
    first, second, late = runs
    assert first.rows == [(1, {"loss": 0.5})]
    assert [step for step, _ in late.rows] == [6, 6], "wandb takes no earlier step"
    assert first.finished
    assert first.options["id"] == second.options["id"]
    assert first.options["resume"] == "allow"
    assert first.options["name"] == "fold towels"
    assert first.options["config"]["seed"] == 3
    assert first.options["entity"] is None


def test_wandb_must_be_there_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install wandb, or set"):
        open_sinks(tmp_path, {"wandb": _WANDB})
    with pytest.raises(ConfigError, match=r"config\.wandb\.mode is 'on'; allowed are online"):
        open_sinks(tmp_path, {"wandb": _WANDB | {"mode": "on"}})
    assert len(open_sinks(tmp_path, {"wandb": _WANDB | {"project": ""}})) == 2
