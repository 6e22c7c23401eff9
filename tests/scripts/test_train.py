"""Whole training runs, as somebody at a shell starts, stops and resumes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data.datasets import dataset
from data.writer import write_dataset
from tests.data.test_writer import OPTIONS, episode
from xvla_jax.metrics import METRICS_NAME, read_metrics
from xvla_jax.pretrained import load_checkpoint

pytestmark = [pytest.mark.rlds, pytest.mark.slow]

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 300


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three made-up demonstrations in RLDS."""
    folder = tmp_path_factory.mktemp("demos")
    rate_hz = dataset("libero_demos").rate_hz
    paths = [folder / f"{number}.npz" for number in (0, 2, 3)]  # 1 would be a failure
    for number, path in zip((0, 2, 3), paths, strict=True):
        np.savez(path, **episode(number, frames=20, rate_hz=rate_hz))
    write_dataset(paths, folder / "rlds", **OPTIONS)
    return folder / "rlds"


def _start(root: Path, workdir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts.train", "--config=configs/debug.py"]
    command += [f"--workdir={workdir}", f"--config.data.root={root}", "--config.optimizer.iters=8"]
    return subprocess.Popen(
        [*command, *more],
        cwd=_ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=_LIMIT_S)
    return process.returncode, output


def _wait_for_step(process: subprocess.Popen[str], workdir: Path, step: int) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no step {step} in {workdir / METRICS_NAME}"
        time.sleep(0.05)


def test_names_that_do_not_exist_are_errors(root: Path, tmp_path: Path) -> None:
    """Both at once: importing takes longer than anything else here."""
    key = _start(root, tmp_path / "a", "--config.optimizer.learning_rat=1e-3")
    flag = _start(root, tmp_path / "b", "--wrokdir=x")
    status, output = _end(key)
    assert status != 0
    assert "learning_rat" in output
    status, output = _end(flag)
    assert status != 0
    assert "wrokdir" in output
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_a_stopped_run_resumes_to_the_same_parameters(root: Path, tmp_path: Path) -> None:
    straight = _start(root, tmp_path / "straight")
    stopped = _start(root, tmp_path / "stopped")
    _wait_for_step(stopped, tmp_path / "stopped", 1)
    stopped.send_signal(signal.SIGTERM)
    status, output = _end(stopped)
    assert status == 0, output
    assert "the same command goes on from there" in output
    assert read_metrics(tmp_path / "stopped")[-1]["step"] < 8

    status, output = _end(_start(root, tmp_path / "stopped"))
    assert status == 0, output
    assert "resuming" in output
    assert "trained 8 steps" in output
    status, output = _end(straight)
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
