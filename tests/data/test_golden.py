"""Episodes in the original's storage layouts, and the samples that its reader makes of them."""

import importlib.util
import json

import numpy as np
import pytest

from data.faults import Faults
from data.rows.table import dataset
from data.sources import open_reader
from data.stream.batches import BatchForm, Collator
from data.stream.stream import Sample
from data.stream.windows import episode_samples
from tests.data.conftest import FIXTURES
from tests.data.fakes import good, tokenize

GOLDEN = FIXTURES / "golden_data"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.json"))
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
GRID = np.arange(7, 224, 15)
needs_av = pytest.mark.skipif(not importlib.util.find_spec("av"), reason="needs av (PyAV)")


@pytest.fixture(params=[pytest.param(n, marks=[needs_av] * (n == "lift2")) for n in NAMES])
def case(request):
    folder = GOLDEN / request.param
    expected = json.loads((folder / "expected.json").read_text())
    reader = open_reader(dataset(expected["handler"]), folder)
    episodes = [
        episode_samples(trajectory, reader.spec, expected["num_actions"])
        for part in range(len(reader.episodes_per_part))
        for trajectory in good(reader, part)
    ]
    return reader.spec, episodes, expected, np.load(folder / "expected.npz")


def test_all_eight_are_here():
    assert len(NAMES) == 8


def test_the_same_samples(case):
    spec, episodes, expected, z = case
    assert spec.domain_id == expected["domain_id"]
    assert len(spec.views) == expected["views_in_meta"]
    assert [len(samples) for samples in episodes] == expected["samples_per_episode"]
    assert [samples.num_frames for samples in episodes] == expected["frames_per_episode"]
    assert [[samples.instruction] for samples in episodes] == expected["instructions_per_episode"]
    np.testing.assert_array_equal(np.concatenate([s.frames for s in episodes]), z["all/index"])


def test_the_same_numbers(case):
    _, episodes, expected, z = case
    proprio = np.concatenate([samples.proprio for samples in episodes])
    actions = np.concatenate([samples.actions for samples in episodes])
    chosen = z["select/position"]
    for ours, theirs in (
        (proprio, z["all/proprio"]),
        (actions.mean(axis=1), z["all/action_mean"]),
        (proprio[chosen], z["select/proprio"]),
        (actions[chosen], z["select/action"]),
    ):
        limit = expected["tolerance"]["proprio_action_abs"]
        np.testing.assert_allclose(ours, theirs, atol=limit, rtol=0)


def test_the_same_images(case):
    spec, episodes, expected, z = case
    places = list(zip(z["image/episode"], z["image/index"], strict=True))
    samples = [
        Sample(spec, episodes[name], int(np.flatnonzero(episodes[name].frames == frame)[0]), 0, 0)
        for name, frame in places
    ]
    collate = Collator(BatchForm(3, 224, tokenize), faults=Faults(0))
    batch, _ = collate([iter([sample]) for sample in samples])
    collate.close()
    np.testing.assert_array_equal(batch["view_mask"], z["image/mask"])
    pixels = batch["images"].transpose(0, 1, 4, 2, 3)  # [B, V, C, H, W]
    np.testing.assert_array_equal(pixels[..., 100:112, 100:112], z["image/patch_u8"])
    np.testing.assert_array_equal(pixels.astype(np.int64).sum((-2, -1)), z["image/uint8_sum"])
    scaled = (batch["images"] / 255.0 - MEAN) / STD * batch["view_mask"][..., None, None, None]
    tensor = scaled.transpose(0, 1, 4, 2, 3)
    limit = expected["tolerance"]
    grid = tensor[..., GRID[:, None], GRID]
    by_channel = STD[:, None, None]
    unit = np.abs(grid - z["image/grid"]) * by_channel
    assert unit.max() < limit["image_grid_abs_unit_range"]
    for ours, theirs in (
        (tensor.mean((-2, -1)), z["image/mean"]),
        (tensor.std((-2, -1)), z["image/std"]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=limit["image_mean_abs"])
    if "image/full_u8" in z.files:
        np.testing.assert_array_equal(pixels[0], z["image/full_u8"])
