"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

_MAX_LENGTH = 80  # characters of a value in a message


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Paths at which two plain values differ, such as "versions.mujoco: 3.1 against 3.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{where}.{key}" if where else str(key)
            found += differences(old.get(key, "nothing"), new.get(key, "nothing"), inner)
        return found
    return [] if old == new else [f"{where}: {_short(old)} against {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it; an older file stays until then."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(str(partial), str(path))
    finally:
        if partial.exists():
            partial.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON.

    Raises:
        ValueError: a number that is not finite, which JSON does not have.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))
