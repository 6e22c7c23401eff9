"""Length, texts and images that the tiny datasets of the tests have in common."""

import dataclasses
import io

import numpy as np
from PIL import Image

from data.rows.table import dataset

FRAMES = (11, 9)
RATE_HZ = 10.0
TEXTS = ("open the drawer", "fold the towel")


def small(name, **changes):
    """A row of the table, for episodes of a second."""
    short = {"rate_hz": RATE_HZ, "window_s": 0.5, "index_margin": 2, "index_step": 1}
    return dataclasses.replace(dataset(name), **(short | {"augment": "none"} | changes))


def image(episode, view, frame, size=32):
    """uint8[size, size, 3]: red counts the frames, green the views, blue the episodes."""
    colour = (20 * frame + 10, 80 * view + 10, 120 * episode + 10)
    return np.broadcast_to(np.array(colour, np.uint8), (size, size, 3))


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()
