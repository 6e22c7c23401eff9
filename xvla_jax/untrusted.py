"""Checks JSON that others wrote against the types that the code needs.

A file that does not fit is refused in one line: file, field, value, allowed values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import pydantic
from pydantic import Field

from xvla_jax.errors import CheckpointError, XVLAError

Kind = TypeVar("Kind")

STRICT: Final = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
_MAP: Final = pydantic.TypeAdapter(dict[str, Any], config=STRICT)
_SHOWN: Final = 120  # characters of a value that a message repeats

# The most that files of others may ask for: far above any model that exists, and far below what
# would exhaust a machine. Every message about a bound names this table as the place to raise it.
BOUNDS: Final[dict[str, int]] = {
    "layers": 1024,  # of one tower or stage
    "vision blocks": 128,  # of all stages; they are traced one by one, 0.1 s each
    "channels": 65_536,
    "positions": 16_384,
    "pixels of a side": 4096,
    "domains": 65_535,
    "tokens of the vocabulary": 1 << 22,
    "columns of a low-rank pair": 65_536,
    "parameters": 20 * 10**9,  # of a model or an adapter; X-VLA has 0.9 * 10**9
    "bytes of tensors": 160 * 10**9,  # of all weight files, 8 a parameter
    "bytes of a buffer": 1 << 30,
    "bytes of a pickle": 1 << 26,  # names and places of a million tensors
    "bytes of JSON": 1 << 26,
    "bytes of a carried file": 1 << 24,
}
_RAISE: Final = "BOUNDS in xvla_jax/untrusted.py has this limit"

Layers = Annotated[int, Field(ge=1, le=BOUNDS["layers"])]
Width = Annotated[int, Field(ge=1, le=BOUNDS["channels"])]
Positions = Annotated[int, Field(ge=1, le=BOUNDS["positions"])]
Side = Annotated[int, Field(ge=1, le=BOUNDS["pixels of a side"])]
Share = Annotated[float, Field(ge=0, le=1)]
DomainId = Annotated[int, Field(ge=0, le=BOUNDS["domains"])]
Vocabulary = Annotated[int, Field(ge=1, le=BOUNDS["tokens of the vocabulary"])]


def check_bound(
    row: str, value: int, where: object, *, error: type[XVLAError] = CheckpointError
) -> None:
    """Refuses a value beyond its row of `BOUNDS`; ``where`` is the file for the message."""
    if value > BOUNDS[row]:
        raise error(f"{where} has {value:,} {row}; at most {BOUNDS[row]:,} are allowed ({_RAISE})")


def read_json(path: pathlib.Path, *, error: type[XVLAError] = CheckpointError) -> Any:
    """Returns the content of a JSON file.

    Raises:
        error: the file is not JSON, too large, or nested too deeply to be read.
        OSError: it cannot be read.
    """
    check_bound("bytes of JSON", path.stat().st_size, path, error=error)
    try:
        return parse_json(path.read_bytes())
    except ValueError as problem:
        raise error(f"{path}: not JSON ({problem}); fetch it again") from problem


def parse_json(text: str | bytes) -> Any:
    """Parses JSON text; a ValueError says why it cannot be read."""
    try:
        return json.loads(text)
    except RecursionError as problem:
        raise ValueError("nested too deeply") from problem


def check_object(raw: Any, where: object, *, error: type[XVLAError]) -> dict[str, Any]:
    """Returns a JSON object unchanged, and refuses any other value."""
    if not isinstance(raw, dict):
        raise error(f"{where}: a JSON object is expected, found {shown(raw)}")
    return raw


def typed(
    kind: pydantic.TypeAdapter[Kind],
    raw: Any,
    where: object,
    *,
    field: str = "",
    error: type[XVLAError] = CheckpointError,
) -> Kind:
    """Returns ``raw`` as ``kind``.

    Args:
        kind: expected type, strict where its config is `STRICT`.
        raw: plain JSON values.
        where: the file, for the message.
        field: of the file, where ``raw`` is a part of it.
        error: class of the error.

    Raises:
        error: names the first field at fault, its value, and what is allowed there.
    """
    try:
        # From text, because strict types take a list for a tuple there.
        return kind.validate_json(json.dumps(raw))
    except pydantic.ValidationError as problem:
        raise error(f"{where}: {_first(problem, field)}") from None
    except RecursionError as problem:
        raise error(f"{where}: {field or 'the content'} is nested too deeply") from problem


def typed_map(
    raw: Any, where: object, field: str, *, error: type[XVLAError] = CheckpointError
) -> dict[str, Any]:
    """Returns a part of a file that must be an object, with any content."""
    return typed(_MAP, raw, where, field=field, error=error)


def typed_fields(
    kind: type,
    raw: Mapping[str, Any],
    where: object,
    prefix: str = "",
    *,
    error: type[XVLAError] = CheckpointError,
) -> dict[str, Any]:
    """Returns the fields of a dataclass that ``raw`` has, checked against their declared types.

    Fields that are dataclasses themselves, or excluded from comparison, are left out. Arguments
    are those of `typed`; ``prefix`` stands before the names of fields in messages.
    """
    return {
        name: typed(adapter, raw[name], where, field=f"{prefix}{name}", error=error)
        for name, adapter in _adapters(kind).items()
        if name in raw
    }


@functools.cache
def _adapters(kind: type) -> dict[str, pydantic.TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: pydantic.TypeAdapter(hints[field.name], config=STRICT)
        for field in dataclasses.fields(kind)
        if field.compare and not dataclasses.is_dataclass(hints[field.name])
    }


def shown(value: Any) -> str:
    """Returns a value as text for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _first(problem: pydantic.ValidationError, prefix: str) -> str:
    details = problem.errors(include_url=False)
    raised = details[0].get("ctx", {}).get("error")
    if isinstance(raised, XVLAError):  # from a class that checks itself; its message is complete
        return str(raised)
    place = details[0]["loc"]
    field = ".".join(filter(None, (prefix, *map(str, place)))) or "the content"
    allowed = [_allowed(detail) for detail in details if detail["loc"] == place]
    if details[0]["type"] == "extra_forbidden":
        return f"{field} is an unknown field; remove it, or correct its name"
    if details[0]["type"] == "missing":
        return f"{field} is missing"
    return f"{field} is {shown(details[0]['input'])}; allowed is {' or '.join(allowed)}"


