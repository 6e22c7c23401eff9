"""Turns a film of an evaluation into an animated WebP, which a README shows without a player."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from eval.files import write_bytes
from xvla_jax.errors import needs

FILE = "demo.webp"
_QUALITY = 60  # of WebP, 0 to 100: under 1 MB for 150 control steps of two cameras
_HOLD_S = 1.0  # the last frame stays before the film starts again


def write_animation(film: pathlib.Path, path: pathlib.Path) -> None:
    """Writes an MP4 as an animated WebP of the same size and pace, repeated for ever."""
    with needs("sim"):
        from imageio import v3
    frames = [Image.fromarray(frame) for frame in v3.imiter(film)]
    write_bytes(path, _webp(frames, v3.immeta(film)["fps"]))


def _webp(frames: Sequence[Image.Image], fps: float) -> bytes:
    durations = [round(1000 / fps)] * len(frames)  # ms
    durations[-1] += round(1000 * _HOLD_S)
    options: dict[str, Any] = {"save_all": True, "loop": 0, "quality": _QUALITY, "method": 6}
    out = io.BytesIO()
    frames[0].save(out, "WEBP", append_images=frames[1:], duration=durations, **options)
    return out.getvalue()
