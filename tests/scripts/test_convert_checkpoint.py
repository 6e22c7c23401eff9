"""Conversion from the command line, on a golden checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

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


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "scripts.convert_checkpoint", *map(str, arguments)]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


@pytest.mark.slow
def test_to_lerobot_and_back_with_processor_and_contract(tmp_path: Path) -> None:
    case = golden.load("ee6d")
    processor = Processor(image_size=64, text_length=11, resize="pad")
    first, second = tmp_path / "hf", tmp_path / "native"
    xvla_jax.save_pretrained(
        first, case.config, case.params, processor=processor, contracts={1: _CONTRACT}
    )
    report = tmp_path / "report.json"
    done = _run(first, second, "--layout=lerobot-native", "--verify", f"--report={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every tensor of the source was used once" in done.stdout
    assert "rounded" not in done.stdout
    numbers = json.loads(report.read_text())
    assert (numbers["source"]["layout"], numbers["source"]["tensors"]) == ("hf", 255)
    assert (numbers["target"]["layout"], numbers["target"]["tensors"]) == ("lerobot-native", 254)
    assert numbers["dtype"] == "float32"
    assert numbers["parameters"] == 180_888
    assert numbers["parameters_equal"] is True
    assert numbers["largest_action_difference"] == 0.0
    assert numbers["largest_action"] > 0.1
    _, params = xvla_jax.load_pretrained(second)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, dict(case.params))))
    names = {path.name for path in second.iterdir()}
    assert {"vocab.json", "merges.txt", "preprocessor_config.json", "action_contract.json"} <= names


def test_errors_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    done = _run(tmp_path / "nowhere", tmp_path / "out", "--layout=hf")
    assert done.returncode == 1
    assert "no such folder" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    slowly = (  # so that the signal comes while it writes
        "import sys, time; from scripts.convert_checkpoint import COMMAND, main;"
        "from xvla_jax.checkpoints.safetensors_files import TensorFiles; read = TensorFiles.read;"
        "TensorFiles.read = lambda self, name: (time.sleep(0.2), read(self, name))[1];"
        "sys.exit(COMMAND.run(main, sys.argv))"
    )
    source = golden.FOLDER / "ee6d"
    process = subprocess.Popen([sys.executable, "-c", slowly, source, target, "--layout=hf"])
    scratch = tmp_path / ".out.part"
    for _ in range(600):
        if (scratch / "config.json").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not target.exists()
    assert not scratch.exists()
