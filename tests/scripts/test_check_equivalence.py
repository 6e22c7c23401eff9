"""The equivalence report on golden checkpoints that are alike, and on some that are not."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

import xvla_jax
from scripts.equivalence import report as equivalence_report
from scripts.equivalence.report import Plan, check, print_report
from scripts.equivalence.torch_process import TorchOptions
from tests.xvla_jax import golden
from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax import lora
from xvla_jax.checkpoint_tools import compare
from xvla_jax.errors import ConfigError
from xvla_jax.processor import Processor

jax.config.update("jax_default_matmul_precision", "highest")

_CASE = golden.FOLDER / "joint_hetero"
_ADAPTER = golden.FOLDER.parent / "lora" / "joint_hetero"
# With these, and three observations, shapes are those of the golden inputs: programs are shared
# with tests/xvla_jax/checkpoint_tools/test_compare.py.
_PROCESSOR = Processor(image_size=72, text_length=9)
_STAGES = ["image_features_valid", "vlm_features", "aux_visual_inputs", "head_output", "actions"]


def _changed(folder: Path, change: Callable[[Any], None], **fields: Any) -> str:
    """The golden checkpoint with other weights, in the released layout."""
    config, params = xvla_jax.load_pretrained(_CASE)
    tree: Any = copy.deepcopy(dict(params))
    change(tree)
    other = dataclasses.replace(config, **fields)
    xvla_jax.save_pretrained(folder, other, tree, processor=_PROCESSOR)
    return str(folder)


def _copied(folder: Path, weights: str, processor: Processor = _PROCESSOR) -> str:
    """The golden checkpoint as it is, with processor files."""
    folder.mkdir()
    shutil.copy(_CASE / "config.json", folder)
    shutil.copy(_CASE / weights, folder / "model.safetensors")
    processor.write(folder)
    return str(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The golden checkpoint in the released layout."""
    return _copied(tmp_path_factory.mktemp("golden") / "hf", "model.safetensors")


def _check(a: str, b: str) -> dict[str, Any]:
    return check(Plan(a, b, dtypes=("float32",), observations=3))


def _verdicts(comparison: dict[str, Any]) -> list[bool]:
    assert [row["stage"] for row in comparison["stages"]] == _STAGES
    return [row["passed"] for row in comparison["stages"]]


