"""The action contract: what the numbers of a domain mean. It travels inside every checkpoint.

A policy that speaks another convention than the robot or simulator it drives fails silently, so
whoever connects the two compares contracts first and refuses a difference by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xvla_jax.errors import ContractError


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
    """

    domain_id: int
    action_space: str
    rotation_layout: str
    anchor_hz: float
    views: tuple[str, ...]
    proprio: str
    relative_channels: tuple[int, ...] = ()

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
        if getattr(ours, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise ContractError("the action contracts differ; " + "; ".join(differing))
