"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
