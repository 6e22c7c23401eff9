"""Conversions with all that they report: adapters, rounding, verification, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.checkpoints import lerobot_exports as exports
from xvla_jax.checkpoint_tools import convert_layout
from xvla_jax.checkpoint_tools.certificate import certificate_name
from xvla_jax.checkpoint_tools.convert_layout import convert_checkpoint, verify
from xvla_jax.checkpoints.safetensors_files import StoredLeaf
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import load_adapter, merge_adapter
from xvla_jax.pretrained import LAYOUTS, load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.serving.engine import model_sha256

_SOURCE = golden.FOLDER / "ee6d"
_LORA = golden.FOLDER.parent / "lora" / "ee6d"


def test_numbers_of_both_sides_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    loaded, done = convert_checkpoint(
        _SOURCE, tmp_path / "out", "orbax", progress=lambda *at: seen.append(at)
    )
    assert (done.source.layout, done.source.tensors) == ("hf", 255)
    assert done.source.nbytes == 4 * (180_888 + 83 + 6 * 32)  # with two buffers
    assert (done.target.layout, done.target.tensors) == (
        "orbax",
        len(jax.tree.leaves(loaded.params)),
    )
    assert done.target.nbytes >= 4 * 180_888
    assert (done.dtype, done.rounded) == ("float32", 0)
    assert seen[-1] == (4 * 180_888, 4 * 180_888)
    assert done.seconds > 0
    assert done.peak_rss > 4 * 180_888


def test_parameters_are_passed_on_from_disk(tmp_path: Path) -> None:
    for source, layout in ((_SOURCE, "orbax"), (tmp_path / "orbax", "hf")):
        loaded, _ = convert_checkpoint(source, tmp_path / layout, layout)
        assert {type(leaf) for leaf in jax.tree.leaves(loaded.params)} == {StoredLeaf}
    ours = (tmp_path / "hf" / "model.safetensors").read_bytes()
    assert ours == (_SOURCE / "model.safetensors").read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stored_leaf_is_the_array_it_stands_for(layout: str, tmp_path: Path) -> None:
    convert_checkpoint(_SOURCE, tmp_path / "out", layout)
    stored = load_checkpoint(tmp_path / "out", stored=True).params
    params = load_checkpoint(tmp_path / "out").params
    for ours, theirs in zip(jax.tree.leaves(stored), jax.tree.leaves(params), strict=True):
        assert (ours.shape, ours.dtype, ours.nbytes) == (theirs.shape, theirs.dtype, theirs.nbytes)
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    blocks = stored["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(
        blocks[1], params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"][1]
    )


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with preprocessing, and what stands for its certificate."""
    folder = tmp_path_factory.mktemp("source") / "certified"
    case = golden.load("ee6d")
    xvla_jax.save_pretrained(folder, case.config, case.params, processor=Processor())
    (folder / certificate_name("float32")).write_text('{"of": "these weights"}')
    return folder


def test_certificates_go_where_the_model_is_the_same(certified: Path, tmp_path: Path) -> None:
    name = certificate_name("float32")
    _, done = convert_checkpoint(certified, tmp_path / "run", "orbax")
    assert (done.certificates, done.left) == ((name,), ())
    # beside the run, not in what its later steps carry along
    (tmp_path / "run" / name).write_text('{"of": "the run"}')
    convert_checkpoint(tmp_path / "run", tmp_path / "back", "hf")
    assert (tmp_path / "back" / name).read_text() == '{"of": "the run"}'
    (tmp_path / "run" / name).unlink()
    _, done = convert_checkpoint(tmp_path / "run", tmp_path / "without", "hf")
    assert (done.certificates, done.left) == ((), ())
    assert not (tmp_path / "without" / name).exists()
    ours, theirs = (
        model_sha256(xvla_jax.Policy.from_pretrained(f)) for f in (certified, tmp_path / "back")
    )
    assert ours == theirs


# LeRobot has no step like the released way of resizing, so another one takes its place.
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"resize": "pad"},
        {"adapter": _LORA},
        {"layout": "lerobot-native"},
    ],
)
def test_certificates_of_a_changed_model_are_left(
    certified: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    name = certificate_name("float32")
    _, done = convert_checkpoint(certified, tmp_path / "out", **{"layout": "hf", **change})
    assert (done.certificates, done.left) == ((), (name,))
    assert not (tmp_path / "out" / name).exists()


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    loaded, _ = convert_checkpoint(_SOURCE, tmp_path / "out", "hf", adapter=_LORA)
    case = golden.load("ee6d")
    merged = merge_adapter(case.params, load_adapter(_LORA, case.config))
    _, params = xvla_jax.load_pretrained(tmp_path / "out")
    assert _equal(params, merged)
    assert _equal(params, loaded.params)
    assert not _equal(params, case.params)


def _equal(a: Any, b: Any) -> bool:
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), dict(a), dict(b))
    return all(jax.tree.leaves(same))


