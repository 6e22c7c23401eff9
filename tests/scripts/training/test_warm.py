"""The line of `warm` on each program: read, compiled and kept, or compiled and lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from scripts.training import warm as warming
from scripts.training.warm import End, warm
from xvla_jax.compilation import program_cache
from xvla_jax.compilation.program_cache import _HIT, _REQUEST, _UNWRITABLE


class _Program:
    """A program whose compilation makes the cache note these events."""

    def __init__(self, *events: str) -> None:
        self._events = events

    def compile(self) -> None:
        program_cache._events.update(self._events)


def test_a_program_that_the_disk_did_not_take_is_not_called_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program_cache, "_events", Counter())
    ends = {
        "read": (_REQUEST, _HIT),
        "compiled": (_REQUEST,),
        "compiled on a full disk": (_REQUEST, _UNWRITABLE),
        "compiled, and room again": (_REQUEST,),
    }
    programs = {name: lambda events=events: _Program(*events) for name, events in ends.items()}
    monkeypatch.setattr(warming, "_programs", lambda run: programs)
    said: list[str] = []
    nothing: Any = None
    warmed = list(warm(nothing, say=said.append))
    assert [program.end for program in warmed] == [End.FOUND, End.KEPT, End.LOST, End.KEPT]
    assert said == [f"compiling {name}" for name in ends]
