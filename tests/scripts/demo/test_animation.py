"""A film becomes a moving image of the same size and pace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.pictures import encode_mp4
from scripts.demo.animation import write_animation


def test_frames_size_and_pace_stay(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 64, 3), np.uint8)
    for k, frame in enumerate(frames):
        frame[:, 10 * k : 10 * k + 10] = (200, 30, 30)  # a bar that moves right
    film, path = tmp_path / "film.mp4", tmp_path / "film.webp"
    film.write_bytes(encode_mp4(frames, fps=10, scale=1))
    write_animation(film, path)
    image: Any = Image.open(path)
    with image:
        assert (image.size, image.n_frames, image.info["loop"]) == ((64, 32), 5, 0)
        places, durations = [], []
        for k in range(5):
            image.seek(k)
            image.load()
            pixels = np.asarray(image.convert("RGB"), np.float32)[..., 0]
            places.append(int(pixels.mean(0).argmax()) // 10)
            durations.append(image.info["duration"])
    assert places == [0, 1, 2, 3, 4]
    assert durations == [100, 100, 100, 100, 1100]
