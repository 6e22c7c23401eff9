"""Checkpoints that are refused: by name, all problems at once, and with nothing written."""

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
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor


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


def test_a_changed_sine_table_is_refused(tmp_path: Path) -> None:
    """PyTorch adds the stored row 0 to every image token; here it is a constant."""
    name = "vlm.visual_temporal_embed.pos_idx_to_embed"
    table = load_file(golden.FOLDER / "ee6d" / "model.safetensors")[name]
    table[0, 3] = 0.5
    with pytest.raises(CheckpointError, match=r"pos_idx_to_embed\[0, 3\] is 0\.5, .* has 1 there"):
        xvla_jax.load_pretrained(_copy(tmp_path, {name: table}))


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    save_file({"encoder.weight": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not X-VLA's.*encoder\.weight"):
        xvla_jax.load_pretrained(tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    content = (golden.FOLDER / "ee6d" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        xvla_jax.load_pretrained(tmp_path)


def test_missing_folder_config_and_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder$"):
        xvla_jax.load_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="hf download owner/name --local-dir FOLDER"):
        xvla_jax.load_pretrained("owner/name")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        xvla_jax.load_pretrained(tmp_path)
    shutil.copy(golden.FOLDER / "ee6d" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no Orbax steps"):
        xvla_jax.load_pretrained(tmp_path)


def test_export_never_overwrites_and_leaves_nothing_incomplete(
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


def test_unknown_layout_and_type_list_the_known_ones(tmp_path: Path) -> None:
    source = load_checkpoint(golden.FOLDER / "ee6d")
    with pytest.raises(CheckpointError, match=r"layout is 'torch'; known are hf, .*, orbax"):
        xvla_jax.save_pretrained(tmp_path / "out", source.config, source.params, "torch")
    with pytest.raises(CheckpointError, match=r"dtype is 'int4'; known are float32, bfloat16"):
        xvla_jax.save_pretrained(tmp_path / "out", source.config, source.params, dtype="int4")
    assert list(tmp_path.iterdir()) == []


def test_all_tensors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bad = np.ones(48, np.float32)
    bad[[1, 2]] = np.nan, np.inf
    folder = _copy(tmp_path, {"transformer.norm.weight": bad, "transformer.norm.bias": -bad})
    with pytest.raises(CheckpointError) as caught:
        xvla_jax.load_pretrained(folder)
    text = str(caught.value)
    assert "2 tensors hold NaN or infinity" in text
    assert "transformer.norm.weight: 2 values" in text
    assert "transformer.norm.bias: 2 values" in text
    case = golden.load("ee6d")
    params = jax.tree.map(np.copy, dict(case.params))
    params["transformer"]["norm"]["scale"] = bad
    with pytest.raises(CheckpointError, match=r"transformer\.norm\.weight: 2 values"):
        xvla_jax.save_pretrained(tmp_path / "out", case.config, params)
    xvla_jax.save_pretrained(tmp_path / "out", case.config, params, "orbax")
    with pytest.raises(CheckpointError, match="transformer/norm/scale: 2 values"):
        xvla_jax.load_pretrained(tmp_path / "out")


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = _copy(tmp_path, {})
    shutil.copy(golden.FOLDER / "auto" / "config.json", folder)
    with pytest.raises(CheckpointError, match=r"give the one that came with them; \d+ tensors"):
        xvla_jax.load_pretrained(folder)
    raw = json.loads((golden.FOLDER / "ee6d" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"action_mode": "ee7d"}))
    with pytest.raises(ConfigError, match=r"ee7d.*known are .*ee6d"):
        xvla_jax.load_pretrained(folder)


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    ours, other = golden.load("ee6d"), golden.load("auto")
    with pytest.raises(CheckpointError, match=r"leaves differ:\n  transformer/action_decoder/bias"):
        xvla_jax.save_pretrained(tmp_path / "out", ours.config, other.params)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter, no checkpoint; .*--adapter="):
        xvla_jax.load_pretrained(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    folder = _copy(tmp_path, {"transformer.norm.bias": np.zeros(48, np.int32)})
    with pytest.raises(CheckpointError, match=r"mis-typed  transformer\.norm\.bias: I32"):
        xvla_jax.load_pretrained(folder)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = load_checkpoint(golden.FOLDER / "ee6d")
    source.params["transformer"]["norm"]["bias"][3] = 7e4
    with pytest.raises(CheckpointError, match=r"norm\.bias has values up to 70000\.0, not"):
        xvla_jax.save_pretrained(tmp_path / "out", source.config, source.params, dtype="float16")
    assert list(tmp_path.iterdir()) == []
