"""configs/own_robot.py: what its words say, and a run from a row with targets and units."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import own_robot
from data.poses.arms import Columns
from tests.data.small_sets import small
from tests.data.storages import write_x2robot
from tests.quick_compile import QUICK_COMPILE
from tests.xvla_jax import tiny
from xvla_jax import pretrained

ROOT = Path(__file__).resolve().parents[2]

_X2ROBOT = small("x2robot")
# seven joints of the left arm see, the right arm's are the commands, in degrees
ROW = dataclasses.replace(
    _X2ROBOT,
    joints=_X2ROBOT.joints[:1],
    actions=(Columns("follow_right_joint_pos", 0, 7, lag=1),),
    units=("deg",) * 7,
    delta_idx=(),
    mask_proprio_idx=(),
    static_epsilon=0.0,
)


def test_sizes_are_those_of_the_docstring() -> None:
    rows = re.findall(r"\| (to [\d,]+|more) \|(.*) \|", str(own_robot.sizes.__doc__))
    assert len(rows) == 4
    for text, numbers in rows:
        most = 10_000 if text == "more" else int(text.removeprefix("to "))
        stated = [int(n.replace(",", "")) for n in numbers.split("|")]
        assert list(own_robot.sizes(most)) == stated
    assert own_robot.sizes(21) == own_robot.sizes(100) != own_robot.sizes(20)
    with pytest.raises(ValueError, match="3 demonstrations; 4 or more are needed"):
        own_robot.sizes(3)


def test_words_choose_what_is_trained_and_where() -> None:
    plain: Any = own_robot.get_config("50")
    assert (plain.lora.rank, plain.dtype, plain.remat) == (8, "bfloat16", "full")
    assert (plain.batch_size, plain.optimizer.iters) == (32, 4000)
    assert (plain.optimizer.schedule, plain.optimizer.freeze_steps) == ("xvla_paper", 400)
    assert (plain.validation.every, plain.validation.episodes, plain.keep_every) == (200, 5, 200)
    assert (plain.keep_best, plain.rollouts.task, plain.rollouts.every) == (True, "", 1000)
    full: Any = own_robot.get_config("500-full-joints6")
    assert (full.lora.rank, full.keep_every, full.optimizer.mode) == (0, 0, "xvla")
    assert (full.action_mode, full.real_action_dim) == ("auto", 6)
    prompt: Any = own_robot.get_config("20-prompt-cpu")
    assert (prompt.lora.rank, prompt.optimizer.mode) == (0, "prompts_and_heads")
    assert (prompt.dtype, prompt.remat, prompt.model.hidden_size) == ("float32", "none", 128)
    assert own_robot.get_config().to_dict() == plain.to_dict(), "50 where no number is given"


@pytest.mark.parametrize("words", ["many", "50-60", "lora-full", "joints0", "joints", "50-50"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match=rf"own_robot\.py:{words}: allowed are a number"):
        own_robot.get_config(words)


def run(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": QUICK_COMPILE, "COLUMNS": "160"},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_wrong_word_is_one_line_of_the_command() -> None:
    status, output = run("scripts.plan", "--config=configs/own_robot.py:ten", "--topology=gpu")
    assert status != 0
    assert "configs/own_robot.py:ten: allowed are a number of demonstrations" in output


@pytest.mark.slow
def test_the_plan_of_a_tiny_run_compares_cards() -> None:
    changes = ["data.mixture=tests.scripts.test_own_robot:ROW", "batch_size=4", "lora.rank=0"]
    changes += [f"model.{name}={value}" for name, value in _tiny_model()]
    flags = [f"--config.{change}" for change in changes]
    status, output = run(
        "scripts.plan", "--config=configs/own_robot.py:50-cpu-joints7", "--topology=gpu,cpu", *flags
    )
    assert status == 0, output
    for name in ("gpu:24", "gpu:48", "gpu:80", "cpu"):
        assert re.search(rf"{name}\W.*\byes\b", output), output


def _tiny_model() -> list[tuple[str, Any]]:
    return [("depth", 2), ("hidden_size", 32), ("num_heads", 2)]


@pytest.mark.slow
def test_a_run_from_a_row_with_targets_and_units(tmp_path: Path) -> None:
    write_x2robot(tmp_path / "data")
    base = tmp_path / "base"
    pretrained.save_pretrained(base, tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR)
    changes = {
        "init_from": base,
        "new_domains": "*=nearest",
        "data.root": tmp_path / "data",
        "data.mixture": "tests.scripts.test_own_robot:ROW",
        "batch_size": 4,
        "optimizer.iters": 4,
        "optimizer.freeze_steps": 1,
        "optimizer.warmup_steps": 1,
        "validation.every": 2,
        "validation.episodes": 1,
        "validation.steps": 2,
        "log_every": 1,
        "save_every": 8,
        "keep_every": 0,
        "keep": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    workdir = f"--workdir={tmp_path / 'run'}"
    config = "--config=configs/own_robot.py:20-cpu-joints7"
    status, output = run("scripts.train", config, workdir, *flags)
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    measured = {line["step"]: line["val_l1"] for line in lines if "val_l1" in line}
    assert set(measured) == {2, 4}
    assert "lowest validation l1" in output
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"4", str(min(measured, key=measured.__getitem__))}, "the best and the newest"
    loaded = pretrained.load_checkpoint(tmp_path / "run")
    (contract,) = (c for c in loaded.contracts.values() if c.rotation_layout == "none")
    assert {(c.own_unit, c.scale) for c in contract.channels} == {("deg", math.pi / 180)}
