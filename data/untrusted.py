"""Files that others wrote: JSON checked by type, paths and path templates kept inside the data.

A file that does not fit is refused in one line: file, field, value, what is allowed.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pydantic
from etils import epath

Kind = TypeVar("Kind")

STRICT: Final = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
_SHOWN: Final = 120  # characters of a value that a message repeats
_SPEC: Final = re.compile(r"(0?\d{1,2}d?)?")  # of a template's field: 06d


def read_json(path: Path | epath.Path) -> Any:
    """Returns the content of a JSON file.

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
    """Yields the place (file and line number) and the value of each line of a JSON-lines file.

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


def typed(kind: pydantic.TypeAdapter[Kind], value: Any, where: object, field: str = "") -> Kind:
    """Returns ``value`` as ``kind``; ``field`` names the part of the file ``where`` it stands.

    Raises:
        ValueError: names the first field at fault, its value, and what is allowed there.
    """
    try:
        return kind.validate_python(value)
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


@dataclass(frozen=True)
class Places:
    """The folders below which files named by a dataset may lie.

    Attributes:
        tops: data folder, and folder of the meta file.
        anywhere: allow every path (config.data.outside_root, --outside_root).
    """

    tops: tuple[Path, ...]
    anywhere: bool = False

    @classmethod
    def of(cls, *roots: epath.PathLike, anywhere: bool = False) -> Places:
        """Places below folders, or beside files; empty paths are ignored."""
        paths = [Path(os.path.abspath(root)) for root in roots if str(root)]
        return cls(tuple(path.parent if path.is_file() else path for path in paths), anywhere)

    def path(self, folder: Path, name: Any, where: object) -> Path:
        """Returns the file or folder that a dataset names.

        Args:
            folder: to which a relative name belongs.
            name: as stored.
            where: the file that has it, for the message.

        Raises:
            ValueError: the name is no path, or leads out of `tops`.
        """
        if not isinstance(name, str) or "\0" in name:
            raise ValueError(f"{where} names {shown(name)}; a path is allowed there")
        path = folder / name
        if not self.anywhere and not self._holds(path):
            raise ValueError(
                f"{where} names {shown(name)}, which lies outside {', '.join(map(str, self.tops))};"
                " move it there, give the folder that holds both as data root, or allow it with "
                "config.data.outside_root=True (or --outside_root)"
            )
        return path

    def _holds(self, path: Path) -> bool:
        plain = Path(os.path.abspath(path))  # `..` is resolved as text, links are not
        if any(plain.is_relative_to(top) for top in self.tops):
            return True
        # a link may give the same folder another name
        return any(plain.resolve().is_relative_to(top.resolve()) for top in self.tops)


def fill_template(template: Any, values: Mapping[str, Any], where: object) -> str:
    """Returns a path template of a dataset with its fields filled in.

    Only `{name}` and `{name:06d}` are filled: `str.format` would accept widths of gigabytes, and
    attributes of the values.

    Raises:
        ValueError: it is no template, or has another field.
    """
    if not isinstance(template, str):
        raise ValueError(f"{where} has a path template {shown(template)}; a text is allowed")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{where} has a path template {shown(template)}: {error}") from error
    for _, name, spec, conversion in parts:
        if name is not None and (
            name not in values or conversion or not _SPEC.fullmatch(spec or "")
        ):
            raise ValueError(
                f"{where} has a path template {shown(template)}; its fields may be "
                f"{', '.join(values)}, each as {{name}} or {{name:06d}}"
            )
    try:
        return template.format(**values)
    except ValueError as error:  # the form of a number for a text
        raise ValueError(f"{where} has a path template {shown(template)}: {error}") from error
