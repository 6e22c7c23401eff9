"""The log of a run, and a stand-in for wandb."""

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
    all_lines,
    open_sinks,
    read_metrics,
)

_WANDB = {"project": "robots", "entity": "", "name": "", "mode": "offline"}


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


def test_a_resumed_run_goes_on_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    first, second = runs
    assert first.rows == [(1, {"loss": 0.5})]
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
