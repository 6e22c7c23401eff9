"""The latency curve's command: what it refuses at once, and one cell on the real simulator."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import models
from eval.files import FileError
from eval.runs.latency import WorkerWorld
from eval.simulators.preflight import SimulatorSetupError
from eval.tasks.table import task_contract, task_spec
from scripts.latency_curve import FILE, measured, parse_plans, stream_maker
from scripts.random_weights import write_random_checkpoint
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
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


def test_plans_take_their_share_of_the_latency() -> None:
    exact, frozen = parse_plans(["exact10", "frozen3:0.3"])
    assert [exact.latency(at) for at in (0, 2, 4, 8, 12)] == [0, 2, 4, 8, 12]
    assert [frozen.latency(at) for at in (0, 2, 4, 8, 12)] == [0, 1, 2, 3, 4]
    assert frozen.latency(10) == 3  # 0.3 x 10 is a little above 3 in floating point
    assert (exact.line("switch:10"), frozen.line("switch:10")) == (
        "switch:10",
        "switch:10, frozen3",
    )


@pytest.mark.parametrize("texts", [["frozen3:"], ["frozen3:0"], ["frozen3:-1"], ["a", "a:1"]])
def test_a_plan_that_is_none(texts: list[str]) -> None:
    with pytest.raises((ValueError, ConfigError), match=r"--plan(=frozen3:| is 'a'; allowed are)"):
        parse_plans(texts)


def test_a_plan_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"--plan=frozen3:0.3: .* each plan once"):
        parse_plans(["frozen3", "frozen3:0.3"])


HEADER = {"task": "quickstart", "policy_hash": "ab", "seed": 0}
CELL = {
    "latency": 1, "episodes": 2, "rate": 0.5, "low": 0.0, "high": 1.0, "outcomes": [True, False],
    "position_jump_mm": None, "velocity_jump_mm": None,
}  # fmt: skip


def test_cells_of_the_same_measurement_are_kept(tmp_path: Path) -> None:
    assert measured(tmp_path, HEADER) == {}
    cells = {"switch:10": {"0": CELL}}
    (tmp_path / FILE).write_text(json.dumps({**HEADER, "strategies": cells}))
    assert measured(tmp_path, HEADER) == cells
    with pytest.raises(
        ValueError, match=r"latency.json .* another .*policy_hash: ab .* cd.*--rest"
    ):
        measured(tmp_path, {**HEADER, "policy_hash": "cd"})


def test_cells_of_a_damaged_or_an_older_file_are_named(tmp_path: Path) -> None:
    old = {name: value for name, value in CELL.items() if name != "outcomes"}
    (tmp_path / FILE).write_text(json.dumps({**HEADER, "strategies": {"switch:10": {"0": old}}}))
    with pytest.raises(FileError, match=r"strategies.switch:10.0.outcomes is missing"):
        measured(tmp_path, HEADER)


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
    command += ["--plan=exact10", "--plan=frozen2:0.5", "--uncertified"]
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
    # the first seam is at step 22: asked at 16, answered 6 steps later; the last answer is too late
    assert cells["6"]["seams"] == 13
    assert cells["6"]["position_jump_mm"]["mean"] > 0
    cheap = record["strategies"]["inpaint:10, frozen2"]["6"]
    assert (cheap["latency"], cheap["mean_held"]) == (3, 3)
