"""The latency curve's command: what it refuses at once, and one cell on the real simulator."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import models
from eval.runs.latency import WorkerWorld
from eval.simulators.preflight import SimulatorSetupError
from eval.tasks.table import task_contract, task_spec
from scripts.latency_curve import stream_maker
from scripts.random_weights import write_random_checkpoint
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.processor import Processor

SPEC = task_spec("quickstart")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", ["blocking", "wait:10", "switch:0", "switch:31", "switch:x"])
def test_a_strategy_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=rf"--strategy={text}: NAME:HORIZON .* 1 \.\. 30"):
        stream_maker(text, SPEC)


def test_streams_follow_the_row() -> None:
    make = stream_maker("inpaint:10", SPEC)
    assert make() is not make()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights and the task's own contract."""
    folder = tmp_path_factory.mktemp("curve") / "tiny"
    shape = dataclasses.replace(models.TINY, num_actions=30)
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    processor = Processor(image_size=32, text_length=12)
    write_random_checkpoint(
        folder, config, processor, seed=0, dtype="float32", on_tensor=lambda *_: None
    )
    contract = Contract(action_space="ee6d", **task_contract(SPEC))
    (folder / "action_contract.json").write_text(json.dumps([contract.to_dict()]))
    return folder


@pytest.mark.slow
@pytest.mark.sim
def test_a_cell_on_the_simulator(checkpoint: Path, tmp_path: Path) -> None:
    try:
        with WorkerWorld(SPEC):
            pass
    except SimulatorSetupError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "scripts.latency_curve", "--task=quickstart", "--workers=1"]
    command += [f"--policy=tiny={checkpoint}", f"--out={tmp_path}", "--latencies=6"]
    command += ["--strategy=inpaint:10", "--init_states=30:31"]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads((tmp_path / "latency.json").read_text())
    cells = record["strategies"]["inpaint:10"]
    assert (cells["6"]["mean_held"], cells["6"]["episodes"]) == (6, 1)
    assert cells["6"]["mean_queries"] == 15  # the first at step 0, then at 16, 26 ... 146
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "Success on quickstart" in run.stdout
