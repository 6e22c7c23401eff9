"""A check: what is measured of a source, from where on it is bad, and what to do then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.inspection.reports import SourceReport

SEVERITIES = ("ok", "warning", "error", "not judged")
NAMED = 3  # episodes that a message names


class Measured(NamedTuple):
    """The value that a check judges, and what it rests on."""

    value: float
    evidence: str
    remedy: str | None = None  # where it can be said better than in the row


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table of checks.

    `measure` takes a source and all sources of the mixture; None: the check does not apply.
    """

    name: str
    unit: str
    warn_from: float | None
    error_from: float | None
    meaning: str
    remedy: str
    measure: Callable[[SourceReport, Sequence[SourceReport]], Measured | None]


@dataclass(frozen=True)
class Finding:
    """What a check says of a source."""

    source: str
    check: Check
    severity: str
    measured: Measured | None

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return (self.measured and self.measured.remedy) or self.check.remedy


def judge(check: Check, source: SourceReport, sources: Sequence[SourceReport]) -> Finding:
    """Compare what `check` measures with its bounds."""
    measured = check.measure(source, sources)
    if measured is None:
        return Finding(source.name, check, "not judged", None)
    severity = "ok"
    if check.error_from is not None and measured.value >= check.error_from:
        severity = "error"
    elif check.warn_from is not None and measured.value >= check.warn_from:
        severity = "warning"
    return Finding(source.name, check, severity, measured)


def percent(part: float, whole: float) -> float:
    """100 * part / whole, and 0 of nothing."""
    return 100.0 * part / whole if whole else 0.0


def named(episodes: Iterable[str]) -> str:
    """A few of the episodes by name."""
    names = list(episodes)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
