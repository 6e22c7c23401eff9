"""A choice of a row: the value, how sure it is, and the evidence; and the questions that ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from data.inference.recording import Recording

STATED, MEASURED, ANSWERED, OPEN = "stated", "measured", "answered", "open"


@dataclass(frozen=True)
class Choice:
    """One decision about a recording.

    Attributes:
        value: one of `allowed`, or text in the form that it describes; empty: open.
        certainty: `STATED` by the files, `MEASURED` in the numbers, `ANSWERED` by the user, `OPEN`.
        evidence: what was found, with its numbers.
        allowed: values that an answer may have.
        free: an answer may be any text; `allowed` then describes it.
        form: regular expression of a free answer; empty: any text.
    """

    value: str
    certainty: str
    evidence: str
    allowed: tuple[str, ...]
    free: bool = False
    form: str = ""

    @property
    def is_open(self) -> bool:
        """True where the value has to be given."""
        return self.certainty == OPEN


def stated(value: str, evidence: str, *allowed: str, free: bool = False, form: str = "") -> Choice:
    """A choice that the files state."""
    return Choice(value, STATED, evidence, allowed or (value,), free, form)


def measured(
    value: str, evidence: str, *allowed: str, free: bool = False, form: str = ""
) -> Choice:
    """A choice that the numbers leave no doubt of."""
    return Choice(value, MEASURED, evidence, allowed or (value,), free, form)


def open_choice(evidence: str, *allowed: str, free: bool = False, form: str = "") -> Choice:
    """A choice that has to be given."""
    return Choice("", OPEN, evidence, allowed, free, form)


Choices = Mapping[str, Choice]


@dataclass(frozen=True)
class Question:
    """A question about a recording.

    Attributes:
        name: of the answer, as in ``--answer NAME=VALUE``.
        asks: the question, for a terminal.
        judge: finds the choice; it may read the choices of the questions before.
        applies: False where the choices before leave nothing to ask.
        needs: questions whose values it reads; while one of them is open, it is not asked.
    """

    name: str
    asks: str
    judge: Callable[[Recording, Choices], Choice]
    applies: Callable[[Recording, Choices], bool] | None = None  # always
    needs: tuple[str, ...] = ()


def answered(choice: Choice, name: str, answer: str) -> Choice:
    """The choice with an answer in the place of its value.

    Raises:
        ValueError: the answer is none of the values allowed.
    """
    fits = not choice.form or bool(re.fullmatch(choice.form, answer.strip()))
    good = bool(answer.strip()) and fits if choice.free else answer in choice.allowed
    if not good:
        form = "a text: " if choice.free else "one of "
        raise ValueError(f"{name} is {answer!r}, allowed is {form}{', '.join(choice.allowed)}")
    return replace(choice, value=answer, certainty=ANSWERED)
