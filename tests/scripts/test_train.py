"""Whole training runs, as somebody at a shell starts, stops and resumes them."""

from __future__ import annotations

import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.scripts.runs import end, start, wait_for_step
from xvla_jax.metrics import read_metrics
from xvla_jax.pretrained import load_checkpoint

pytestmark = [pytest.mark.rlds, pytest.mark.slow]


def test_names_that_do_not_exist_are_errors(demos: Path, tmp_path: Path) -> None:
    """Both at once: importing takes longer than anything else here."""
    key = start(demos, tmp_path / "a", "--config.optimizer.learning_rat=1e-3")
    flag = start(demos, tmp_path / "b", "--wrokdir=x")
    status, output = end(key)
    assert status != 0
    assert "learning_rat" in output
    status, output = end(flag)
    assert status != 0
    assert "wrokdir" in output
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_stopped_run_resumes_to_the_same_parameters(demos: Path, tmp_path: Path) -> None:
    straight = start(demos, tmp_path / "straight")
    stopped = start(demos, tmp_path / "stopped")
    wait_for_step(stopped, tmp_path / "stopped", 1)
    stopped.send_signal(signal.SIGTERM)
    status, output = end(stopped)
    assert status == 0, output
    assert "the same command goes on from there" in output
    assert read_metrics(tmp_path / "stopped")[-1]["step"] < 8

    status, output = end(start(demos, tmp_path / "stopped"))
    assert status == 0, output
    assert "resuming" in output
    assert "trained 8 steps" in output
    status, output = end(straight)
    assert status == 0, output

    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("stopped", "straight"))
    assert ours.contracts == theirs.contracts
    assert set(ours.contracts) == {3}
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours.params, theirs.params)))
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("stopped", "straight")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8
