"""Weights both ways, key by key, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import xvla_jax
from tests.xvla_jax import golden
from xvla_jax.checkpoints.names import DIALECTS
from xvla_jax.pretrained import LAYOUTS, Pretrained, load_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every golden case in every layout, with all that its source had."""
    folder = tmp_path_factory.mktemp("exported")
    places = {}
    for name in golden.CASES:
        source = load_checkpoint(golden.FOLDER / name)
        for layout in LAYOUTS:
            places[name, layout] = folder / name / layout
            _save(source, places[name, layout], layout, source.stored_dtype)
    return places


def _save(source: Pretrained, folder: Path, layout: str, dtype: str) -> int:
    return xvla_jax.save_pretrained(
        folder,
        source.config,
        source.params,
        layout,
        processor=source.processor,
        contracts=source.contracts,
        buffers=source.buffers,
        dtype=dtype,
        files=source.files,
    )


def _equal(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, dict(a), dict(b))))


Exported = dict[tuple[str, str], Path]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", golden.CASES)
def test_every_layout_and_back_gives_the_released_bytes(
    name: str, layout: str, exported: Exported, tmp_path: Path
) -> None:
    source, loaded = load_checkpoint(golden.FOLDER / name), load_checkpoint(exported[name, layout])
    assert loaded.config == source.config
    assert loaded.stored_dtype == "float32"
    assert _equal(loaded.params, source.params)
    assert not _save(loaded, tmp_path / "back", "hf", loaded.stored_dtype)
    for file in ("model.safetensors", "meta.json"):
        ours, theirs = tmp_path / "back" / file, golden.FOLDER / name / file
        assert ours.read_bytes() == theirs.read_bytes(), file
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (golden.FOLDER / name, tmp_path / "back")
    )
    assert _contains(after, before) == []


def _contains(tree: object, part: object, where: str = "") -> list[str]:
    """Paths at which ``tree`` lacks or changes something of ``part``."""
    if isinstance(part, dict) and isinstance(tree, dict):
        return [
            problem
            for key, value in part.items()
            for problem in (
                _contains(tree[key], value, f"{where}.{key}") if key in tree else [f"{where}.{key}"]
            )
        ]
    return [] if tree == part else [where]


@pytest.mark.parametrize("layout", sorted(DIALECTS))
@pytest.mark.parametrize("between", LAYOUTS)
def test_all_layouts_lead_to_all_layouts(
    between: str, layout: str, exported: Exported, tmp_path: Path
) -> None:
    loaded = load_checkpoint(exported["joint_hetero", between])
    _save(loaded, tmp_path / "out", layout, "float32")
    ours = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert ours == (exported["joint_hetero", layout] / "model.safetensors").read_bytes()


def test_native_export_is_lerobots_file(exported: Exported) -> None:
    ours = exported["joint_hetero", "lerobot-native"] / "model.safetensors"
    theirs = golden.FOLDER / "joint_hetero" / "lerobot_native.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", sorted(DIALECTS))
def test_half_precision_files_round_trip(layout: str, dtype: str, tmp_path: Path) -> None:
    source = load_checkpoint(golden.FOLDER / "ee6d")
    rounded = _save(source, tmp_path / "half", layout, dtype)
    assert rounded > 200
    half = load_checkpoint(tmp_path / "half")
    assert half.stored_dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}
    for ours, exact in zip(*map(jax.tree.leaves, (half.params, dict(source.params))), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2**-8, atol=1e-6)
    _save(half, tmp_path / "step", "orbax", half.stored_dtype)
    again = load_checkpoint(tmp_path / "step")
    assert again.stored_dtype == dtype
    assert _save(again, tmp_path / "back", layout, again.stored_dtype) == 0
    files = [tmp_path / name / "model.safetensors" for name in ("half", "back")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert (
        files[0].stat().st_size < 0.55 * (golden.FOLDER / "ee6d/model.safetensors").stat().st_size
    )


def test_buffers_travel_as_they_were(tmp_path: Path) -> None:
    source = load_checkpoint(golden.FOLDER / "ee6d")
    bias = "vlm.language_model.final_logits_bias"
    source.buffers[bias] = np.arange(83, dtype=np.float32)[None]
    _save(source, tmp_path / "a", "orbax", "float32")
    _save(load_checkpoint(tmp_path / "a"), tmp_path / "b", "hf", "float32")
    assert load_file(tmp_path / "b" / "model.safetensors")[bias].tolist() == [[*range(83)]]
