"""The action contract: what the numbers of a domain mean. It travels inside every checkpoint.

A policy that speaks another convention than the robot or simulator it drives fails silently, so
whoever connects the two compares contracts first and refuses a difference by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import pydantic
from pydantic import Field

from xvla_jax.errors import CheckpointError, ContractError, XVLAError
from xvla_jax.typed_json import STRICT, DomainId, typed

_Channel = Annotated[int, Field(ge=0, lt=65_536)]
_Text = Annotated[str, Field(min_length=1, max_length=256)]


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

    __pydantic_config__: ClassVar = STRICT | {"extra": "forbid"}

    domain_id: DomainId
    action_space: _Text
    rotation_layout: Literal["interleaved", "contiguous", "none"]
    anchor_hz: Annotated[float, Field(gt=0, le=100_000)]
    views: Annotated[tuple[_Text, ...], Field(max_length=64)]
    proprio: Literal["measured", "commanded", "zero"]
    relative_channels: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=4096)
    ] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(
        cls,
        raw: Any,
        where: object = "an action contract",
        *,
        error: type[XVLAError] = CheckpointError,
    ) -> Contract:
        """Inverse of `to_dict`; ``where`` is the file for messages.

        Raises:
            error: a field is missing, unknown, or has a value that no contract has.
        """
        return typed(_CONTRACT, raw, where, error=error)

    @classmethod
    def from_json(cls, raw: Any, where: object) -> list[Contract]:
        """The contracts of a list of such forms.

        Raises:
            CheckpointError: as `from_dict`, or it is no list.
        """
        return typed(_CONTRACTS, raw, where)


_CONTRACT: Final = pydantic.TypeAdapter(Contract)
_CONTRACTS: Final = pydantic.TypeAdapter(list[Contract])


def by_domain(
    contracts: Iterable[Contract], num_domains: int, where: object
) -> dict[int, Contract]:
    """The contracts of a checkpoint by domain id.

    Raises:
        CheckpointError: one is of a domain that the model does not have, or two are of one domain.
    """
    found: dict[int, Contract] = {}
    for contract in contracts:
        if contract.domain_id >= num_domains or contract.domain_id in found:
            problem = "twice" if contract.domain_id in found else "which the model does not have"
            raise CheckpointError(
                f"{where}: a contract is of domain {contract.domain_id}, {problem}; allowed are "
                f"0 .. {num_domains - 1}, each once"
            )
        found[contract.domain_id] = contract
    return found


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
