"""Policies that LeRobot saves, and the observations they are asked with; numpy alone.

Weights are functions of their names, so that fixtures hold none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).parents[2] / "fixtures" / "lerobot"
SIDE, TEXT, CHUNK = 32, 12, 6
TASKS = ["pick up the black bowl and place it on the plate", "open the top drawer"]
SIZES = ((480, 640), (640, 480), (100, 333), (64, 64), (SIDE, SIDE), (20, 24))
_BUFFERS = ("pos_idx_to_embed", "final_logits_bias")
_IDENTITY = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclasses.dataclass(frozen=True)
class Saved:
    """A policy as LeRobot saves it.

    Attributes:
        lerobot: version that saved it.
        fields: of its config, beyond the shape.
        state: channels.
        action: channels.
        cameras: with height and width.
        stats: for the processors.
        size: of raw images.
    """

    lerobot: str
    fields: dict[str, Any]
    state: int
    action: int
    cameras: dict[str, tuple[int, int]]
    stats: dict[str, dict[str, list[Any]]]
    size: tuple[int, int] = (480, 640)


def _numbers(count: int, start: float, step: float) -> list[float]:
    return [start + step * i for i in range(count)]


_IMAGES = {name: [[[v]] for v in values] for name, values in _IMAGENET.items()}
SAVED = {
    "auto_mean_std": Saved(
        "0.4.4",
        {
            "action_mode": "auto",
            "max_state_dim": 32,
            "resize_imgs_with_padding": [SIDE, SIDE],
            "num_image_views": 3,
            "normalization_mapping": _IDENTITY | {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        },
        state=8,
        action=7,
        cameras={"top": (480, 640), "left_wrist": (480, 640)},
        stats={
            "observation.state": {"mean": _numbers(8, -1, 0.3), "std": _numbers(8, 0.1, 0.2)},
            "action": {"mean": _numbers(7, 20, -7), "std": _numbers(7, 5, 9)},
        },
    ),
    "ee6d_no_resize": Saved(
        "0.4.4",
        {"action_mode": "ee6d", "max_state_dim": 32, "empty_cameras": 1},
        state=20,
        action=20,
        cameras={"top": (SIDE, SIDE), "left_wrist": (SIDE, SIDE)},
        stats={},
        size=(SIDE, SIDE),
    ),
    "auto_quantiles": Saved(
        "0.6.1",
        {
            "action_mode": "auto",
            "max_state_dim": 32,
            "resize_imgs_with_padding": [SIDE, SIDE],
            "normalization_mapping": {
                "VISUAL": "MEAN_STD",
                "STATE": "MIN_MAX",
                "ACTION": "QUANTILES",
            },
        },
        state=6,
        action=6,
        cameras={"top": (480, 640), "left_wrist": (480, 640)},
        stats={
            "observation.images.top": _IMAGES,
            "observation.images.left_wrist": _IMAGES,
            "observation.state": {"min": _numbers(6, -3, 0.1), "max": _numbers(6, -2.5, 0.9)},
            "action": {"q01": _numbers(6, -90, 10), "q99": _numbers(6, -90, 30)},
        },
    ),
    "franka_narrow_state": Saved(
        "0.6.1",
        {
            "action_mode": "franka_joint7",
            "max_state_dim": 8,
            "resize_imgs_with_padding": [SIDE, SIDE],
            "num_image_views": 2,
            "normalization_mapping": _IDENTITY | {"ACTION": "QUANTILE10"},
        },
        state=7,
        action=7,
        cameras={"top": (480, 640), "left_wrist": (480, 640)},
        stats={"action": {"q10": _numbers(7, -9, 1), "q90": _numbers(7, -8, 3)}},
    ),
}


def is_buffer(name: str) -> bool:
    """True if a stored tensor is no parameter."""
    return name.endswith(_BUFFERS)


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter of a name; both names of the token table give the same."""
    digest = hashlib.sha256(name.replace("encoder.embed_tokens", "shared").encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32).tolist())
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def observations(size: tuple[int, int], state: int, width: int) -> dict[str, np.ndarray]:
    """Two observations of two cameras, the second with the first camera alone.

    As ``scripts/equivalence/torch_lerobot.py`` takes them.
    """
    rng, (height, rows) = np.random.default_rng(7), size
    cell = 4 if min(size) < 50 else 20
    images = rng.integers(0, 256, (2, 2, -(-height // cell), -(-rows // cell), 3))
    images = images.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :height, :rows]
    images = np.clip(images + rng.integers(-20, 21, images.shape), 0, 255)
    return {
        "images": images.astype(np.uint8),
        "shown": np.array([2, 1]),
        "proprio": rng.normal(0, 0.5, (2, state)).astype(np.float32),
        "sample_noise": rng.normal(size=(2, CHUNK, width)).astype(np.float32),
    }
