"""The action contract: what the numbers of a domain mean. It travels inside every checkpoint.

A policy that speaks another convention than the robot or simulator it drives fails silently, so
whoever connects the two compares contracts first and refuses a difference by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from xvla_jax.errors import ContractError

UNKNOWN: Final = "unknown"


@dataclasses.dataclass(frozen=True)
class Channel:
    """One number of an action, and of proprio.

    Attributes:
        name: as the action space or the recording calls it.
        unit: ``m``, ``rad``, ``deg``, ...; ``unknown`` where nobody stated it.
        low: meaning of low values of a gripper, ``open``, ``closed``, or that it is the robot's
            own; empty for what is no gripper.
        high: meaning of its high values.
    """

    name: str
    unit: str = UNKNOWN
    low: str = ""
    high: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not isinstance(getattr(self, field.name), str):
                value = getattr(self, field.name)
                raise TypeError(f"{field.name} of a channel is {value!r}; a text is expected")


def _pose(arm: str) -> tuple[Channel, ...]:
    return (
        *(Channel(f"{arm} {axis}", "m") for axis in "xyz"),
        *(Channel(f"{arm} rotation {i}", "rotation-6D") for i in range(6)),
        Channel(f"{arm} gripper", "0..1", low="open", high="closed"),
    )


# Spaces whose numbers mean the same on every robot; those of joints are the robot's own.
_DERIVED: Final[Mapping[str, tuple[Channel, ...]]] = dict.fromkeys(
    ("ee6d", "agibot_ee6d"), (*_pose("left"), *_pose("right"))
)


@dataclasses.dataclass(frozen=True)
class Contract:
    """Conventions of one domain.

    Attributes:
        domain_id: row of the soft prompts and per-domain layers.
        action_space: name of the action space.
        rotation_layout: ``interleaved`` or ``contiguous`` 6-D rotation, or ``none`` for joint
            spaces.
        anchor_hz: actions of a chunk per second.
        views: camera names in the order of the view slots; the first is the main camera.
        proprio: ``measured``, ``commanded`` or ``zero``: what the policy is told about the present
            state.
        relative_channels: channels of the action that are relative to proprio.
        channels: name, unit and polarity of each, as `Channel` or its fields; those of poses follow
            from the action space, those of joints are unknown where empty.
    """

    domain_id: int
    action_space: str
    rotation_layout: str
    anchor_hz: float
    views: tuple[str, ...]
    proprio: str
    relative_channels: tuple[int, ...] = ()
    channels: tuple[Channel, ...] = ()

    def __post_init__(self) -> None:
        given = self.channels or _DERIVED.get(self.action_space, ())
        channels = tuple(c if isinstance(c, Channel) else Channel(**c) for c in given)
        object.__setattr__(self, "channels", channels)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Contract:
        """Inverse of `to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**fields)


def check_contract(found: Mapping[int, Contract], wanted: Contract, *, who: str) -> None:
    """Refuses a policy whose contract for the wanted domain differs.

    Args:
        found: the checkpoint's contracts by domain id.
        wanted: what the task expects.
        who: name of the task, for the message.

    Raises:
        ContractError: names every field that differs, with both values.
    """
    if wanted.domain_id not in found:
        raise ContractError(
            f"{who} needs domain {wanted.domain_id}; the checkpoint was trained for {sorted(found)}"
        )
    ours = found[wanted.domain_id]
    differing = [
        f"{field.name}: checkpoint {getattr(ours, field.name)!r}, "
        f"{who} {getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(Contract)
        if field.name != "channels" and getattr(ours, field.name) != getattr(wanted, field.name)
    ]
    differing += _differing_channels(ours.channels, wanted.channels, who)
    if differing:
        raise ContractError("the action contracts differ; " + "; ".join(differing))


def _differing_channels(ours: Sequence[Channel], wanted: Sequence[Channel], who: str) -> list[str]:
    """One line for each channel that differs; none where one side does not state its channels."""
    if not ours or not wanted:
        return []
    if len(ours) != len(wanted):
        return [f"channels: checkpoint has {len(ours)}, {who} {len(wanted)}"]
    return [
        f"channel {i}: checkpoint {one}, {who} {other}"
        for i, (one, other) in enumerate(zip(ours, wanted, strict=True))
        if one != other
    ]
