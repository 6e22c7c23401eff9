"""Conversion from the command line, on a golden checkpoint."""

from __future__ import annotations

import dataclasses
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
from eval.tasks.table import task_spec
from scripts import convert_checkpoint
from scripts.evaluation.entrants import check_task
from scripts.terminal import STOPPED
from tests.xvla_jax import golden, tiny
from xvla_jax.checkpoint_tools import convert_layout
from xvla_jax.contract import Contract
from xvla_jax.errors import ContractError
from xvla_jax.pretrained import load_checkpoint
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


def test_rows_are_stated_for_a_checkpoint_without_contracts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """X-VLA's released folders have none, and `evaluate` says how to state them."""
    released, out = tmp_path / "released", tmp_path / "out"
    config = dataclasses.replace(tiny.CONFIG, num_actions=30)
    xvla_jax.save_pretrained(released, config, tiny.params(), processor=tiny.PROCESSOR)
    libero, bridge = task_spec("libero_goal"), task_spec("widowx_spoon")
    with pytest.raises(ContractError, match=r"no action_contract.json.*--tasks=libero_goal states"):
        check_task(libero, "ee6d", load_checkpoint(released).contracts)
    assert _main(monkeypatch, released, out, "--tasks=libero_goal,widowx_spoon") == 0
    stated = load_checkpoint(out).contracts
    assert set(stated) == {libero.client.domain_id, bridge.client.domain_id}
    check_task(libero, "ee6d", stated)
    check_task(bridge, "ee6d", stated)
    # again is no change; another contract of the same domain is refused, and nothing is written
    assert _main(monkeypatch, out, tmp_path / "again", "--tasks=libero_goal") == 0
    assert load_checkpoint(tmp_path / "again").contracts == stated
    slower = {i: dataclasses.replace(one, anchor_hz=one.anchor_hz / 2) for i, one in stated.items()}
    other = tmp_path / "other"
    xvla_jax.save_pretrained(
        other, config, tiny.params(), processor=tiny.PROCESSOR, contracts=slower
    )
    capsys.readouterr()
    assert _main(monkeypatch, other, tmp_path / "no", "--tasks=libero_goal") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"contracts of domains [{libero.client.domain_id}] itself, and other ones" in said
    assert not (tmp_path / "no").exists()


def test_ctrl_c_says_whether_the_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(convert_layout, "convert_checkpoint", interrupted)
    assert _main(monkeypatch, golden.FOLDER / "ee6d", out) == STOPPED
    assert capsys.readouterr().out.replace("\n", "").endswith(f"stopped; {out} was not written")
    monkeypatch.undo()
    monkeypatch.setattr(convert_layout, "verify", interrupted)
    assert _main(monkeypatch, golden.FOLDER / "ee6d", out, "--verify") == STOPPED
    assert capsys.readouterr().out.replace("\n", "").endswith(f"stopped; {out} is written")
    assert load_checkpoint(out).config == load_checkpoint(golden.FOLDER / "ee6d").config


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    argv = ["convert_checkpoint", *map(str, arguments), "--layout=hf"]
    monkeypatch.setattr(sys, "argv", argv)
    return convert_checkpoint.main(convert_checkpoint.COMMAND.parse(argv))
