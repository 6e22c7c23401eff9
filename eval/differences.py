"""Where two plain values differ."""

from __future__ import annotations

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
