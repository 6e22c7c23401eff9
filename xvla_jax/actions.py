"""Action spaces: width, loss terms, and the steps before and after the network.

A row of ``_SPACES`` is an action space. Losses are means over batch, time and the named channels;
binary cross-entropy takes logits. The training loss is the plain sum of the terms. `misfit` is the
one comparison of a robot's actions with an action space.
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

AUTO: Final = "auto"  # the action space whose width is the config's: joints of any robot
POSES: Final = "poses"  # of one arm or two: 10 channels each
JOINTS: Final = "joints"
# Kind of actions -> the rotation layouts that they may have.
ROTATION_LAYOUTS: Final[Mapping[str, tuple[str, ...]]] = {
    POSES: ("interleaved", "contiguous"),
    JOINTS: ("none",),
}


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

    def preprocess(
        self, proprio: Array, actions: Array, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Pads proprio ``[B, d]`` and actions ``[B, T, d]`` to D, and zeroes hidden channels.

        Channels that ``mask`` bool[B, d] leaves out are zeroed too: what was not recorded the
        network sees neither in training nor when it acts. d is the real or the padded width.
        """
        proprio, actions = self._hide(self.pad(proprio)), self._hide(self.pad(actions))
        if mask is None:
            return proprio, actions
        mask = self.pad(mask)  # [B, D]
        return jnp.where(mask, proprio, 0.0), jnp.where(mask[:, None], actions, 0.0)

    def losses(
        self, prediction: Array, target: Array, mask: Array | None = None
    ) -> dict[str, Array]:
        """Returns loss terms by name for a prediction ``[B, T, D]`` and a target ``[B, T, d]``.

        d is the real or the padded width; ``mask`` is that of `sample_losses`.
        """
        return {k: v.mean() for k, v in self.sample_losses(prediction, target, mask).items()}

    def sample_losses(
        self,
        prediction: Array,
        target: Array,
        mask: Array | None = None,
        rows: Array | None = None,
    ) -> dict[str, Array]:
        """Returns loss terms ``[B]`` by name, one number for each sample.

        With ``mask`` bool[B, d] a group's mean is over the channels where it is True; a group
        without any adds 0. With ``rows`` bool[B, T] it is over those actions alone.
        """
        target = self.pad(target)
        mask = mask if mask is None else self.pad(mask)

        def total(term: LossTerm) -> Array:
            element_loss = _ELEMENT_LOSSES[term.kind]
            means = (
                mean_recorded(
                    element_loss(prediction[..., _index(g)], target[..., _index(g)]),
                    mask if mask is None else mask[:, _index(g)],
                    rows,
                )
                for g in term.groups
            )
            return cast(Array, sum(means))  # terms have groups, so this is never the int 0

        return {term.name: term.weight * total(term) for term in self.terms}

    def postprocess(self, actions: Array) -> Array:
        """Turns network output ``[B, T, D]`` into the robot's actions ``[B, T, real]``.

        Logits become probabilities.
        """
        if self.logits:
            index = _index(self.logits)
            actions = actions.at[..., index].set(jax.nn.sigmoid(actions[..., index]))
        return actions[..., : self.real_width]

    def as_target(self, actions: Array) -> Array:
        """Turns actions of `postprocess` ``[B, T, real]`` into a target of `sample_losses`.

        Cross-entropy takes probabilities as they are. Where a squared error is of a logit, the
        target is the logit.
        """
        compared = {
            channel
            for term in self.terms
            if term.kind == "mse"
            for group in term.groups
            for channel in group
        }
        index = _index(tuple(sorted(compared & set(self.logits))))
        if not index.size:
            return actions
        return actions.at[..., index].set(jax.scipy.special.logit(actions[..., index]))

    def pad(self, x: Array) -> Array:
        """Appends zeros from the real width to D; D is left alone.

        Raises:
            InputError: the last axis has any other width.
        """
        channels = x.shape[-1]
        if channels not in (self.width, self.real_width):
            raise InputError(
                f"action space {self.mode!r}: the last axis has {channels} channels, "
                f"expected {self.real_width}"
                + (f" or {self.width}" if self.width != self.real_width else "")
            )
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.width - channels)])

    def _hide(self, x: Array) -> Array:
        return x.at[..., _index(self.hidden)].set(0.0) if self.hidden else x