def _allowed(detail: Mapping[str, Any]) -> str:
    text = str(detail["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    bounded = detail.get("ctx", {}).get("le") in BOUNDS.values()
    return text[:1].lower() + text[1:] + (f" ({_RAISE})" if bounded else "")


_LONGEST: Final = 255  # bytes of a name on the usual file systems


def plain_name(name: Any, where: object) -> str:
    """Returns a stored name that is a single component of a path, and refuses any other.

    Each name that becomes a path below a folder passes through here, so none leads out of it.

    Args:
        name: from the file.
        where: file and field, for the message.

    Raises:
        CheckpointError: the name is not text, empty, ``.`` or ``..``, too long, or has a separator
            or a control character.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(letter in "/\\" or not letter.isprintable() for letter in name)
        or len(name.encode()) > _LONGEST
    ):
        raise CheckpointError(
            f"{where} names a file {shown(name)}; a plain name without separators is allowed"
        )
    return name


def check_link(path: pathlib.Path) -> bool:
    """Returns True, and refuses a symbolic link that leads out of its folder.

    Carried files end up in checkpoints that are published. Links of a Hugging Face cache lead to
    its own ``blobs``.

    Raises:
        CheckpointError: the link leads elsewhere.
    """
    if path.is_symlink():
        folder, target = path.parent.resolve(), path.resolve()
        if not target.is_relative_to(folder) and target.parent != folder.parent.parent / "blobs":
            raise CheckpointError(
                f"{path} is a link to {target}, outside its folder; put a copy in its place, or "
                "remove it"
            )
    return True
