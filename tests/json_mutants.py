"""JSON with one field replaced by a value of another type, for every field and type."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

# a slow test takes one mutant of so many; XVLA_SWEEP=1 takes all, which is an hour on two cores
SLOW_STEP = int(os.environ.get("XVLA_SWEEP", "31"))
# names that lead outside, or ask for a module: nothing may come of them
OUTSIDE = "../../escaped"
MODULE = "imported_by_a_file"
VALUES: tuple[Any, ...] = (
    None,
    7,
    -1,
    10**9,
    1e400,
    "text",
    [1, "a"],
    {"a": [None]},
    OUTSIDE,
    f"{MODULE}:ROW",
    f"{MODULE}.Evil",
    "{x:>9999999999}",
)
_DEEPEST = 6


def fields(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all fields, and of the first element of each list; () is the content itself."""
    yield place
    if len(place) < _DEEPEST and isinstance(content, dict):
        for key, value in content.items():
            yield from fields(value, (*place, key))
    elif len(place) < _DEEPEST and isinstance(content, list) and content:
        yield from fields(content[0], (*place, 0))


def mutants(content: Any) -> Iterator[tuple[str, Any]]:
    """A name and the content with one field replaced, or left out (the last)."""
    for place in fields(content):
        name = ".".join(map(str, place)) or "content"
        for value in VALUES:
            yield f"{name}={value!r}", _replaced(content, place, value)
        if place:
            yield f"{name} left out", _without(content, place)


def _replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(content)
    _parent(changed, place)[place[-1]] = value
    return changed


def _without(content: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(content)
    del _parent(changed, place)[place[-1]]
    return changed


def _parent(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content
