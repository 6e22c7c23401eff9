"""In which fields two nested plain values differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

MISSING: Final = "(missing)"


class Difference(NamedTuple):
    """A field, as ``a.b.c``, with its two values; `MISSING` where a side lacks it."""

    field: str
    ours: Any
    theirs: Any


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    """Every field that is not equal on both sides, by name; a tuple equals a list."""
    a, b = dict(_flat(ours, "")), dict(_flat(theirs, ""))
    fields = sorted(set(a) | set(b))
    found = [Difference(field, a.get(field, MISSING), b.get(field, MISSING)) for field in fields]
    return [difference for difference in found if difference.ours != difference.theirs]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        yield path, [dict(_flat(v, "")) if isinstance(v, Mapping) else v for v in value]
    else:
        yield path, value
