"""A changed simulator is refused by name; another renderer's rounding is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from eval.runs.golden_frame import (
    FOLDER,
    Frame,
    GoldenFrameError,
    Verdict,
    compare_frames,
    frame_name,
    frame_of,
    load_frame,
    refuse_changed,
    save_frame,
)
from eval.tasks.table import TASKS

VERSIONS = {"mujoco": "3.17.0", "robosuite": "1.4.0"}


def scene(samples: int = 4) -> np.ndarray:
    """A slanted dark board on a lit floor, uint8[64, 64, 3], drawn with samples^2 per pixel."""
    fine = np.linspace(0, 1, 64 * samples, endpoint=False)
    y, x = np.meshgrid(fine, fine, indexing="ij")
    floor = 90 + 100 * y
    board = (np.abs((x - 0.4) + 0.3 * (y - 0.5)) < 0.15) | (np.hypot(x - 0.8, y - 0.3) < 0.1)
    fine_image = np.stack([np.where(board, 30 + 20 * k, floor - 15 * k) for k in range(3)], -1)
    return fine_image.reshape(64, samples, 64, samples, 3).mean((1, 3)).astype(np.uint8)


def frame(
    *images: np.ndarray, renderer: str = "llvmpipe 15", versions: dict[str, str] = VERSIONS
) -> Frame:
    return frame_of(images, renderer=renderer, versions=versions)


STORED = frame(scene(), scene()[::-1])


def shifted(levels: int) -> np.ndarray:
    return (scene().astype(int) + levels).astype(np.uint8)


def verdict(first: np.ndarray, renderer: str = "llvmpipe 15") -> Verdict:
    return compare_frames(STORED, frame(first, scene()[::-1], renderer=renderer))


def test_the_same_frame_is_identical() -> None:
    assert verdict(scene()) == Verdict("identical", mean=0.0, worst=0.0, pixels=0.0)


def test_another_renderer_with_other_rounding_is_within_tolerance() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, scene().shape)
    for image in (shifted(1), np.clip(scene() + noise, 0, 255).astype(np.uint8)):
        made = verdict(image, renderer="llvmpipe 17")
        assert made.state == "within tolerance"
        assert made.notes == ("renderer 'llvmpipe 17', stored with 'llvmpipe 15'",)
        refuse_changed(made, task="t", accept=False)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.where(np.arange(64)[:, None, None] > 31, scene() * 0.93, scene()), r"image off by 2\."),
        (scene()[::-1], "the first view is upside down"),
        (scene()[:, ::-1], "the first view is mirrored"),
        (scene()[..., ::-1], "red and blue swapped"),
        (scene(samples=1), r"% of pixels beyond 16"),
        (scene()[:32, :32], "images 32 x 32, 64 x 64, stored 64 x 64, 64 x 64"),
    ],
    ids=["darker floor", "upside down", "mirrored", "bgr", "no anti-aliasing", "other size"],
)
def test_altered_frames_are_refused_by_name(image: np.ndarray, words: str) -> None:
    made = verdict(image.astype(np.uint8), renderer="another")
    assert made.state == "changed"
    with pytest.raises(GoldenFrameError, match=words):
        refuse_changed(made, task="quickstart", accept=False)
    with pytest.raises(GoldenFrameError, match=r"renderer 'another'.*--accept_renderer"):
        refuse_changed(made, task="quickstart", accept=False)
    refuse_changed(made, task="quickstart", accept=True)


def test_another_simulator_is_refused_though_it_looks_the_same() -> None:
    other = frame(scene(), scene()[::-1], versions={"mujoco": "3.3.7"})
    made = compare_frames(STORED, other)
    assert made.differences == (
        "mujoco 3.3.7, stored with 3.17.0",
        "robosuite missing, stored with 1.4.0",
    )
    with pytest.raises(GoldenFrameError, match=r"mujoco 3\.3\.7, stored with 3\.17\.0"):
        refuse_changed(made, task="quickstart", accept=False)


def test_where_nothing_is_stored_nothing_is_refused() -> None:
    made = compare_frames(None, STORED)
    assert made.state == "none stored"
    refuse_changed(made, task="t", accept=False)


def test_a_stored_frame_comes_back(tmp_path: Path) -> None:
    assert load_frame(tmp_path, "x") is None
    save_frame(tmp_path, "x", STORED)
    read = load_frame(tmp_path, "x")
    assert read is not None
    assert compare_frames(read, STORED).state == "identical"
    assert (read.sizes, read.renderer, read.versions) == (
        STORED.sizes,
        STORED.renderer,
        STORED.versions,
    )


def test_views_of_any_size_are_reduced() -> None:
    small = frame(np.full((8, 8, 3), 7, np.uint8), np.full((200, 84, 3), 9, np.uint8))
    assert small.blocks.shape == (32, 64, 3)
    assert set(small.blocks[:, :32].flat) == {7}
    assert set(small.blocks[:, 32:].flat) == {9}


def test_rows_with_the_same_picture_share_a_frame() -> None:
    spec = TASKS["quickstart"]
    assert frame_name(spec) == "libero_object-3-128px-0x"
    assert frame_name(dataclasses.replace(spec, step_limit=9)) == frame_name(spec)
    assert frame_name(dataclasses.replace(spec, msaa_samples=4)) != frame_name(spec)


def test_stored_frames_are_small_and_readable() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.json"))
    assert frame_name(TASKS["quickstart"]) in names
    assert frame_name(TASKS["libero_spatial"]) in names
    for name in names:
        stored = load_frame(FOLDER, name)
        assert stored is not None
        renders = {"pybullet"} if name.startswith("ABC_D") else {"mujoco", "robosuite"}
        assert renders <= set(stored.versions)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 25_000 * len(names)
