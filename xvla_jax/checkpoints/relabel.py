"""Gives the head of a checkpoint another action space, so that its weights serve other actions.

Channels of the head have no meaning of their own: ``auto`` with ``max_action_dim`` 20 has the
shapes of ``ee6d``. Config and action contracts state the meaning and change; the weights do not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any, Final

from xvla_jax.actions import AUTO, action_kind, action_space
from xvla_jax.checkpoints import lerobot
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError

_log = logging.getLogger(__name__)

# fields of LeRobot's section that describe the robot that the checkpoint was for
_OF_THE_ROBOT: Final = ("input_features", "output_features", "normalization_mapping")
_PIPELINES: Final = ("policy_preprocessor", "policy_postprocessor")  # names begin with them


def relabelled_config(
    config: XVLAConfig, mode: str, real_action_dim: int, *, any_width: bool = False
) -> XVLAConfig:
    """Returns the config with another action space.

    Args:
        config: of a checkpoint, or of a new model.
        mode: name of the action space, as ``config.action_mode``; empty keeps the present one.
        real_action_dim: channels of a robot's action, as ``config.real_action_dim``; 0 keeps them.
        any_width: the head may become wider or narrower, because there are no weights yet.

    Raises:
        ConfigError: there is no such action space, or the head has another width.
    """
    if not mode and not real_action_dim:
        return config
    old, mode = action_space(config), (mode or config.action_mode).lower()
    width = config.max_action_dim if any_width else old.width
    changes: dict[str, Any] = {"action_mode": mode}
    action_kind(mode)
    if mode == AUTO:
        real = real_action_dim or (old.real_width if old.mode == AUTO else 0)
        if not 1 <= real <= width:
            raise ConfigError(
                f"config.real_action_dim is {real} with action space {AUTO!r}; set it to the "
                f"channels of the robot's action, 1 to {width}, which is the width of the head"
            )
        changes |= {"real_action_dim": real, "max_action_dim": width}
    new = dataclasses.replace(config, extra=_without_robot(config.extra), **changes)
    space = action_space(new)
    if real_action_dim not in (0, space.real_width):
        raise ConfigError(
            f"config.real_action_dim is {real_action_dim}, but action space {mode!r} always has "
            f"{space.real_width} channels; set config.action_mode={AUTO} for another number"
        )
    if space.width != old.width and not any_width:
        raise ConfigError(
            f"config.action_mode is {mode!r}, whose head has {space.width} channels; the "
            f"checkpoint's head has {old.width} ({old.mode!r}). config.action_mode={AUTO} with "
            f"config.real_action_dim fits any head of joints, up to its width"
        )
    return new


def trained_for_delay(config: XVLAConfig, max_delay: int) -> XVLAConfig:
    """Returns the config of a model that is trained for delays of up to ``max_delay`` actions.

    Args:
        config: of a checkpoint, or of a new model.
        max_delay: as ``config.rtc.max_delay``; -1 keeps that of the model.

    Raises:
        ConfigError: the chunk is too short for it.
    """
    longest = config.num_actions - 1
    if not -1 <= max_delay <= longest:
        raise ConfigError(
            f"config.rtc.max_delay is {max_delay}; -1, which keeps that of the model, or 0 .. "
            f"{longest} is allowed: a chunk has {config.num_actions} actions"
        )
    return config if max_delay < 0 else dataclasses.replace(config, rtc_max_delay=max_delay)


def relabelled(
    loaded: Pretrained, mode: str, real_action_dim: int, max_delay: int = -1
) -> Pretrained:
    """Returns the checkpoint with another action space; logs the change.

    Contracts describe the old action space, so none is kept.

    Args:
        loaded: is not changed; its parameters may be on disk.
        mode: see `relabelled_config`.
        real_action_dim: see `relabelled_config`.
        max_delay: see `trained_for_delay`; another one changes nothing else.

    Raises:
        ConfigError: see `relabelled_config` and `trained_for_delay`.
    """
    if max_delay not in (-1, loaded.config.rtc_max_delay):
        loaded = dataclasses.replace(loaded, config=trained_for_delay(loaded.config, max_delay))
    config = relabelled_config(loaded.config, mode, real_action_dim)
    if space_text(config) == space_text(loaded.config):
        return loaded
    _log.info("relabelled the head: %s, was %s", space_text(config), space_text(loaded.config))
    if loaded.contracts:
        _log.info(
            "dropped the action contracts of domains %s: they describe %s",
            sorted(loaded.contracts),
            space_text(loaded.config),
        )
    files = {name: text for name, text in loaded.files.items() if not name.startswith(_PIPELINES)}
    return dataclasses.replace(loaded, config=config, contracts={}, files=files)


def space_text(config: XVLAConfig) -> str:
    """Returns the action space of a model in words."""
    space = action_space(config)
    return f"action space {space.mode!r} with {space.real_width} of {space.width} channels"


def _without_robot(extra: str) -> str:
    """Returns ``extra`` without the fields of LeRobot's section that describe the old robot."""
    raw = json.loads(extra)
    section = raw.get(lerobot.SECTION)
    if section is None:
        return extra
    kept = {key: value for key, value in section.items() if key not in _OF_THE_ROBOT}
    return json.dumps(raw | {lerobot.SECTION: kept})
