"""Contact sheets of the data doctor: a few pictures of an episode with the path of the hands."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.inspection.camera import ENOUGH_R2
from data.inspection.geometry import GRIPPER
from data.inspection.grippers import HALF
from data.inspection.reports import Camera, Sheet

GAP = 4  # px between pictures
FINE = 3  # the path is drawn so many times as large, then made smaller, to be smooth
LINE = 3  # px
EDGE = 1  # px, dark, so that the path shows on bright pictures too
DOT = 6  # px, radius
# beginning -> end of the path, for each arm
COLOURS = (((64, 160, 255), (255, 120, 40)), ((70, 220, 150), (220, 80, 220)))
LEAVES = 1.5  # parts of the picture: points further out than the picture are not drawn


def usable(cameras: Sequence[Camera]) -> tuple[Camera, ...]:
    """The cameras that explain enough of what they have not seen."""
    return tuple(camera for camera in cameras if camera.r2 >= ENOUGH_R2)


def contact_sheet(sheet: Sheet, cameras: Sequence[Camera]) -> bytes:
    """A JPEG file: a row for each view, a column for each picture; paths on the main view."""
    count, size = sheet.pictures[0].shape[:2]
    rows = len(sheet.pictures)
    width, height = count * (size + GAP) - GAP, rows * (size + GAP) - GAP
    whole = Image.new("RGB", (width, height), (128, 128, 128))
    for row, pictures in enumerate(sheet.pictures):
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(pixels)
            if row == 0:
                picture = _with_paths(picture, sheet, int(sheet.frames[column]), cameras)
            whole.paste(picture, (column * (size + GAP), row * (size + GAP)))
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _with_paths(
    picture: Image.Image, sheet: Sheet, frame: int, cameras: Sequence[Camera]
) -> Image.Image:
    """The picture with the whole path of each hand, and where the hand is: full when closed."""
    if not cameras:
        return picture
    size = picture.width * FINE
    ink = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(ink)
    for camera in cameras:
        hand = sheet.hands[camera.arm]
        places = camera.project(hand[:, :3])
        _draw_path(draw, places, size, camera.arm)
        if _inside(places[frame]):
            closed = bool(hand[frame, GRIPPER] > HALF)
            _draw_dot(draw, places[frame] * size, _blend(camera.arm, frame, len(hand)), closed)
    ink = ink.resize(picture.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(picture.convert("RGBA"), ink).convert("RGB")


def _draw_path(draw: ImageDraw.ImageDraw, places: NDArray[np.float64], size: int, arm: int) -> None:
    pieces = [
        (_blend(arm, i, len(places)), [tuple(places[i] * size), tuple(places[i + 1] * size)])
        for i in range(len(places) - 1)
        if _inside(places[i]) and _inside(places[i + 1])
    ]
    for _, ends in pieces:
        draw.line(ends, fill=(0, 0, 0, 150), width=(LINE + 2 * EDGE) * FINE)
    for colour, ends in pieces:
        draw.line(ends, fill=colour, width=LINE * FINE)


def _draw_dot(
    draw: ImageDraw.ImageDraw, centre: NDArray[np.float64], colour: tuple[int, ...], closed: bool
) -> None:
    radius = DOT * FINE
    box = (*(centre - radius), *(centre + radius))
    draw.ellipse(box, outline=(255, 255, 255), width=2 * FINE, fill=colour if closed else None)


def _blend(arm: int, step: int, count: int) -> tuple[int, ...]:
    first, last = (np.array(colour) for colour in COLOURS[arm])
    share = step / max(count - 1, 1)
    return tuple(int(value) for value in (1 - share) * first + share * last)


def _inside(place: NDArray[np.float64]) -> bool:
    return bool(np.abs(place - 0.5).max() < LEAVES)
