"""docs/own_robot.md, run line by line at a small size."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.server_process import server
from eval.robot.controller import HoldExpiredError
from eval.robot.joint_guard import ROBOTS
from eval.tasks.table import task_spec
from tests.citations import ROOT
from tests.docs.pages import NOT_RUN, SHELL, Block, blocks
from tests.eval.so101_workers import so101_workers
from tests.quick_compile import QUICK_COMPILE

PAGE = "docs/own_robot.md"
# command of the page -> words that make it small, or take another's place by their flag
SMALL = {
    "scripts.record_demos": ["--episodes=1", "--workers=1", "--lerobot_python=-"],
    "scripts.new_robot": [],
    "scripts.inspect_data": [],
    "scripts.train": [
        "--config.optimizer.iters=2",
        "--config.optimizer.warmup_steps=1",
        "--config.batch_size=4",
        "--config.validation.every=2",
        "--config.validation.episodes=1",
        "--config.rollouts.task=",  # tests/scripts/test_so101.py has it
    ],
    "scripts.evaluate": ["--init_states=50:51"],
    "scripts.compare_client": ["--frames=2"],
    "scripts.convert_checkpoint": [],
}
FIXTURE = ROOT / "tests" / "fixtures" / "so101"
LATER = ("scripts.serve", "scripts.compare_client")  # run by the test of the server


def page() -> list[Block]:
    return [block for block in blocks() if block.place.startswith(f"{PAGE}:")]


def shown() -> list[list[str]]:
    """The words of each command of the page behind ``python -m``, in order."""
    shell = [b for b in page() if b.language in SHELL and not NOT_RUN.search(b.text)]
    commands = [shlex.split(command) for block in shell for command in block.commands]
    return [words[2:] for words in commands if words[0] == "python"]


def small(words: list[str], outputs: Path) -> list[str]:
    """The command with its folder under `outputs` and its small values."""
    moved = [word.replace("outputs", str(outputs)) for word in words]
    moved = [word.replace("my_robot", f"{outputs}/my_robot") for word in moved]
    moved = [str(FIXTURE) if word == "FOLDER" else word for word in moved]
    values = SMALL[words[0]]
    taken = {value.partition("=")[0] for value in values}
    kept = [word for word in moved if word.partition("=")[0] not in taken]
    return kept + [value for value in values if not value.endswith("=-")]


def run(words: list[str], status: int = 0) -> str:
    environment = {**os.environ, "XLA_FLAGS": QUICK_COMPILE}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_command_of_the_page_is_known_here() -> None:
    names = [words[0] for words in shown()]
    assert names == [
        "scripts.record_demos",
        "scripts.new_robot",
        "scripts.new_robot",
        "scripts.inspect_data",
        "scripts.train",
        "scripts.evaluate",
        "scripts.serve",
        "scripts.compare_client",
        "scripts.convert_checkpoint",
    ]


def drive(address: str) -> tuple[list[Any], Any]:
    """Runs the page's Python with a camera that sees noise; returns commands and guard."""
    (block,) = [block for block in page() if block.language == "python"]
    commands: list[Any] = []
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {
        "server": address,
        "present_joints": np.zeros(6, np.float32),
        "running": lambda: time.sleep(0.05) or len(commands) < 120,
        "command": commands.append,
        "observe": lambda: {
            "images": rng.integers(0, 256, (2, 128, 128, 3), np.uint8),
            "instruction": "put the cube on the plate",
            "proprio": np.zeros(6, np.float32),
            "domain_id": 0,
        },
    }
    with contextlib.suppress(HoldExpiredError):  # two steps of training teach nothing
        exec(compile(block.text, block.place, "exec"), names)
    return commands, names["guard"]


@pytest.mark.slow
@pytest.mark.sim
def test_the_page_line_by_line(tmp_path: Path) -> None:
    with so101_workers(task_spec("so101")):
        pass  # skips without the simulator
    folder = tmp_path / "so101"
    for words in shown():
        if words[0] in LATER:
            continue
        # the page's first try leaves questions open
        is_open = words[0] == "scripts.new_robot" and not any("--answer" in w for w in words)
        said = run(small(words, tmp_path), status=2 if is_open else 0)
        if words[0] == "scripts.record_demos":
            assert "1 demonstrations recorded, 0 failed" in " ".join(said.split())
            # in the place of the dataset that LeRobot's Python would have written
            shutil.copytree(FIXTURE, folder / "so101")
    assert (tmp_path / "my_robot.png").is_file()
    assert (folder / "doctor.html").is_file()
    assert (folder / "evaluation" / "results.json").is_file()
    assert (folder / "lerobot" / "model.safetensors").is_file()
    (compare,) = [words for words in shown() if words[0] == "scripts.compare_client"]
    flags = ("--device=cpu", "--inspect")
    with server(folder / "train", flags, xla_flags=QUICK_COMPILE) as running:
        address = f"http://127.0.0.1:{running.port}"
        run([w.replace("http://127.0.0.1:8010", address) for w in small(compare, tmp_path)])
        commands, guard = drive(address)
    assert guard.step == len(commands)
    assert guard.violations or guard.step > 40, "an answer came before holding expired"
    low, high = np.array([(joint.low, joint.high) for joint in ROBOTS["so101"]]).T
    assert ((commands >= low - 1e-5) & (commands <= high + 1e-5)).all()