def _printed(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(console, report)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


@pytest.mark.slow
def test_layouts_of_the_same_weights_are_equal(released: str, tmp_path: Path) -> None:
    report = _check(released, _copied(tmp_path / "native", "lerobot_native.safetensors"))
    assert report["passed"] is True
    assert (report["a"]["layout"], report["b"]["layout"]) == ("hf", "lerobot-native")
    assert report["parameters"]["differing"] == 0
    assert report["parameters"]["equal"] == report["a"]["parameters"]
    assert sorted(report["buffers"].values()) == ["equal", "only in A"]
    (comparison,) = report["comparisons"]
    assert (comparison["dtype"], comparison["gate"]) == ("float32", 1e-5)
    assert [row["largest_difference"] for row in comparison["stages"]] == [0.0] * 5
    assert report["inputs"]["domains"][:2] == [0, 2]
    assert report["inputs"]["views_shown"] == [3, 2, 1]
    json.dumps(report, allow_nan=False)
    lines = _printed(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "verdict: pass"


def test_an_orbax_export_is_equal(released: str, tmp_path: Path) -> None:
    config, params = xvla_jax.load_pretrained(_CASE)
    xvla_jax.save_pretrained(tmp_path / "orbax", config, params, "orbax", processor=_PROCESSOR)
    report = _check(str(tmp_path / "orbax"), released)
    assert report["passed"] is True
    assert report["a"]["layout"] == "orbax"
    assert report["a"]["values"] == report["b"]["values"] == 145_286
    assert report["parameters"]["differing"] == 0
    assert [row["largest_difference"] for row in report["comparisons"][0]["stages"]] == [0.0] * 5


def _in_text_encoder(params: Any) -> None:
    params["vlm"]["text_encoder"]["layers"]["norm1"]["bias"][0, 0] += 1e-3


def _in_head(params: Any) -> None:
    params["transformer"]["norm"]["bias"][0] += 1e-3


@pytest.mark.parametrize(
    ("change", "verdicts", "name"),
    [
        (
            _in_text_encoder,
            [True, False, True, False, False],
            "vlm.language_model.model.encoder.layers.0.self_attn_layer_norm.bias",
        ),
        (_in_head, [True, True, True, False, False], "transformer.norm.bias"),
    ],
)
def test_a_changed_weight_fails_what_comes_after_it(
    change: Callable[[Any], None], verdicts: list[bool], name: str, released: str, tmp_path: Path
) -> None:
    report = _check(released, _changed(tmp_path / "other", change))
    assert report["passed"] is False
    (comparison,) = report["comparisons"]
    assert _verdicts(comparison) == verdicts
    upstream = [row for row in comparison["stages"] if row["passed"]]
    assert [row["largest_difference"] for row in upstream] == [0.0] * len(upstream)
    assert report["parameters"]["passed"] is False
    assert [entry["name"] for entry in report["parameters"]["most_different"]] == [name]
    assert report["parameters"]["most_different"][0]["largest_difference"] == pytest.approx(
        1e-3, rel=1e-3
    )
    text = _printed(report)
    assert name in text
    assert text.splitlines()[-1] == "verdict: FAIL"


def test_weights_that_no_observation_reaches_still_fail(released: str, tmp_path: Path) -> None:
    def in_unused_text_position(params: Any) -> None:
        params["vlm"]["text_encoder"]["position_embedding"][0] += 1.0  # two rows before the first

    report = _check(released, _changed(tmp_path / "other", in_unused_text_position))
    assert report["comparisons"][0]["passed"] is True
    assert report["parameters"]["passed"] is False
    assert report["passed"] is False


@pytest.mark.slow
def test_without_b_the_types_are_compared() -> None:
    report = check(Plan(str(_CASE)))
    (comparison,) = report["comparisons"]
    assert (comparison["who"], comparison["dtype"], comparison["gate"]) == ("A", "bfloat16", 3e-2)
    assert _verdicts(comparison) == [True] * 5
    assert min(row["quotient"] for row in comparison["stages"]) > 1e-4  # it is no float32
    assert report["passed"] is True
    assert not {"b", "parameters", "processor"} & set(report)
    assert _printed(report).splitlines()[-1] == "verdict: pass"


def test_weights_stored_in_bfloat16_have_their_gate(released: str, tmp_path: Path) -> None:
    config, params = xvla_jax.load_pretrained(_CASE)
    xvla_jax.save_pretrained(
        tmp_path / "half", config, params, "lerobot-vendored", dtype="bfloat16"
    )
    report = _check(released, str(tmp_path / "half"))
    assert report["passed"] is True
    (comparison,) = report["comparisons"]
    assert (comparison["gate"], comparison["gate_of"]) == (3e-2, "bfloat16")
    assert comparison["stages"][0]["quotient"] > 1e-5
    assert report["parameters"]["rounded_to"] == "bfloat16"
    assert report["parameters"]["differing"] == 0


def test_other_preprocessing_fails(released: str, tmp_path: Path) -> None:
    other = dataclasses.replace(_PROCESSOR, resample=2, text_length=50)
    report = _check(released, _copied(tmp_path / "other", "model.safetensors", other))
    assert report["comparisons"][0]["passed"] is True
    assert report["processor"]["differing"] == {"resample": (3, 2), "text_length": (9, 50)}
    assert report["processor"]["raw_pixel_difference"] > 1
    assert report["passed"] is False
    assert "pixels of 480 x 640 images: by" in _printed(report)


@pytest.mark.torch
def test_lerobot_is_compared_from_raw_observations(tmp_path: Path) -> None:
    python = os.environ.get("XVLA_LEROBOT_PYTHON", "")
    if not python:
        pytest.skip("XVLA_LEROBOT_PYTHON is not set")
    folder = exports.write(tmp_path / "out", "auto", "pad", "lerobot-native")
    torch = TorchOptions("lerobot", python=python)
    report = check(Plan(str(folder), dtypes=("float32",), observations=2, torch=torch))
    network, raw = report["comparisons"]
    assert _verdicts(network) == [True] * 5
    assert "480 x 640 px, resize 'pad'" in raw["who"]
    stages = [stage.name for stage in compare.RAW_STAGES]
    assert [(row["stage"], row["passed"]) for row in raw["stages"]] == [(s, True) for s in stages]
    assert "actions in the robot's units" in _printed(report)
    assert report["passed"] is True


def test_an_adapter_is_merged_into_its_side(released: str, tmp_path: Path) -> None:
    config, params = xvla_jax.load_pretrained(_CASE)
    adapter = lora.load_adapter(_ADAPTER, config)
    merged = lora.merge_adapter(params, adapter)
    xvla_jax.save_pretrained(tmp_path / "merged", config, merged, processor=_PROCESSOR)
    plan = Plan(released, str(tmp_path / "merged"), dtypes=("float32",), observations=3)
    report = check(dataclasses.replace(plan, adapter_a=str(_ADAPTER)))
    assert report["passed"] is True
    assert report["parameters"]["differing"] == 0
    assert "adapter" in _printed(report)
    without = check(plan)
    assert without["passed"] is False
    assert without["parameters"]["differing"] > 10


def test_other_models_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _changed(tmp_path / "other", lambda _: None, num_heads=4)
    monkeypatch.setattr(equivalence_report, "load_checkpoint", lambda _: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="num_heads: 5 and 4"):
        check(Plan(str(_CASE), other))


def _main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.check_equivalence", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_refusals_are_one_message_and_status_2() -> None:
    refused = _main(str(_CASE), str(golden.FOLDER / "ee6d"))
    assert refused.returncode == 2
    assert "different models" in " ".join(refused.stdout.split())
    assert "Traceback" not in refused.stdout + refused.stderr


@pytest.mark.slow
def test_a_failed_gate_is_status_1_and_in_the_file(tmp_path: Path) -> None:
    other, out = _changed(tmp_path / "other", _in_head), tmp_path / "report.json"
    done = _main(str(_CASE), other, "--dtypes=float32", "--observations=1", f"--out={out}")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["passed"] is False
    assert {"a", "b", "buffers", "comparisons", "config", "inputs", "versions"} <= set(report)
    assert "verdict: FAIL" in done.stdout
