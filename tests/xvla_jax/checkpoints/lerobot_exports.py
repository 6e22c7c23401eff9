"""Tiny checkpoints of every action space, and their exports to LeRobot."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from configs import models
from tests.xvla_jax.checkpoints import lerobot_cases as cases
from xvla_jax.actions import action_space
from xvla_jax.checkpoint_tools import compare, probe
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.models.inference import inference_params
from xvla_jax.models.xvla import abstract_params
from xvla_jax.pretrained import Pretrained, load_checkpoint, save_pretrained
from xvla_jax.processor import Processor

DOMAIN = 3
VIEWS = ("top", "left_wrist")
EXPORTS = (
    *((mode, "pad") for mode in ("ee6d", "joint", "agibot_ee6d", "auto", "franka_joint7")),
    ("so101_bimanual", "pad"),
    ("ee6d", "linear"),
)
_ROTATIONS = {"ee6d": "interleaved", "agibot_ee6d": "interleaved"}


@functools.cache
def config(mode: str) -> XVLAConfig:
    """A tiny model; `auto` has 7 real channels of 20."""
    raw = models.model_dict(models.TINY, action_mode=mode)
    real = 7 if mode == "auto" else 20
    return XVLAConfig.from_dict(raw | {"real_action_dim": real, "max_action_dim": 20})


def contract(mode: str, domain_id: int = DOMAIN) -> Contract:
    """Two cameras whose alphabetical order is another than that of the slots."""
    layout: Any = _ROTATIONS.get(mode, "none")
    return Contract(domain_id, mode, layout, 30.0, VIEWS, "measured")


def checkpoint(mode: str, **processor: Any) -> Pretrained:
    """Weights by name, as the LeRobot cases have them."""

    def leaf(path: Any, shape: Any) -> np.ndarray:
        return cases.draw(jax.tree_util.keystr(path), shape.shape)

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(config(mode)))
    made = Processor(image_size=cases.SIDE, text_length=cases.TEXT, **processor)
    return Pretrained(config(mode), params, made, {DOMAIN: contract(mode)})


def write(
    folder: pathlib.Path, mode: str, resize: str, layout: str = "lerobot-vendored"
) -> pathlib.Path:
    """An export."""
    return save(folder, checkpoint(mode, resize=resize), layout)


def save(
    folder: pathlib.Path, made: Pretrained, layout: str = "lerobot-native", **options: Any
) -> pathlib.Path:
    """Saves a checkpoint with the files that it carries; returns the folder."""
    save_pretrained(
        folder,
        made.config,
        made.params,
        layout,
        processor=made.processor,
        contracts=made.contracts,
        files=made.files,
        **options,
    )
    return folder


def write_saved(folder: pathlib.Path, name: str, **edits: Any) -> pathlib.Path:
    """A folder as LeRobot saved it, with fields of its config edited."""
    from safetensors.numpy import save_file

    source = cases.FOLDER / cases.SAVED[name].lerobot / name
    folder.mkdir()
    for path in source.iterdir():
        if path.name.startswith("policy_"):
            (folder / path.name).write_bytes(path.read_bytes())
    raw = json.loads((source / "config.json").read_text()) | edits
    (folder / "config.json").write_text(json.dumps(raw))
    shapes = json.loads((source / "tensors.json").read_text())
    tensors = {name: cases.draw(name, tuple(shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def observations(mode: str) -> dict[str, np.ndarray]:
    """Raw ones of 480 x 640 px for an export."""
    space = action_space(config(mode))
    return cases.observations((480, 640), space.real_width, space.width)


def outputs(
    loaded: Pretrained, arrays: dict[str, np.ndarray], *, domain_id: int = DOMAIN
) -> dict[str, np.ndarray]:
    """Our outputs for raw observations, by the names of ``compare.RAW_STAGES``."""
    assert loaded.processor
    inputs = probe.prepare_raw(
        loaded.config, loaded.processor, arrays, cases.TASKS, domain_id=domain_id
    )
    params = inference_params(loaded.params, "float32")
    made = compare.stage_outputs(loaded.config, params, inputs, dtype="float32", steps=10)
    actions = made["actions"]
    if loaded.processor.action:
        actions = loaded.processor.action.unscale(actions)
    return {**inputs, "robot_actions": actions}


def of_folder(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], *, domain_id: int = DOMAIN
) -> dict[str, np.ndarray]:
    """The same for a folder."""
    return outputs(load_checkpoint(folder), arrays, domain_id=domain_id)


def quotient(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())
