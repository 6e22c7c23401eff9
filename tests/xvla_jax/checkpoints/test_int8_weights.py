"""Folders with int8 weights: written, read as they are, and refused where they do not serve."""

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
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint
from xvla_jax.errors import CheckpointError
from xvla_jax.models.inference import abstract_inference_params
from xvla_jax.models.int8 import DEFAULT_GROUPS, int8_groups, int8_params
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.serving.engine import model_sha256

_CASE = golden.load("ee6d")
_PROCESSOR = Processor(image_size=64, text_length=11)
_FC1 = "transformer.blocks.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "hf"
    written = xvla_jax.save_pretrained(
        folder, _CASE.config, _CASE.params, processor=_PROCESSOR, dtype="int8"
    )
    assert written == sum(
        x.dtype == np.int8 for x in load_file(folder / "model.safetensors").values()
    )
    return folder


def test_the_folder_says_its_format(folder: Path) -> None:
    note = json.loads((folder / "config.json").read_text())["int8"]
    assert note["groups"] == list(DEFAULT_GROUPS)
    tensors = load_file(folder / "model.safetensors")
    fc1 = np.asarray(_CASE.params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"])[0]
    values, scale = tensors[_FC1], tensors[f"{_FC1}_scale"]
    assert (values.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (fc1.shape[1], 1))
    assert np.abs(values * scale - fc1.T).max() <= scale.max() / 2 * (1 + 1e-6)
    assert tensors["transformer.norm.weight"].dtype == np.float32


def test_weights_stay_int8_and_name_another_model(folder: Path) -> None:
    policy = Policy.from_pretrained(folder)
    kinds = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(policy.params)}
    assert kinds == {"int8", "float32"}
    assert policy.int8 == tuple(DEFAULT_GROUPS)
    # what a server compiles ahead, before the weights are read
    shapes = abstract_inference_params(_CASE.config, np.float32, None, int8=policy.int8)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), policy.params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )
    rounded = int8_params(_CASE.params, DEFAULT_GROUPS)
    same = Policy(_CASE.config, rounded, _PROCESSOR, {})
    expanded = Policy(_CASE.config, jax.tree.map(np.asarray, rounded), _PROCESSOR, {})
    assert model_sha256(policy) == model_sha256(same) != model_sha256(expanded)


def test_conversions_keep_the_integers(folder: Path, tmp_path: Path) -> None:
    loaded, again = convert_checkpoint(folder, tmp_path / "again", "hf")
    assert (loaded.int8, again.dtype, again.rounded) == (tuple(DEFAULT_GROUPS), "int8", 0)
    names = ("model.safetensors", "config.json")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    convert_checkpoint(folder, tmp_path / "wide", "hf", dtype="float32")
    config, params = xvla_jax.load_pretrained(tmp_path / "wide")
    assert "int8" not in config.to_dict()
    expected = jax.tree.map(np.asarray, int8_params(_CASE.params, DEFAULT_GROUPS))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, expected)))
    with pytest.raises(CheckpointError, match="layout is 'orbax', and int8 weights are stored in"):
        convert_checkpoint(folder, tmp_path / "run", "orbax")
    with pytest.raises(
        CheckpointError, match=r"has int8 weights of vision_embed, .*; other groups"
    ):
        convert_checkpoint(folder, tmp_path / "less", "hf", int8=["head_mlp"])
    assert {path.name for path in tmp_path.iterdir()} == {"again", "wide"}


def test_a_choice_of_groups(tmp_path: Path) -> None:
    source = golden.FOLDER / "ee6d"
    convert_checkpoint(source, tmp_path / "some", "hf", dtype="int8", int8=["text_mlp", "head_mlp"])
    loaded = load_checkpoint(tmp_path / "some", stored=True, int8=True)
    assert loaded.int8 == int8_groups(loaded.params) == ("text_mlp", "head_mlp")
    with pytest.raises(
        CheckpointError, match="groups of int8 weights are head; known are vision_e"
    ):
        convert_checkpoint(source, tmp_path / "no", "hf", dtype="int8", int8=["head"])


def test_training_and_editing_are_refused(folder: Path) -> None:
    for stored in (False, True):
        with pytest.raises(CheckpointError, match="has int8 weights, which act, but are not train"):
            load_checkpoint(folder, stored=stored)
    with pytest.raises(CheckpointError, match="--dtype=float32, which writes their values"):
        xvla_jax.load_pretrained(folder)


def test_files_that_do_not_fit_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    wide = (tensors[_FC1] * tensors[f"{_FC1}_scale"]).astype(np.float32)
    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    for change, message in (
        ({f"{_FC1}_scale": None}, f"missing    {_FC1}_scale"),
        (
            {f"{_FC1}_scale": np.full_like(tensors[f"{_FC1}_scale"], np.nan)},
            f"{_FC1}_scale: .* val",
        ),
        ({_FC1: wide, f"{_FC1}_scale": None}, "tensors of head_mlp are int8; all or none"),
        ({"transformer.pos_emb": np.zeros_like(tensors["transformer.pos_emb"], np.int8)}, "I8"),
    ):
        kept = {k: v for k, v in (tensors | change).items() if v is not None}
        save_file(kept, edited / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(edited, int8=True)
    save_file(tensors, edited / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    raw["int8"]["groups"] = ["head_mlp"]
    (edited / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"int8.groups is \['head_mlp'\], the weights have"):
        load_checkpoint(edited, int8=True)
    del raw["int8"]
    (edited / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"int8\.groups is None, the weights have"):
        load_checkpoint(edited)
