"""The task files of LIBERO: the instruction that a policy is sent, and where it comes from."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from eval.disturbances.wording import reworded

from .libero_pro import CHANGED_SUITES, CHANGES
from .spec import FILE_NAME, TASK_FILE, TaskSpec

_LANGUAGE = re.compile(r"\(:language\s+([^()]*)\)")
_GOAL = re.compile(r"\(:goal\s*\(\s*And\s*((?:\([^()]+\)\s*)+)\)", re.IGNORECASE)


class TaskFileError(ValueError):
    """A task file that does not say what its suite does; the message names the file."""


def text_of(spec: TaskSpec, folder: Path, bddl_file: str, named: str) -> dict[str, Any]:
    """Returns the instruction of a task of LIBERO and its source, as plain values for a receipt.

    Args:
        spec: the row; its `text_source` chooses.
        folder: of the suites' task files.
        bddl_file: of the task; a changed suite has the names of its base suite.
        named: the instruction that LIBERO makes from the file's name.

    Raises:
        TaskFileError: the file has no instruction or no goal, or its instruction is that of
            the base suite where the suite changes it, or another one where it does not.
    """
    path = folder / spec.suite / bddl_file
    written = _instruction(path)
    if spec.suite in CHANGED_SUITES:
        base, change = CHANGED_SUITES[spec.suite]
        original = _instruction(folder / base / bddl_file)
        differs = written.lower() != original.lower()
        if differs != CHANGES[change]:
            raise TaskFileError(
                f"{path}: the instruction is {written!r}, that of {base} is {original!r}; they "
                f"{'differ' if differs else 'are equal'}, which a suite {change!r} must not: "
                "install the package again"
            )
    source = {
        "text": {FILE_NAME: named, TASK_FILE: written}[spec.text_source],
        "source": spec.text_source,
        "file": f"{spec.suite}/{bddl_file}",
        "file_text": written,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    change = spec.disturbance
    if change is not None and change.axis == "text":
        try:
            other = reworded(source["text"], change.level)
        except ValueError as error:
            raise TaskFileError(f"{path}: {error}") from None
        source = {**source, "text": other, "reworded_from": source["text"]}
    return source


def _instruction(path: Path) -> str:
    """Returns the instruction of a task file that has a goal."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFileError(f"the task file {path} cannot be read: {error}") from error
    language = _LANGUAGE.search(content)
    text = " ".join(language.group(1).split()) if language else ""
    if not text:
        raise TaskFileError(f"{path} has no (:language ...), so there is no text to send")
    if not _GOAL.search(content) or content.count("(") != content.count(")"):
        raise TaskFileError(
            f"{path} has no (:goal (And (PREDICATE ...))) that can be read, so nothing would ever "
            "count as a success"
        )
    return text
