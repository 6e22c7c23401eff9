"""Draws samples as training takes them: the images of every view and the targets as curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.faults import BadEpisodeError
from data.images import load_image
from data.poses.rotations import ARM_WIDTH
from data.rows.mixtures import mixture
from data.sources import open_mixture
from data.spec import DatasetSpec
from data.stream.windows import EpisodeSamples, episode_samples
from data.trajectory import Trajectory

NUM_ACTIONS = 30
SIDE = 224  # px of an image
WIDTH, MARGIN = 560, 22  # px of the panel of curves
PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#9c755f", "#edc948")
POSE_NAMES = ("x", "y", "z", *(f"r{i}" for i in range(6)), "gripper")
INK, PAPER, GRID = "#222222", "#ffffff", "#dddddd"


def draw_samples(row: str, root: Path, out: Path, *, count: int) -> None:
    """Writes a PNG with `count` samples of the row `module:NAME`, one below the other.

    Each shows its views and, from the state at the left to the last target at the right, a curve a
    channel between its lowest and highest value in the sample, which stand beside its name.

    Raises:
        ValueError, OSError: the row cannot be read, or no episode has a sample.
    """
    spec, _, samples = first_episode(row, root)
    places = np.linspace(0, len(samples) - 1, count + 2).round().astype(int)[1:-1]
    rows = [_sample(samples, spec, int(place)) for place in places]
    page = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), PAPER)
    for number, one in enumerate(rows):
        page.paste(one, (0, number * one.height))
    page.save(out)


def first_episode(row: str, root: Path) -> tuple[DatasetSpec, Trajectory, EpisodeSamples]:
    """The row as it was opened, its first episode that gives a sample, and the samples.

    Raises:
        ValueError, OSError: the row cannot be read, or no episode has a sample.
    """
    (source,) = open_mixture(mixture(row), root)
    spec = source.reader.spec
    for part in range(len(source.reader.episodes_per_part)):
        for trajectory in source.reader.read(part):
            if isinstance(trajectory, BadEpisodeError):
                continue
            samples = episode_samples(trajectory, spec, NUM_ACTIONS)
            if len(samples):
                return spec, trajectory, samples
    raise ValueError(f"{row}: no episode below {root} gives a sample")


def _sample(samples: EpisodeSamples, spec: DatasetSpec, place: int) -> Image.Image:
    views = samples.images
    names = channel_names(spec)
    height = max(SIDE + 2 * MARGIN, 16 * len(names) + 2 * MARGIN)
    page = Image.new("RGB", (len(views) * (SIDE + 8) + WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)
    text, _ = samples.text(place)
    draw.text((4, 4), f"frame {samples.frames[place]}: {text}"[:110], fill=INK)
    for number, view in zip(samples.view_numbers, views, strict=True):
        taken = view.take(np.array([place]))[0]
        shown = spec.views[number]
        pixels = load_image(
            taken, size=SIDE, channel_order=spec.channel_order_of(number), turn=shown.turn
        )
        left = number * (SIDE + 8)
        page.paste(Image.fromarray(pixels), (left, MARGIN))
        draw.text((left + 2, MARGIN + SIDE + 4), shown.key, fill=INK)
    points = np.concatenate((samples.proprio[place][None], samples.actions[place]))
    _curves(draw, points[:, : len(names)], names, len(views) * (SIDE + 8), height)
    return page


def channel_names(spec: DatasetSpec) -> list[str]:
    """Names of the channels of a row: of its joints, or of the poses of its arms."""
    if not spec.joints:
        sides = ("",) if len(spec.arms) == 1 else ("left ", "right ")
        return [f"{side}{name}" for side in sides for name in POSE_NAMES[:ARM_WIDTH]]
    if spec.channels:
        return [channel.name for channel in spec.channels]
    return [f"joint {i}" for i in range(spec.width)]


def _curves(
    draw: ImageDraw.ImageDraw,
    points: NDArray[np.float32],
    names: list[str],
    left: int,
    height: int,
) -> None:
    """Curves of points [P, D] in a panel from `left`, each in a band of its own."""
    band = (height - 2 * MARGIN) / len(names)
    first, last = left + 210, left + WIDTH - 10
    across = np.linspace(first, last, len(points))
    for number, (name, values) in enumerate(zip(names, points.T, strict=True)):
        top = MARGIN + number * band
        low, high = float(values.min()), float(values.max())
        share = (values - low) / (high - low) if high - low > 1e-6 else np.full(len(values), 0.5)
        heights = top + band - 3 - share * (band - 6)
        colour = PALETTE[number % len(PALETTE)]
        draw.line([(first, top + band), (last, top + band)], fill=GRID)
        draw.line(list(zip(across.tolist(), heights.tolist(), strict=True)), fill=colour, width=2)
        draw.ellipse((first - 3, heights[0] - 3, first + 3, heights[0] + 3), outline=colour)
        draw.text((left + 6, top + band / 2 - 6), f"{name[:18]} {low:.3g}..{high:.3g}", fill=INK)
    draw.text((first, 4), f"state, then {len(points) - 1} targets", fill=INK)
