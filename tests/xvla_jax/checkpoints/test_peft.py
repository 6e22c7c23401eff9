"""PEFT's rules for finding modules, and the kinds of adapter that are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from xvla_jax.checkpoints.peft import PeftConfig
from xvla_jax.errors import CheckpointError

QKV, FC2 = "transformer.blocks.3.attn.qkv", "vlm.language_model.model.encoder.layers.11.fc2"
NORM = "transformer.norm"


def _config(**fields: Any) -> PeftConfig:
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["qkv", "fc2"]}
    return PeftConfig(plain | fields)


@pytest.mark.parametrize(
    ("fields", "adapted"),
    [
        ({}, [QKV, FC2]),
        ({"target_modules": ["kv", "attn.qkv", FC2]}, [QKV, FC2]),  # ends of names, at a dot
        ({"target_modules": ["kv"]}, []),
        ({"target_modules": r"transformer\..*\.(qkv|proj)"}, [QKV]),
        ({"target_modules": r"transformer\..*\.q"}, []),  # the expression has to match all of it
        ({"target_modules": "ALL-linear"}, [QKV, FC2]),
        ({"exclude_modules": ["fc2"]}, [QKV]),
        ({"exclude_modules": r".*encoder.*"}, [QKV]),
        ({"modules_to_save": ["transformer"]}, [FC2]),
        ({"layers_to_transform": [3, 4]}, [QKV]),
        ({"layers_to_transform": 11}, [FC2]),
        ({"layers_to_transform": []}, [QKV, FC2]),
        ({"layers_to_transform": [7], "target_modules": ["fc2", QKV]}, [QKV]),  # full names
        ({"layers_to_transform": [3, 11], "layers_pattern": "layers"}, [FC2]),
        ({"layers_to_transform": [3, 11], "layers_pattern": ["layers", "blocks"]}, [QKV, FC2]),
    ],
)
def test_modules_are_selected_as_peft_selects_them(
    fields: dict[str, Any], adapted: list[str]
) -> None:
    config = _config(**fields)
    assert [name for name in (QKV, FC2) if config.adapts(name, linear=True)] == adapted
    assert not config.adapts(NORM, linear=False)


def test_saved_modules_are_selected_by_the_ends_of_their_names_or_of_their_parents() -> None:
    config = _config(modules_to_save=["action_decoder", "norm"])
    assert config.saves("transformer.action_decoder.fc")
    assert config.saves("vlm.image_proj_norm")  # PEFT asks for no dot before the end
    assert not config.saves("transformer.action_encoder.fc")
    assert not _config().saves(NORM)


@pytest.mark.parametrize(
    ("fields", "rank", "scale"),
    [
        ({}, 4, 2.0),
        ({"use_rslora": True}, 4, 4.0),
        ({"rank_pattern": {r"blocks\.\d\.attn.qkv": 16}}, 16, 0.5),
        ({"rank_pattern": {"kv": 16}}, 4, 2.0),  # a pattern begins at a dot
        ({"alpha_pattern": {"fc2": 1, "attn.qkv": 6}}, 4, 1.5),
        ({"alpha_pattern": {"qkv": 6}, "rank_pattern": {QKV: 9}, "use_rslora": True}, 9, 2.0),
    ],
)
def test_rank_and_scale(fields: dict[str, Any], rank: int, scale: float) -> None:
    config = _config(**fields)
    assert (config.rank(QKV), config.scale(QKV)) == (rank, scale)
    assert (config.rank(FC2), config.scale(NORM)) == (4, 4.0 if fields.get("use_rslora") else 2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOKR"),
        ("peft_type", "IA3"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("target_parameters", ["experts"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [3]),
        ("arrow_config", {"top_k": 3}),
        ("r", 0),
        ("r", 2.5),
        ("lora_alpha", "16"),
        ("target_modules", None),
        ("target_modules", "(qkv"),
        ("exclude_modules", 3),
        ("modules_to_save", "transformer"),
        ("rank_pattern", {"qkv": 1.5}),
        ("alpha_pattern", {"(qkv": 4}),
        ("use_rslora", "yes"),
        ("layers_to_transform", ["3"]),
        ("layers_pattern", 3),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"\n  {field} is .*(supported: |is expected)"):
        _config(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_bdlora", {"target_modules": ["qkv"]}),
        ("lora_ga_config", {"iters": 2}),
        ("ensure_weight_tying", True),
        ("use_rslora_v2", True),
        ("rank", 16),  # a slip for r
        ("offset", 0.5),
    ],
)
def test_fields_that_are_not_known_have_to_be_empty(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"\n  {field} is .*not known here"):
        _config(**{field: value})
    for empty in (None, False, [], {}, ""):
        assert _config(**{field: empty}).rank(QKV) == 4


# LoraConfig of PEFT 0.18 with its defaults, as it is saved
DEFAULTS = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "2toINF/X-VLA-Pt",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.1,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.18.0",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": "main",
    "target_modules": ["qkv", "fc2"],
    "target_parameters": None,
    "task_type": "FEATURE_EXTRACTION",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def test_the_defaults_of_peft_are_taken() -> None:
    assert PeftConfig(DEFAULTS).scale(QKV) == 2.0


def test_all_fields_at_fault_are_in_one_error() -> None:
    with pytest.raises(CheckpointError) as caught:
        _config(use_dora=True, bias="all", r=None)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["bias", "use_dora", "r"]


def test_a_folder_that_is_no_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no such folder"):
        PeftConfig.read(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no PEFT adapter.*\['model\.safetensors'\]"):
        PeftConfig.read(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text('{"peft_type": ')
    with pytest.raises(CheckpointError, match="not JSON"):
        PeftConfig.read(tmp_path)
    path.write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match=r"a JSON object is expected, found \[1\]"):
        PeftConfig.read(tmp_path)


def test_a_pattern_of_exponential_time_is_refused(tmp_path: Path) -> None:
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": r"(\w|\w\w|\.)+(?=!)"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw))
    peft = PeftConfig.read(tmp_path)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"takes more than 1\.0 s; give a simpler pattern"):
        peft.adapts("transformer.blocks.0.attn.qkv" * 3, linear=True)
    assert time.monotonic() - began < 10
