"""Where a checkpoint comes from: code, packages, devices, command, data, and what it began with."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax

_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
_FOLDERS: Final = ("xvla_jax", "data", "scripts", "configs")  # those that a training run imports
_LIMIT_S: Final = 10


def code_version(version: str, root: pathlib.Path = _ROOT) -> dict[str, Any]:
    """Versions, git revision (None outside of a checkout), and a hash of the source files.

    Args:
        version: of the package.
        root: folder that holds the source folders.
    """
    return {
        "xvla_jax": version,
        "jax": jax.__version__,
        "git_revision": _git(root, "rev-parse", "HEAD"),
        "sources": _hash(root),
    }


def git_state(root: pathlib.Path = _ROOT) -> dict[str, Any] | None:
    """Revision of the checkout, and whether tracked files differ from it; None outside of one."""
    revision = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    if revision is None or changes is None:
        return None
    return {"revision": revision, "changed": bool(changes)}


def _git(root: pathlib.Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _hash(root: pathlib.Path) -> str:
    """First 16 digits of the SHA-256 of all modules, with their names."""
    total = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            total.update(path.relative_to(root).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


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
        sources: of the data, as `data.sources.origin` describes each.
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
