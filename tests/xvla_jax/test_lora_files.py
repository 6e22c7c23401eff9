"""Adapter folders both ways, and which of them are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.xvla_jax import golden
from tests.xvla_jax.tiny import equal
from xvla_jax.checkpoints.names import DIALECTS, rows
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo, write_safetensors
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import LoraConfig, init_adapter, load_adapter, save_adapter

ADAPTERS = golden.FOLDER.parent / "lora"
FILES = ("adapter_config.json", "adapter_model.safetensors")
PREFIX = "base_model.model."
QKV_A = PREFIX + "transformer.blocks.0.attn.qkv.lora_A.weight"
PROMPTS = PREFIX + "transformer.soft_prompt_hub.weight"

Tensors = dict[str, np.ndarray]


def _copy(folder: Path, change: Callable[[Tensors], Any], **fields: Any) -> Path:
    """The adapter of ee6d with its tensors changed in place and fields of its config replaced."""
    folder.mkdir(exist_ok=True)
    files = TensorFiles.open(ADAPTERS / "ee6d" / FILES[1])
    tensors = {key: files.read(key) for key in files.info}
    change(tensors)
    info = {key: TensorInfo.of(value) for key, value in tensors.items()}
    write_safetensors(folder / FILES[1], info, tensors.__getitem__, metadata={"format": "pt"})
    raw = json.loads((ADAPTERS / "ee6d" / FILES[0]).read_text()) | fields
    (folder / FILES[0]).write_text(json.dumps(raw, indent=2, sort_keys=True))
    return folder


def _rename(tensors: Tensors, name: Callable[[str], str]) -> None:
    for key in list(tensors):
        tensors[name(key)] = tensors.pop(key)


@pytest.mark.parametrize("name", ["ee6d", "joint_hetero"])
def test_a_released_adapter_comes_out_byte_for_byte(name: str, tmp_path: Path) -> None:
    config = golden.load(name).config
    save_adapter(tmp_path / "out", load_adapter(ADAPTERS / name, config), config)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(FILES)
    for file in FILES:
        assert (tmp_path / "out" / file).read_bytes() == (ADAPTERS / name / file).read_bytes()


def test_unknown_fields_and_bfloat16_survive(tmp_path: Path) -> None:
    def halve(tensors: Tensors) -> None:
        for key in tensors:
            if "lora_" in key:
                tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)

    config = golden.load("ee6d").config
    source = _copy(tmp_path / "in", halve, peft_version="0.18.0")
    adapter = load_adapter(source, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter.tensors)} == {np.dtype(np.float32)}
    save_adapter(tmp_path / "out", adapter, config)
    for file in FILES:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes()


def test_ranks_and_absent_layers_of_a_stack() -> None:
    adapter = load_adapter(ADAPTERS / "joint_hetero", golden.load("joint_hetero").config)
    blocks = adapter.tensors["transformer"]["blocks"]
    qkv, proj = blocks["attn"]["qkv"]["kernel"], blocks["attn"]["proj"]["kernel"]
    assert qkv["a"].shape == (2, 40, 3)  # layer 1 has rank 1, the others 3
    assert qkv["b"].shape == (2, 3, 120)
    assert qkv["a"][1, :, 0].all()
    assert not qkv["a"][1, :, 1:].any()
    assert not qkv["b"][1, 1:].any()
    assert not proj["a"][0].any()  # excluded
    assert proj["a"][1].all()
    scales = adapter.scales["transformer", "blocks", "attn", "qkv", "kernel"].ravel()
    np.testing.assert_allclose(scales, [5 / 3**0.5, 5], rtol=1e-6)
    assert adapter.scales["transformer", "blocks", "attn", "proj", "kernel"][0] == 0
    conv = adapter.tensors["vlm"]["vision_tower"]["embed0"]["conv"]["kernel"]
    assert (conv["a"].shape, conv["b"].shape) == ((7, 7, 3, 3), (1, 1, 3, 8))


@pytest.mark.parametrize(
    ("dialect", "projections"),
    [
        ("lerobot-vendored", ["fn.proj"]),
        ("lerobot-native", ["window_attn.proj", "channel_attn.proj"]),
    ],
)
def test_lerobots_names_give_the_same_adapter(
    dialect: str, projections: list[str], tmp_path: Path
) -> None:
    case = golden.load("ee6d")
    modules = {
        row.torch.rpartition(".")[0]: DIALECTS[dialect].rename(row.torch).rpartition(".")[0]
        for row in rows(case.config)
    }

    def name(key: str) -> str:
        module = key.removeprefix(PREFIX).partition(".lora_")[0]
        module = module if module in modules else module.rpartition(".")[0]
        return key.replace(module, modules[module])

    targets = ["attn.proj", "fc1", "fc2", "qkv", "k_proj", "v_proj", "q_proj", "out_proj"]
    targets += ["vlm_proj", "aux_visual_proj", *projections]
    source = _copy(tmp_path / "in", lambda t: _rename(t, name), target_modules=targets)
    adapter = load_adapter(source, case.config)
    assert adapter.dialect == dialect
    assert equal(adapter.tensors, load_adapter(ADAPTERS / "ee6d", case.config).tensors)
    save_adapter(tmp_path / "out", adapter, case.config)
    assert (tmp_path / "out" / FILES[1]).read_bytes() == (source / FILES[1]).read_bytes()


def test_lerobots_native_image_projection_is_linear(tmp_path: Path) -> None:
    """In LeRobot it is a layer, and so part of all-linear; in the original it is a bare matrix."""
    a, b = np.full((2, 32), 0.5, np.float32), np.ones((32, 2), np.float32)
    module = PREFIX + "model.vlm.multi_modal_projector.image_projection.lora_"

    def only(tensors: Tensors) -> None:
        tensors.clear()
        tensors.update({module + "A.weight": a, module + "B.weight": b})

    config = golden.load("ee6d").config
    source = _copy(tmp_path, only, target_modules=["image_projection"], modules_to_save=None)
    adapter = load_adapter(source, config)
    pair = adapter.tensors["vlm"]["image_projector"]["projection"]
    np.testing.assert_array_equal(pair["a"] @ pair["b"], (b @ a).T)


def test_names_of_a_live_model_are_read_and_saved_as_peft_saves_them(tmp_path: Path) -> None:
    def lengthen(key: str) -> str:
        if "lora_" in key:
            return key.replace(".weight", ".default.weight")
        return key.replace("soft_prompt_hub", "soft_prompt_hub.modules_to_save.default").replace(
            "coder.", "coder.modules_to_save."
        )

    config = golden.load("ee6d").config
    source = _copy(tmp_path / "in", lambda t: _rename(t, lengthen))
    save_adapter(tmp_path / "out", load_adapter(source, config), config)
    released = (ADAPTERS / "ee6d" / FILES[1]).read_bytes()
    assert (tmp_path / "out" / FILES[1]).read_bytes() == released
    twice = _copy(tmp_path / "twice", lambda t: t.update({lengthen(PROMPTS): t[PROMPTS]}))
    with pytest.raises(CheckpointError, match=r"soft_prompt_hub\.weight is stored twice"):
        load_adapter(twice, config)


def test_all_tensors_at_fault_are_in_one_error(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[PROMPTS] = tensors[PROMPTS][1:]
        tensors["extra"] = np.zeros(2, np.float32)
        tensors[QKV_A.replace("lora_A", "lora_B")] = np.zeros((144, 2), np.int32)
        del tensors[QKV_A]

    with pytest.raises(CheckpointError) as caught:
        load_adapter(_copy(tmp_path, spoil), golden.load("ee6d").config)
    text = str(caught.value)
    assert "base: 2toINF/X-VLA-Pt; hf names" in text
    assert "4 tensors differ" in text
    assert f"missing    {QKV_A} [2, 48]" in text
    assert f"mis-shaped {PROMPTS}: found [3, 240], expected [4, 240]" in text
    assert "surplus    extra [2]" in text
    assert f"mis-typed  {QKV_A.replace('lora_A', 'lora_B')}: I32" in text


def test_an_adapter_for_another_base_is_refused() -> None:
    config = golden.load("auto").config  # other widths, other depths
    with pytest.raises(CheckpointError, match=r"does not fit this model") as caught:
        load_adapter(ADAPTERS / "ee6d", config)
    for problem in ("missing ", "mis-shaped", "surplus "):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["lm_head"]}, r"base: 2toINF/X-VLA-Pt\) changes no module"),
        ({"target_modules": ["shared"]}, r"model\.shared, which is neither linear nor"),
        ({"target_modules": ["dw"]}, r"conv1\.fn\.dw, which is neither linear nor"),
        ({"modules_to_save": ["blocks.1.mlp"]}, r"not all of the 2 layers of its stack"),
    ],
)
def test_configs_that_do_not_fit_the_model(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = _copy(tmp_path, lambda tensors: None, **({"modules_to_save": None} | fields))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(source, golden.load("ee6d").config)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_neither_read_nor_written(
    value: float, tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[PROMPTS][0, 0] = value

    case = golden.load("ee6d")
    with pytest.raises(CheckpointError, match=r"soft_prompt_hub\.weight: 1 values"):
        load_adapter(_copy(tmp_path / "in", spoil), case.config)
    adapter = init_adapter(case.params, case.config, LoraConfig(rank=2).peft(), seed=0)
    adapter.tensors["transformer"]["soft_prompts"][0, 0, 0] = value
    with pytest.raises(CheckpointError, match=r"soft_prompt_hub\.weight: 1 values"):
        save_adapter(tmp_path / "out", adapter, case.config)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]  # nothing half written


def test_damaged_or_missing_files_are_named(tmp_path: Path) -> None:
    config = golden.load("ee6d").config
    shutil.copy(ADAPTERS / "ee6d" / FILES[0], tmp_path)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: no such file"):
        load_adapter(tmp_path, config)
    complete = (ADAPTERS / "ee6d" / FILES[1]).read_bytes()
    (tmp_path / FILES[1]).write_bytes(complete[:-8])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_adapter(tmp_path, config)


def test_a_folder_in_use_is_replaced_only_when_asked(tmp_path: Path) -> None:
    case = golden.load("ee6d")
    adapter = load_adapter(ADAPTERS / "ee6d", case.config)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_adapter(tmp_path / "out", adapter, case.config)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
    save_adapter(tmp_path / "out", adapter, case.config, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted([*FILES, "out"])


def test_a_fresh_adapter_is_saved_and_read_back(tmp_path: Path) -> None:
    case = golden.load("ee6d")
    peft = LoraConfig(rank=2, target_modules=("qkv", "proj")).peft("a base")
    assert peft.base == "a base"
    adapter = init_adapter(case.params, case.config, peft, seed=0)
    save_adapter(tmp_path / "out", adapter, case.config)
    again = load_adapter(tmp_path / "out", case.config)
    assert again.peft == adapter.peft
    assert equal(again.tensors, adapter.tensors)
    assert equal(again.scales, adapter.scales)
