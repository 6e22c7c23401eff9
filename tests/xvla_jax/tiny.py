"""The tiny model, its batches and its compiled train step, shared by all tests of a run.

Compiling is what these tests cost, so everything compiled is made once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from configs import models
from xvla_jax import sharding
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.processor import Processor
from xvla_jax.training.groups import NEVER, Group, Groups
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, TrainState, abstract_state, init_state
from xvla_jax.training.step import make_train_step

CONFIG = XVLAConfig.from_dict(models.model_dict(models.TINY, action_mode="ee6d"))
MODEL = XVLA(CONFIG)
# Quicker still to compile: one stage in the tower, whose drop path drops two of five branches.
_VISION: Any = {
    name: getattr(CONFIG.vision, name)[:1]
    for name in ("depths", "dim_embed", "num_heads", "num_groups", "patch_prenorm")
}
_VISION |= {"patch_size": (8,), "patch_stride": (8,), "patch_padding": (0,), "drop_path_rate": 0.4}
ONE_STAGE = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, **_VISION))
PROCESSOR = Processor(image_size=32, text_length=12)
RECIPE = Recipe(
    MODEL,
    OptimizerConfig(
        schedule="warmup_cosine", iters=100, learning_rate=3e-3, freeze_steps=0, warmup_steps=1
    ),
)


class OneWeight(Recipe):
    """Trains the parameter ``w``, with a loss of the test's own."""

    @property
    def groups(self) -> Groups:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One row for everything."""
        return (Group("all", "", 1.0, NEVER),)


ONE_WEIGHT = OneWeight(MODEL, OptimizerConfig(schedule="constant", iters=100, learning_rate=0.1))


@functools.cache
def mesh(data: int, fsdp: int) -> Mesh:
    """A mesh of the first ``data * fsdp`` of the eight simulated devices."""
    return sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])


@functools.cache
def abstract(data: int = 1, fsdp: int = 1) -> TrainState:
    """Shapes and placement of the state."""
    return abstract_state(RECIPE, mesh(data, fsdp))


@functools.cache
def host_state() -> TrainState:
    """The fresh state of seed 0 as numpy arrays; not to be written to."""
    fresh = init_state(RECIPE, mesh(1, 1), seed=0)
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), fresh)


def params() -> Any:
    """The fresh parameters as numpy arrays."""
    return host_state().params


def state(data: int = 1, fsdp: int = 1) -> TrainState:
    """A fresh state on a mesh, safe to donate."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(data, fsdp))
    return jax.device_put(host_state(), shardings)


@functools.cache
def train_step() -> Any:
    """The train step of seed 0; it is compiled once for each mesh."""
    return make_train_step(RECIPE, PROCESSOR, seed=0)


def step(
    before: TrainState, host_batch: dict[str, np.ndarray], data: int = 1, fsdp: int = 1
) -> Any:
    """One train step on a mesh; the second view is the last that any sample fills."""
    shown = host_batch | {"images": host_batch["images"][:, :2]}
    placed = sharding.global_batch(shown, mesh(data, fsdp))
    with jax.set_mesh(mesh(data, fsdp)):
        return train_step()(before, placed)


def batch(seed: int = 0, size: int = 8) -> dict[str, np.ndarray]:
    """A made-up batch of the model, three view slots, the third one empty."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 3, 32, 32, 3), np.uint8)
    images[:, 2] = 0
    chunk = (size, CONFIG.num_actions, 20)
    actions = rng.normal(0, 0.3, chunk).astype(np.float32)
    actions[..., [9, 19]] = rng.integers(0, 2, (*chunk[:2], 2))
    return {
        "images": images,
        "view_mask": np.tile([True, True, False], (size, 1)),
        "input_ids": rng.integers(3, 1000, (size, 12)).astype(np.int32),
        "domain_id": rng.integers(0, 30, size).astype(np.int32),
        "proprio": rng.normal(0, 0.3, (size, 20)).astype(np.float32),
        "actions": actions,
    }


def equal(a: Any, b: Any) -> bool:
    """Returns True if two trees have equal leaves, bit for bit."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))
