"""Where a checkpoint comes from: code, packages, devices, command, data, and what it began with."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax

SCHEMA: Final = "xvla_jax.provenance/1"
_PACKAGES: Final = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xvla-jax")


def provenance(
    sources: Sequence[Mapping[str, Any]],
    mesh: jax.sharding.Mesh,
    *,
    code: Mapping[str, Any],
    init_from: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What a checkpoint says of its making, as plain JSON values.

    Args:
        sources: of the data, as `data.origins.origin` describes each.
        mesh: that the run has.
        code: versions and git revision.
        init_from: path and digest of the weights that it began with; None for random ones.
    """
    device = mesh.devices.flat[0]
    return {
        "schema": SCHEMA,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "code": dict(code),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "devices": {
            "kind": device.device_kind,
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
        },
        "init_from": dict(init_from) if init_from else None,
        "sources": [dict(source) for source in sources],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a checkout that is not installed
