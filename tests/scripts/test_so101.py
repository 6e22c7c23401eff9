"""The joint robot from end to end: a LeRobot recording is trained on, and the policy plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.tasks.table import task_spec
from tests.eval.so101_workers import so101_workers
from tests.quick_compile import QUICK_COMPILE
from xvla_jax.training.telemetry import read_metrics

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK_COMPILE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(row: str) -> list[str]:
    return row.split("│")


@pytest.mark.slow
@pytest.mark.sim
def test_a_policy_trained_on_a_lerobot_recording_drives_the_arm(tmp_path: Path) -> None:
    with so101_workers(task_spec("so101")):
        pass  # skips without the simulator
    workdir, out = tmp_path / "train", tmp_path / "evaluation"
    page = tmp_path / "doctor.html"
    said = run("scripts.inspect_data", "--data=so101", f"--root={FIXTURES}", f"--out={page}")
    assert "data doctor: ok" in said
    said = run(
        "scripts.train",
        "--config=configs/so101.py",
        f"--workdir={workdir}",
        f"--config.data.root={FIXTURES}",
        "--config.optimizer.iters=2",
        "--config.optimizer.warmup_steps=1",
        "--config.batch_size=4",
        "--config.rollouts.states=50:52",
    )
    rows = {row[1].strip(): row[2].strip() for row in map(cells, said.splitlines()) if row[2:]}
    assert rows["checkpoints evaluated"] == "1, 0 skipped, 0 without a score"
    assert rows["chosen checkpoint"] == "checkpoints/2, the best of 1"
    for half, state in (("choice", 50), ("confirmation", 51)):
        receipt = json.loads((workdir / "rollouts" / "2" / half / "results.json").read_text())
        (episode,) = receipt["tasks"]["so101"]["policies"]["step_2"]["episodes"]
        assert (episode["init_state"], episode["steps"], episode["error"]) == (state, 240, None)
    assert rows["success where chosen"] == rows["success confirmed"] == "0 of 1 (0%; 0 to 95 %)"
    (line,) = [line for line in read_metrics(workdir) if "rollouts/success" in line]
    assert (line["step"], line["rollouts/success"], line["rollouts/confirmed"]) == (2, 0, 0)
    run(
        "scripts.evaluate",
        "--tasks=so101",
        "--init_states=50:52",
        f"--policy=trained={workdir}",
        "--policy=script=expert:",
        f"--out={out}",
    )
    task = json.loads((out / "results.json").read_text())["tasks"]["so101"]
    assert task["golden_frame"]["state"] in ("identical", "within tolerance")
    policies = task["policies"]
    assert policies["script"]["summary"]["successes"] == 2
    # two steps teach nothing, but the joints move until the limit
    assert [episode["steps"] for episode in policies["trained"]["episodes"]] == [240, 240]
