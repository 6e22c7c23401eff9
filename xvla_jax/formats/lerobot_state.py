"""LeRobot's ``max_state_dim``: proprio of another width than the action space's.

LeRobot pads the state with zeros to that width, 32 unless told otherwise, and has a row of the
action encoder for each channel. Rows beyond the state are multiplied by zeros: they can go, and
rows of zeros can be added.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Final

import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.lerobot import SECTION
from xvla_jax.checkpoints.names import detect_dialect
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError

_ENCODER: Final = "transformer.action_encoder.fc.weight"  # [domains, (actions + state + time) * M]

_log = logging.getLogger(__name__)


def with_state_of_model(files: TensorFiles, config: XVLAConfig) -> TensorFiles:
    """The tensors, with an action encoder that takes a proprio of the action space's width.

    Raises:
        CheckpointError: the state itself is wider, so that no row may go.
        ConfigError: the weights are of another width than LeRobot's config says.
    """
    section = json.loads(config.extra).get(SECTION, {})
    dialect = detect_dialect(set(files.info))
    name = dialect.rename(_ENCODER)
    if section.get("max_state_dim") is None or name not in files.info:
        return files
    width, info = action_space(config).width, files.info[name]
    if len(info.shape) != 2:
        return files  # of no model; whoever reads it says so
    stored = info.shape[-1] // config.hidden_size - width - config.dim_time
    if dialect.lerobot and stored != section["max_state_dim"]:
        raise ConfigError(
            f"LeRobot config.json: max_state_dim is {section['max_state_dim']}; in action space "
            f"{config.action_mode!r} these weights take a proprio of width {stored}"
        )
    if stored == width or stored != section["max_state_dim"]:
        return files
    feature = (section.get("input_features") or {}).get("observation.state") or {}
    state = (feature.get("shape") or [stored])[-1]
    if state > width:
        raise CheckpointError(
            f"LeRobot config.json: observation.state has {state} channels and max_state_dim is "
            f"{stored}; X-VLA takes a proprio of the width of its actions, {width}"
        )
    _log.warning(
        "LeRobot's max_state_dim is %d: the action encoder's rows %s, which see only zeros, were "
        "%s; the actions are the same",
        stored,
        f"{width} .. {stored - 1}" if stored > width else f"{stored} .. {width - 1}",
        "cut" if stored > width else "added",
    )
    shape = (info.shape[0], info.shape[1] + (width - stored) * config.hidden_size)
    return _Resized(
        {**files.info, name: dataclasses.replace(info, shape=shape)},
        files.metadata,
        files.places,
        name,
        info,
        (width, stored, config.hidden_size),
    )


@dataclasses.dataclass(frozen=True)
class _Resized(TensorFiles):
    """Tensors of which one is read with other rows than are stored."""

    name: str
    stored: TensorInfo
    sizes: tuple[int, int, int]  # width, stored width, M

    def read(self, name: str) -> np.ndarray:
        if name != self.name:
            return super().read(name)
        width, stored, model = self.sizes
        kernel = TensorFiles({name: self.stored}, {}, self.places).read(name)
        rows = kernel.reshape(len(kernel), -1, model)  # [domains, actions + state + time, M]
        state = rows[:, width : width + stored][:, :width]
        more = np.zeros((len(rows), width - state.shape[1], model), rows.dtype)
        parts = [rows[:, :width], state, more, rows[:, width + stored :]]
        return np.concatenate(parts, axis=1).reshape(len(rows), -1)