def action_space(config: XVLAConfig) -> ActionSpace:
    """Returns the action space that ``config.action_mode`` names.

    Raises:
        ConfigError: no such action space.
    """
    if config.action_mode not in _SPACES:
        raise ConfigError(
            f"config.json: action_mode is {config.action_mode!r}; "
            f"known are {', '.join(sorted(_SPACES))}"
        )
    return _SPACES[config.action_mode].make(config)


def action_kind(mode: str) -> str:
    """Returns `POSES` or `JOINTS`, the kind of actions of an action space.

    Raises:
        ConfigError: no such action space.
    """
    if mode not in _SPACES:
        raise ConfigError(f"action space {mode!r} is unknown; known are {', '.join(MODES)}")
    return _SPACES[mode].kind


def misfit(
    mode: str,
    real_width: int | None = None,
    *,
    rotation_layout: str,
    channels: int | None = None,
    relative_channels: Channels = (),
) -> str:
    """Says why actions do not fit an action space; returns an empty text if they fit.

    Args:
        mode: name of the action space.
        real_width: its channels of a robot's action; None if the model is not known.
        rotation_layout: of the actions; ``none`` for joints.
        channels: of the actions, 10 for each arm of poses; None if they are not known.
        relative_channels: of the actions.

    Raises:
        ConfigError: no such action space.
    """
    kind = action_kind(mode)
    layouts = ROTATION_LAYOUTS[kind]
    counts = (channels,)
    if real_width:
        counts = (real_width // 2, real_width) if kind == POSES else (real_width,)
    if rotation_layout not in layouts or (channels and channels not in counts):
        expected = f"{' or '.join(map(str, counts))} channels of {kind}" if real_width else kind
        given = f"{channels} channels of " if channels else ""
        given += JOINTS if rotation_layout in ROTATION_LAYOUTS[JOINTS] else POSES
        return (
            f"{given} with rotation_layout {rotation_layout!r}, but action space {mode!r} takes "
            f"{expected} with rotation_layout {' or '.join(map(repr, layouts))}"
        )
    beyond = [c for c in relative_channels if c < 0 or (real_width and c >= real_width)]
    if beyond:
        last = f"{real_width - 1}" if real_width else "the last"
        return f"relative channels {beyond}, but action space {mode!r} has channels 0 to {last}"
    return ""


def mean_recorded(values: Array, mask: Array | None, rows: Array | None = None) -> Array:
    """Returns means ``[B]`` of ``[B, T, n]`` over T and the channels of ``mask`` bool[B, n].

    None is all channels; where a sample has none of them its mean is 0. With ``rows`` bool[B, T],
    at least one of each sample, the means are over those of T.
    """
    if rows is not None:  # [B, T, n] -> [B, 1, n]
        total = jnp.where(rows[..., None], values, 0.0).sum(-2, keepdims=True)
        values = total / rows.sum(-1)[:, None, None]
    if mask is None:
        return values.mean((-2, -1))
    by_channel = jnp.where(mask, values.mean(-2), 0.0)  # [B, n]
    return by_channel.sum(-1) / jnp.maximum(mask.sum(-1), 1)


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
        AUTO, width, real, (LossTerm("joints_loss", "mse", (_span(0, real),), 100.0),)
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


@dataclasses.dataclass(frozen=True)
class _Row:
    kind: str  # POSES or JOINTS
    make: Callable[[XVLAConfig], ActionSpace]


_SPACES: Final[Mapping[str, _Row]] = {
    "ee6d": _Row(POSES, _ee6d),
    "joint": _Row(JOINTS, _joint),
    "agibot_ee6d": _Row(POSES, _agibot_ee6d),
    AUTO: _Row(JOINTS, _auto),
    "franka_joint7": _Row(JOINTS, _franka_joint7),  # LeRobot's
    "so101_bimanual": _Row(JOINTS, _so101_bimanual),  # LeRobot's
}
MODES: Final = tuple(sorted(_SPACES))
