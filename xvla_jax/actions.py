"""Action spaces: width, loss terms, and what happens before and after the network.

A row of ``_SPACES`` is an action space. Losses are means over batch, time and
the named channels; binary cross-entropy takes logits. The training loss is the plain sum of the
terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError, InputError

Array = jax.Array
Channels = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """``weight * sum over groups of mean(kind over the group's channels)``."""

    name: str
    kind: str  # "mse" or "bce"
    groups: tuple[Channels, ...]
    weight: float


@dataclasses.dataclass(frozen=True)
class ActionSpace:
    """One action space.

    Attributes:
        mode: name in ``config.json``.
        width: channels D of the network's actions and proprio.
        real_width: channels of a robot's action; less than ``width`` where the space pads with
            zeros.
        terms: the loss.
        hidden: channels set to zero in the noisy action and in proprio before the network: never
            denoised.
        logits: channels that the network predicts as logits; ``postprocess`` makes them
            probabilities.
    """

    mode: str
    width: int
    real_width: int
    terms: tuple[LossTerm, ...]
    hidden: Channels = ()
    logits: Channels = ()

    def preprocess(self, proprio: Array, actions: Array) -> tuple[Array, Array]:
        """Proprio ``[B, d]`` and actions ``[B, T, d]`` -> both of width D, hidden channels zero.

        d is the real or the padded width.
        """
        return self._hide(self.pad(proprio)), self._hide(self.pad(actions))

    def losses(self, prediction: Array, target: Array) -> dict[str, Array]:
        """Named scalars for a prediction ``[B, T, D]`` and a target ``[B, T, d]``.

        d is the real or the padded width.
        """
        return {k: v.mean() for k, v in self.sample_losses(prediction, target).items()}

    def sample_losses(self, prediction: Array, target: Array) -> dict[str, Array]:
        """The same for each sample: named ``[B]``."""
        target = self.pad(target)

        def total(term: LossTerm) -> Array:
            element_loss = _ELEMENT_LOSSES[term.kind]
            means = (
                element_loss(prediction[..., _index(g)], target[..., _index(g)]).mean((-2, -1))
                for g in term.groups
            )
            return cast(Array, sum(means))  # no term is without groups, so never the int 0

        return {term.name: term.weight * total(term) for term in self.terms}

    def postprocess(self, actions: Array) -> Array:
        """Network output ``[B, T, D]`` -> the robot's action ``[B, T, real]``.

        Logits become probabilities.
        """
        if self.logits:
            index = _index(self.logits)
            actions = actions.at[..., index].set(jax.nn.sigmoid(actions[..., index]))
        return actions[..., : self.real_width]

    def pad(self, x: Array) -> Array:
        """Appends zeros from the real width to D; D is left alone.

        Raises:
            InputError: the last axis has any other width.
        """
        found = x.shape[-1]
        if found not in (self.width, self.real_width):
            raise InputError(
                f"action space {self.mode!r}: the last axis has {found} channels, "
                f"expected {self.real_width}"
                + (f" or {self.width}" if self.width != self.real_width else "")
            )
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.width - found)])

    def _hide(self, x: Array) -> Array:
        return x.at[..., _index(self.hidden)].set(0.0) if self.hidden else x


def action_space(config: XVLAConfig) -> ActionSpace:
    """The action space that ``config.action_mode`` names.

    Raises:
        ConfigError: no such action space.
    """
    if config.action_mode not in _SPACES:
        raise ConfigError(
            f"config.json: action_mode is {config.action_mode!r}; "
            f"known are {', '.join(sorted(_SPACES))}"
        )
    return _SPACES[config.action_mode](config)


def _index(channels: Channels) -> np.ndarray:
    return np.asarray(channels, dtype=np.int32)


def _squared_error(prediction: Array, target: Array) -> Array:
    return jnp.square(prediction - target)


def _binary_cross_entropy(logits: Array, target: Array) -> Array:
    return jnp.maximum(logits, 0.0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))


_ELEMENT_LOSSES: Final[Mapping[str, Callable[[Array, Array], Array]]] = {
    "mse": _squared_error,
    "bce": _binary_cross_entropy,
}


def _span(start: int, stop: int) -> Channels:
    return tuple(range(start, stop))


_POSITIONS: Final = (_span(0, 3), _span(10, 13))  # m, left and right arm
_ROTATIONS: Final = (_span(3, 9), _span(13, 19))  # 6-D rotation
_POSE_TERMS: Final = (
    LossTerm("position_loss", "mse", _POSITIONS, 500.0),
    LossTerm("rotate6D_loss", "mse", _ROTATIONS, 10.0),
)


def _ee6d(_: XVLAConfig) -> ActionSpace:
    gripper = LossTerm("gripper_loss", "bce", ((9,), (19,)), 1.0 / 2)
    return ActionSpace("ee6d", 20, 20, (*_POSE_TERMS, gripper), hidden=(9, 19), logits=(9, 19))


def _joint(_: XVLAConfig) -> ActionSpace:
    joints = LossTerm("joints_loss", "mse", (_span(0, 6) + _span(7, 13),), 1.0)
    gripper = LossTerm("gripper_loss", "bce", ((6,), (13,)), 0.1 / 2)
    return ActionSpace("joint", 14, 14, (joints, gripper), hidden=(6, 13), logits=(6, 13))


def _agibot_ee6d(_: XVLAConfig) -> ActionSpace:
    gripper = LossTerm("gripper_loss", "mse", ((9, 19),), 10.0)
    return ActionSpace("agibot_ee6d", 20, 20, (*_POSE_TERMS, gripper))


def _auto(config: XVLAConfig) -> ActionSpace:
    real, width = config.real_action_dim, config.max_action_dim
    if not 1 <= real <= width:
        raise ConfigError(
            f"config.json: real_action_dim is {real}; 1 .. max_action_dim = {width} is allowed"
        )
    return ActionSpace(
        "auto", width, real, (LossTerm("joints_loss", "mse", (_span(0, real),), 100.0),)
    )


def _franka_joint7(_: XVLAConfig) -> ActionSpace:
    return ActionSpace(
        "franka_joint7", 20, 7, (LossTerm("joints_loss", "mse", (_span(0, 7),), 1.0),)
    )


def _so101_bimanual(_: XVLAConfig) -> ActionSpace:
    parts = (
        ("joints_loss", _span(0, 12)),
        ("gripper_loss", (5, 11)),
        ("left_arm_loss", _span(0, 6)),
        ("right_arm_loss", _span(6, 12)),
    )
    terms = tuple(LossTerm(name, "mse", (channels,), 1.0) for name, channels in parts)
    return ActionSpace("so101_bimanual", 20, 12, terms, hidden=(5, 11), logits=(5, 11))


_SPACES: Final[Mapping[str, Callable[[XVLAConfig], ActionSpace]]] = {
    "ee6d": _ee6d,
    "joint": _joint,
    "agibot_ee6d": _agibot_ee6d,
    "auto": _auto,
    "franka_joint7": _franka_joint7,  # LeRobot's
    "so101_bimanual": _so101_bimanual,  # LeRobot's
}
