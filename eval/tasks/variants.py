"""Rows made of other rows: disturbed ones, and those in which a command changed a column."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from eval.disturbances.axes import BENCHMARKS, disturbance

from .spec import Override, TaskSpec

# columns that a command may change -> their place in a row
OVERRIDES: Mapping[str, tuple[str, ...]] = {
    "executed": ("client", "executed"),
    "step_limit": ("step_limit",),
    "steps": ("client", "wire", "denoising_steps"),
}


def disturbed(spec: TaskSpec, axis: str, level: int) -> TaskSpec:
    """Returns a row with one disturbance, whose control arm is the row itself.

    Raises:
        ValueError: no such axis or level, or a row whose adapter knows none.
    """
    if spec.benchmark not in BENCHMARKS:
        raise ValueError(
            f"{spec.name} is of {spec.benchmark or 'a real robot'} and cannot be disturbed; rows "
            f"of {', '.join(BENCHMARKS)} can"
        )
    return dataclasses.replace(
        spec,
        name=f"{spec.name}:{axis}{level}",
        control=spec.name,
        reference=(),
        disturbance=disturbance(axis, level),
    )


def overridden(spec: TaskSpec, values: Mapping[str, int | None]) -> TaskSpec:
    """Returns a row with other values in some columns, and a record of each.

    A value that is the row's own leaves no record. Published results are of the row's own values,
    so they are dropped where there is a record.

    Args:
        spec: the row.
        values: key of `OVERRIDES` -> value; None keeps the row's own.

    Raises:
        ValueError: a value below 1.
    """
    records = []
    changed = spec
    for column, used in values.items():
        own = _get(spec, OVERRIDES[column])
        if used is None or used == own:
            continue
        if used < 1:
            raise ValueError(f"--{column}={used}; 1 or more is allowed")
        records.append(Override(column, own, used))
        changed = _replaced(changed, OVERRIDES[column], used)
    if not records:
        return spec
    return dataclasses.replace(changed, overrides=tuple(records), reference=())


def _get(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = getattr(record, name)
    return record


def _replaced(record: Any, path: tuple[str, ...], value: int) -> Any:
    """Returns a copy of a dataclass with another value at a path of field names."""
    first, rest = path[0], path[1:]
    inner = _replaced(getattr(record, first), rest, value) if rest else value
    return dataclasses.replace(record, **{first: inner})
