"""Weights both ways, key by key, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xvla_jax
from tests.xvla_jax import golden
from xvla_jax import convert
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.processor import Processor

_TEMPORAL = "vlm.visual_temporal_embed.pos_idx_to_embed"


@pytest.mark.parametrize("name", golden.CASES)
def test_released_file_round_trips(name: str, tmp_path: Path) -> None:
    source = golden.FOLDER / name
    config, params = xvla_jax.load_pretrained(source)
    xvla_jax.save_pretrained(tmp_path / "out", config, params)
    ours, theirs = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if key == _TEMPORAL:  # a constant; only row 0 is used, the others to the last bit
            np.testing.assert_array_equal(ours[key][0], value[0])
            np.testing.assert_allclose(ours[key], value, atol=2e-7)
        else:
            np.testing.assert_array_equal(ours[key], value, err_msg=key)
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert _contains(after, before) == []


def _contains(whole: object, part: object, where: str = "") -> list[str]:
    """Paths at which ``whole`` lacks or changes something of ``part``."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return [
            problem
            for key, value in part.items()
            for problem in (
                _contains(whole[key], value, f"{where}.{key}")
                if key in whole
                else [f"{where}.{key}"]
            )
        ]
    return [] if whole == part else [where]


@pytest.mark.parametrize("layout", sorted(convert.DIALECTS))
def test_every_dialect_round_trips_bit_for_bit(layout: str, tmp_path: Path) -> None:
    case = golden.load("joint_hetero")
    xvla_jax.save_pretrained(tmp_path / "out", case.config, case.params, layout=layout)
    config, params = xvla_jax.load_pretrained(tmp_path / "out")
    assert config == case.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, dict(case.params))))


def test_native_export_has_lerobots_names() -> None:
    theirs = load_file(golden.FOLDER / "joint_hetero" / "lerobot_native.safetensors")
    other = golden.load("joint_hetero")
    ours = convert.to_torch(other.params, other.config, "lerobot-native")
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if not key.endswith("pos_idx_to_embed"):
            np.testing.assert_array_equal(ours[key], value, err_msg=key)


def _copy(tmp_path: Path, edit: dict[str, np.ndarray | None], name: str = "ee6d") -> Path:
    """The golden checkpoint with tensors replaced (None: removed)."""
    folder = tmp_path / "edited"
    folder.mkdir()
    shutil.copy(golden.FOLDER / name / "config.json", folder)
    tensors = load_file(golden.FOLDER / name / "model.safetensors") | edit
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")
    return folder


def test_all_key_problems_are_in_one_error(tmp_path: Path) -> None:
    folder = _copy(
        tmp_path,
        {
            "transformer.norm.weight": None,
            "transformer.norm.bias": np.zeros(3, np.float32),
            "transformer.extra": np.zeros(2, np.float32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        xvla_jax.load_pretrained(folder)
    text = str(caught.value)
    assert "3 tensors differ" in text
    assert "missing    transformer.norm.weight [48]" in text
    assert "mis-shaped transformer.norm.bias: found [3], expected [48]" in text
    assert "surplus    transformer.extra [2]" in text


def test_the_token_table_is_read_under_either_name(tmp_path: Path) -> None:
    shared = "vlm.language_model.model.shared.weight"
    alias = "vlm.language_model.model.encoder.embed_tokens.weight"
    table = load_file(golden.FOLDER / "ee6d" / "model.safetensors")[shared]
    _, params = xvla_jax.load_pretrained(_copy(tmp_path, {shared: None, alias: table}))
    np.testing.assert_array_equal(params["vlm"]["text_encoder"]["token_embedding"], table)
    shutil.rmtree(tmp_path / "edited")
    with pytest.raises(CheckpointError, match="two different tensors"):
        xvla_jax.load_pretrained(_copy(tmp_path, {alias: table + 1}))


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    save_file({"encoder.weight": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not X-VLA's.*encoder\.weight"):
        xvla_jax.load_pretrained(tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    whole = (golden.FOLDER / "ee6d" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        xvla_jax.load_pretrained(tmp_path)


def test_missing_folder_config_and_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        xvla_jax.load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        xvla_jax.load_pretrained(tmp_path)
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no Orbax steps"):
        xvla_jax.load_pretrained(tmp_path)


def test_export_never_overwrites_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden.load("ee6d")
    target = tmp_path / "out"
    monkeypatch.setattr(Processor, "write", _no_space)
    with pytest.raises(OSError, match="No space left"):
        xvla_jax.save_pretrained(target, case.config, case.params, processor=Processor())
    assert list(tmp_path.iterdir()) == []
    xvla_jax.save_pretrained(target, case.config, case.params)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        xvla_jax.save_pretrained(target, case.config, case.params)
    (target / "old").touch()
    xvla_jax.save_pretrained(target, case.config, case.params, overwrite=True)
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _no_space(self: Processor, folder: Path) -> None:
    raise OSError(28, "No space left on device")


def test_unknown_layout_lists_the_known_ones() -> None:
    case = golden.load("ee6d")
    with pytest.raises(CheckpointError, match=r"layout is 'torch'; known are hf, lerobot-vendored"):
        convert.to_torch(case.params, case.config, "torch")
