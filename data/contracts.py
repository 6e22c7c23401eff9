"""What a dataset row says of the actions it teaches, as plain values for a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data.spec import DatasetSpec


def contracts_of(specs: Sequence[DatasetSpec], *, num_actions: int) -> list[dict[str, Any]]:
    """Conventions of each domain; rows that share a domain must agree.

    Rows are those of opened readers: only these know the views that a meta file names.

    Raises:
        ValueError: two rows teach one domain different conventions.
    """
    by_domain: dict[int, tuple[DatasetSpec, dict[str, Any]]] = {}
    for spec in specs:
        contract = {
            "domain_id": spec.domain_id,
            "rotation_layout": spec.rotation_layout,
            "anchor_hz": num_actions / spec.window_s,
            "views": view_names(spec.views),
            "proprio": spec.proprio,
            "relative_channels": spec.delta_idx,
        }
        other, known = by_domain.setdefault(spec.domain_id, (spec, contract))
        differing = sorted(key for key, value in contract.items() if known[key] != value)
        if differing:
            raise ValueError(
                f"datasets {other.name!r} and {spec.name!r} share domain {spec.domain_id}, but "
                f"differ in {', '.join(differing)}; give one of them another domain_id "
                f"({' or '.join(dict.fromkeys((other.written_in, spec.written_in)))})"
            )
    return [contract for _, contract in by_domain.values()]


def view_names(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys of the views without their folders, or whole where that would make two the same."""
    short = tuple(re.split(r"[./]", key)[-1] for key in keys)
    return short if len(set(short)) == len(short) else tuple(keys)
