"""Conversion from the command line, on a golden checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import xvla_jax
from tests.xvla_jax import golden
from xvla_jax.contract import Contract
from xvla_jax.processor import Processor

_CONTRACT = Contract(
    domain_id=1,
    action_space="ee6d",
    rotation_layout="interleaved",
    anchor_hz=7.5,
    views=("front", "wrist"),
    proprio="measured",
)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.convert_checkpoint", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_to_lerobot_and_back_with_processor_and_contract(tmp_path: Path) -> None:
    case = golden.load("ee6d")
    processor = Processor(image_size=64, text_length=11)
    first, second = tmp_path / "hf", tmp_path / "native"
    xvla_jax.save_pretrained(
        first, case.config, case.params, processor=processor, contracts={1: _CONTRACT}
    )
    report = tmp_path / "report.json"
    done = _run(
        str(first), str(second), "--layout=lerobot-native", "--verify", f"--report={report}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["parameters"] == 180_888
    assert found["parameters_equal"] is True
    assert found["largest_action_difference"] == 0.0
    assert found["largest_action"] > 0.1
    _, params = xvla_jax.load_pretrained(second)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, dict(case.params))))
    names = {path.name for path in second.iterdir()}
    assert {"vocab.json", "merges.txt", "preprocessor_config.json", "action_contract.json"} <= names


def test_errors_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    done = _run(str(tmp_path / "nowhere"), str(tmp_path / "out"), "--layout=hf")
    assert done.returncode == 1
    assert "no such folder" in " ".join(done.stdout.split())  # the terminal wraps it
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
