"""Which code runs here."""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
from typing import Any, Final

import jax

_ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
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
