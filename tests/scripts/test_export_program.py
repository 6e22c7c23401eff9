"""The command that exports a program: a folder that acts, or one line and nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scripts import export_program
from scripts.terminal import UsageError
from tests.xvla_jax import tiny
from xvla_jax.exported.standalone import ExportedPolicy
from xvla_jax.policy import Policy
from xvla_jax.pretrained import save_pretrained
from xvla_jax.serving.engine import model_sha256

_TEXT = "put the cube onto the plate"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "hf"
    save_pretrained(folder, tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR)
    return folder


def _export(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    argv = ["export_program", *flags]
    monkeypatch.setattr(sys, "argv", argv)
    return export_program.main(export_program.COMMAND.parse(argv))


def test_the_folder_acts_as_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "program"
    flags = [f"--checkpoint={checkpoint}", f"--out={out}", "--num_views=1"]
    assert _export(monkeypatch, *flags, f"--instruction={_TEXT}") == 0
    policy, exported = Policy.from_pretrained(checkpoint), ExportedPolicy(str(out))
    assert exported.manifest["source"]["sha256"] == model_sha256(policy)
    assert exported.manifest["platforms"] == ["cpu", "cuda", "tpu"]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    observation = {"images": [image], "instruction": _TEXT, "proprio": np.zeros(20, np.float32)}
    np.testing.assert_array_equal(
        exported.act([{**observation, "domain_id": "libero"}], seed=4),
        policy.act([{**observation, "domain_id": 3}], seed=4),  # pyright: ignore[reportArgumentType]
    )
    assert json.loads((out / "action_contract.json").read_text()) == []


@pytest.mark.slow
def test_int8_weights_stay_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "int8", tmp_path / "program"
    parts = tiny.CONFIG, tiny.params()
    save_pretrained(source, *parts, processor=tiny.PROCESSOR, dtype="int8")
    flags = [f"--checkpoint={source}", f"--out={out}", "--num_views=1", "--platforms=cpu"]
    assert _export(monkeypatch, *flags, f"--instruction={_TEXT}") == 0
    assert (out / "weights.safetensors").stat().st_size < 0.4 * 4 * sum(
        leaf.size for leaf in jax.tree.leaves(parts[1])
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    observation = {"images": [image], "instruction": _TEXT, "proprio": np.zeros(20, np.float32)}
    np.testing.assert_array_equal(
        ExportedPolicy(str(out)).act([{**observation, "domain_id": "libero"}], seed=4),
        Policy.from_pretrained(source).act([{**observation, "domain_id": 3}], seed=4),  # pyright: ignore[reportArgumentType]
    )


def test_other_platforms_are_named_and_nothing_is_written(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "program"
    flags = [f"--checkpoint={checkpoint}", f"--out={out}", "--num_views=1"]
    status = _export(monkeypatch, *flags, f"--instruction={_TEXT}", "--platforms=cpu,rocm")
    assert status == 1
    assert "--platforms=cpu,rocm; allowed are cpu, cuda, tpu" in capsys.readouterr().out
    assert not out.exists()


def test_a_text_must_be_given(checkpoint: Path, tmp_path: Path) -> None:
    flags = [f"--checkpoint={checkpoint}", f"--out={tmp_path / 'program'}", "--num_views=1"]
    with pytest.raises(UsageError, match="--instruction"):
        export_program.COMMAND.parse(["export_program", *flags])