def test_verification_rounds_as_the_file_does_and_sees_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_layout, "_act", _no_actions)
    loaded, done = convert_checkpoint(_SOURCE, tmp_path / "out", "hf", dtype="bfloat16")
    assert done.rounded > 200
    assert verify(loaded, tmp_path / "out", dtype="bfloat16")["parameters_equal"] is True
    assert verify(loaded, tmp_path / "out", dtype="float32")["parameters_equal"] is False
    params = jax.tree.map(np.array, loaded.params)
    params["transformer"]["norm"]["bias"][0] += 1
    other = dataclasses.replace(loaded, params=params)
    assert verify(other, tmp_path / "out", dtype="bfloat16")["parameters_equal"] is False


def _no_actions(*_: object) -> np.ndarray:
    return np.zeros((1, 2, 20), np.float32)


def test_the_sources_type_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    convert_checkpoint(_SOURCE, tmp_path / "half", "lerobot-vendored", dtype="bfloat16")
    _, kept = convert_checkpoint(tmp_path / "half", tmp_path / "kept", "hf")
    _, wide = convert_checkpoint(tmp_path / "half", tmp_path / "wide", "hf", dtype="float32")
    assert (kept.dtype, kept.rounded, wide.dtype, wide.rounded) == ("bfloat16", 0, "float32", 0)
    assert wide.target.nbytes == 2 * kept.target.nbytes
    ours, theirs = (xvla_jax.load_pretrained(tmp_path / name)[1] for name in ("kept", "wide"))
    assert _equal(ours, theirs)


def test_targets_in_the_source_or_in_use_are_refused_first(tmp_path: Path) -> None:
    case = golden.load("ee6d")
    source = tmp_path / "source"
    xvla_jax.save_pretrained(source, case.config, case.params, processor=Processor())
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(CheckpointError, match="lie in one another"):
        convert_checkpoint(source, source / "out", "orbax")
    with pytest.raises(CheckpointError, match="lie in one another"):
        convert_checkpoint(source, source, "orbax", overwrite=True)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "used", "orbax")
    assert sorted(path.name for path in source.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "used"]


@pytest.mark.parametrize("layout", ["hf", "orbax"])
def test_values_that_are_not_finite_are_refused(layout: str, tmp_path: Path) -> None:
    case = golden.load("ee6d")
    params = jax.tree.map(np.array, dict(case.params))
    for name in ("scale", "bias"):
        params["transformer"]["norm"][name][3] = np.nan
    xvla_jax.save_pretrained(tmp_path / "source", case.config, params, "orbax")
    with pytest.raises(CheckpointError, match="2 tensors hold NaN or infinity"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_raw_observations_show_another_preprocessing(tmp_path: Path) -> None:
    """Pixels of 480 x 640 px, not those that both sides would take as they are."""
    made = exports.checkpoint("ee6d")  # stretches by Pillow's filter, which LeRobot lacks
    xvla_jax.save_pretrained(tmp_path / "hf", made.config, made.params, processor=made.processor)
    loaded, _ = convert_checkpoint(tmp_path / "hf", tmp_path / "near", "lerobot-native")
    comparison = verify(loaded, tmp_path / "near", dtype="float32")
    assert comparison["parameters_equal"] is True
    assert comparison["preprocessing"] == {"resize": ("stretch", "linear")}
    assert comparison["largest_action_difference"] > 0
    for resize in ("pad", "linear", "none"):
        loaded, _ = convert_checkpoint(
            tmp_path / "hf", tmp_path / resize, "lerobot-native", resize=resize
        )
        comparison = verify(loaded, tmp_path / resize, dtype="float32")
        assert (comparison["preprocessing"], comparison["largest_action_difference"]) == ({}, 0.0)


def test_images_of_which_nothing_is_said_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no processor, whose resizing --resize could"):
        convert_checkpoint(_SOURCE, tmp_path / "out", "hf", resize="pad")
    assert not (tmp_path / "out").exists()
