"""The PyTorch process: its protocol with a stand-in, its errors, and the real one where it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scripts.equivalence import torch_packages
from scripts.equivalence.torch_process import (
    TorchOptions,
    TorchReference,
    TorchReferenceError,
    require_torch,
)
from scripts.equivalence.torch_reference import STAGES
from tests.xvla_jax import golden
from xvla_jax.checkpoint_tools import compare

_PYTHON = os.environ.get("XVLA_TORCH_PYTHON", "")
_PACKAGE = os.environ.get("XVLA_TORCH_PACKAGE", "")

# Doubles what it is given; noise on stderr must not disturb.
_DOUBLER = """
import json, sys
import numpy as np
print(json.dumps({"torch": "0", "arguments": sys.argv[1:]}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print("x" * 100000, file=sys.stderr)
    with np.load(request["inputs"]) as arrays:
        np.savez(request["outputs"], **{k: request["steps"] * v for k, v in arrays.items()})
    print(json.dumps({"seconds": 0.0}), flush=True)
"""
_DOOMED = """
import sys
print("{}", flush=True)
sys.stdin.readline()
sys.exit("no room for so many views")
"""


def _stand_in(folder: Path, program: str) -> TorchOptions:
    """Options whose Python is a program of ours."""
    python = folder / "python"
    python.write_text(f"#!{sys.executable}\n{program}")
    python.chmod(0o755)
    return TorchOptions("lerobot", python=str(python), threads=3)


def test_requests_are_answered_in_turn(tmp_path: Path) -> None:
    with TorchReference(tmp_path, _stand_in(tmp_path, _DOUBLER)) as reference:
        arguments = reference.about["arguments"]
        for value in (1.0, 5.0):
            outputs = reference.stages({"proprio": np.full(3, value)}, steps=2)
            assert outputs["proprio"].tolist() == [2 * value] * 3
    assert arguments[:2] == ["-m", "scripts.equivalence.torch_reference"]
    assert f"--checkpoint={tmp_path}" in arguments
    assert {"--package=lerobot", "--dtype=float32", "--threads=3"} <= set(arguments)


def test_last_words_of_the_process_are_in_the_error(tmp_path: Path) -> None:
    reference = TorchReference(tmp_path, _stand_in(tmp_path, _DOOMED))
    with reference, pytest.raises(TorchReferenceError, match="status 1: no room for so many views"):
        reference.ask({"command": "time"})


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    options = TorchOptions("lerobot", python=str(tmp_path / "python"))
    with (
        pytest.raises(TorchReferenceError, match="cannot start"),
        TorchReference(tmp_path, options),
    ):
        pass


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_packages, "NEEDED", ("numpy", "no_such_torch"))
    with pytest.raises(SystemExit, match=r"has no no_such_torch.*--torch_python.*pip install no_s"):
        torch_packages.require(str(tmp_path))
    monkeypatch.setattr(torch_packages, "NEEDED", ("numpy",))
    with pytest.raises(SystemExit, match=r"has no models/modeling_xvla\.py"):
        torch_packages.require(str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "modeling_xvla.py").touch()
    torch_packages.require(str(tmp_path))


def test_a_python_without_torch_is_refused_first(tmp_path: Path) -> None:
    options = _stand_in(tmp_path, "import sys; sys.exit('no torch here')")
    with pytest.raises(TorchReferenceError, match="cannot be run: no torch here"):
        require_torch(options)


def test_stages_have_the_same_names_on_both_sides() -> None:
    assert tuple(stage.name for stage in compare.STAGES) == STAGES


@pytest.fixture(scope="module")
def real() -> Iterator[TorchReference]:
    """The original package on a golden checkpoint."""
    if not (_PYTHON and _PACKAGE):
        pytest.skip("XVLA_TORCH_PYTHON and XVLA_TORCH_PACKAGE are not set")
    options = TorchOptions(_PACKAGE, python=_PYTHON, threads=1)
    with TorchReference(golden.FOLDER / "ee6d", options) as reference:
        yield reference


@pytest.mark.torch
def test_original_code_gives_the_golden_outputs(real: TorchReference) -> None:
    case = golden.load("ee6d")
    outputs = real.stages(case.inputs, steps=10)
    expected = {**case.outputs, "actions": case.outputs["actions_steps10"]}
    results = compare.compare(outputs, expected, gate=2e-6)
    assert [(r.stage.name, r.quotient) for r in results if not r.passed] == []


@pytest.mark.torch
def test_parts_are_timed_call_by_call(real: TorchReference) -> None:
    asked = {"batch": 2, "views": 3, "present": 2, "image_size": 64, "text_length": 11, "steps": 3}
    parts = ["actions", "encode", "image_features", "head_step"]
    answer = real.ask({"command": "time", **asked, "warmup": 1, "repeat": 4, "parts": parts})
    assert [(part, len(seconds)) for part, seconds in answer["seconds"].items()] == [
        (part, 4) for part in parts
    ]
    assert all(second > 0 for seconds in answer["seconds"].values() for second in seconds)
    assert answer["peak_rss_bytes"] > 100 << 20
