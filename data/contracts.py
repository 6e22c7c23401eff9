"""What a dataset row says of the actions it teaches, as plain values for a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data.poses import ARM_WIDTH
from data.spec import DatasetSpec


def contracts_of(specs: Sequence[DatasetSpec], *, num_actions: int) -> list[dict[str, Any]]:
    """Conventions of each domain; rows that share a domain must agree.

    Rows are those of opened readers: only these know the views that a meta file names.

    Raises:
        ValueError: two rows teach one domain different conventions.
    """
    by_domain: dict[int, tuple[str, dict[str, Any]]] = {}
    for spec in specs:
        contract = {
            "domain_id": spec.domain_id,
            "rotation_layout": spec.rotation_layout,
            "anchor_hz": num_actions / spec.window_s,
            "views": view_names(spec.views),
            "proprio": spec.proprio,
            "relative_channels": spec.delta_idx,
        }
        name, known = by_domain.setdefault(spec.domain_id, (spec.name, contract))
        differing = sorted(key for key, value in contract.items() if known[key] != value)
        if differing:
            raise ValueError(
                f"datasets {name!r} and {spec.name!r} share domain {spec.domain_id}, but differ in "
                f"{', '.join(differing)}; give one of them another domain_id (data/datasets.py)"
            )
    return [contract for _, contract in by_domain.values()]


def actions_of(spec: DatasetSpec) -> dict[str, Any]:
    """Returns what the action space of a model has to fit, as ``xvla_jax.actions.misfit`` takes it.

    The channels of poses are 10 for each arm; ``rotation_layout`` is ``none`` for joints.
    """
    return {
        "rotation_layout": spec.rotation_layout,
        "channels": spec.width if spec.joints else ARM_WIDTH * len(spec.arms),
        "relative_channels": spec.delta_idx,
    }


def view_names(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys of the views without their folders, or whole where that would make two the same."""
    short = tuple(re.split(r"[./]", key)[-1] for key in keys)
    return short if len(set(short)) == len(short) else tuple(keys)
