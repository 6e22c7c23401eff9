"""JSON that others wrote, held against the types that readers need.

A file that does not fit is refused in one line: file, field, value found, what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic
from etils import epath

Kind = TypeVar("Kind")

STRICT: Final = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
_SHOWN: Final = 120  # characters of a value that a message repeats


def read_json(path: Path | epath.Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ValueError: the file cannot be read, is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as JSON: nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """File and number of each line of a list with a JSON value in each, and the value.

    Raises:
        ValueError: the file is no text, or a line is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ValueError(f"{path} is no list of JSON lines: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is no JSON: {error}") from error


def typed(kind: pydantic.TypeAdapter[Kind], found: Any, where: object, field: str = "") -> Kind:
    """Returns ``found`` as ``kind``; ``field`` names the part of the file that it is.

    Raises:
        ValueError: names the first field at fault, its value, and what is allowed there.
    """
    try:
        return kind.validate_python(found)
    except pydantic.ValidationError as problem:
        details = problem.errors(include_url=False)
        place = details[0]["loc"]
        name = ".".join(filter(None, (field, *map(str, place)))) or "the content"
        allowed = " or ".join(
            detail["msg"].removeprefix("Input should be ").lower()
            for detail in details
            if detail["loc"] == place
        )
        if details[0]["type"] == "missing":
            raise ValueError(f"{where}: {name} is missing") from None
        raise ValueError(
            f"{where}: {name} is {shown(details[0]['input'])}; allowed is {allowed}"
        ) from None


def shown(value: Any) -> str:
    """Returns a value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
