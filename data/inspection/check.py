"""A check: what is measured of a source, from where on it is bad, and what to do then."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.inspection.content_checks import BAD_EPISODES, CONTENT_CHECKS
from data.inspection.joint_checks import JOINT_CHECKS
from data.inspection.motion_checks import MOTION_CHECKS
from data.inspection.reports import SourceReport
from data.inspection.sense_checks import SENSE_CHECKS
from data.inspection.timing_checks import TIMING_CHECKS

NAMED = 3  # episodes that a message names


class Measured(NamedTuple):
    """The value that a check judges, and what it rests on."""

    value: float
    evidence: str
    remedy: str | None = None  # where it can be said better than in the row


class Unjudged(NamedTuple):
    """Why a check cannot judge a source, in a few words."""

    reason: str


NO_EPISODES = Unjudged("no episode could be read")
NO_ARMS = Unjudged("the row has joints, no poses")
NO_JOINTS = Unjudged("the row has poses, no joints")
NO_CLOCK = Unjudged("the row names no clock")
ONE_FRAME = Unjudged("no episode has two frames")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table of checks.

    Attributes:
        warn_from, error_from: bounds of the measured value; None: never.
        because: why the bounds lie there.
        measure: takes a source and all sources of the mixture.
    """

    name: str
    unit: str
    warn_from: float | None
    error_from: float | None
    because: str
    meaning: str
    remedy: str
    measure: Callable[[SourceReport, Sequence[SourceReport]], Measured | Unjudged]


@dataclass(frozen=True)
class Finding:
    """What a check says of a source."""

    source: str
    check: Check
    severity: str
    measured: Measured | Unjudged

    @property
    def evidence(self) -> str:
        """What was seen, or why nothing could be judged."""
        measured = self.measured
        return measured.reason if isinstance(measured, Unjudged) else measured.evidence

    @property
    def value(self) -> float | None:
        """What was measured; None where nothing could be judged."""
        return None if isinstance(self.measured, Unjudged) else self.measured.value

    @property
    def remedy(self) -> str:
        """What to do about it."""
        own = None if isinstance(self.measured, Unjudged) else self.measured.remedy
        return own or self.check.remedy


def judge(check: Check, source: SourceReport, sources: Sequence[SourceReport]) -> Finding:
    """Compare what `check` measures with its bounds."""
    measured = check.measure(source, sources)
    if isinstance(measured, Unjudged):
        return Finding(source.name, check, "not judged", measured)
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


CHECKS: tuple[Check, ...] = (
    *CONTENT_CHECKS,
    *MOTION_CHECKS,
    *JOINT_CHECKS,
    *SENSE_CHECKS,
    *TIMING_CHECKS,
)


def examine(sources: Sequence[SourceReport], *, max_bad_episodes: int) -> list[Finding]:
    """Every check of every source; more than `max_bad_episodes` bad ones are an error."""
    return [
        judge(_bounded(check, max_bad_episodes), source, sources)
        for source in sources
        for check in CHECKS
    ]


def verdict(findings: Sequence[Finding]) -> str:
    """ok, or how many warnings and errors."""
    counts = Counter(finding.severity for finding in findings)
    told = [
        f"{counts[severity]} {severity}{'' if counts[severity] == 1 else 's'}"
        for severity in ("error", "warning")
        if counts[severity]
    ]
    return ", ".join(told) or "ok"


def coverage(findings: Sequence[Finding]) -> str:
    """How many of the checks applied; a line for each reason why the others could not."""
    lines = [f"{', '.join(names)}: {why}" for why, names in unjudged(findings).items()]
    return "\n  ".join([applied(findings) + (":" if lines else ""), *lines])


def applied(findings: Sequence[Finding]) -> str:
    """How many of the checks of a source applied, and how many could not."""
    count = sum(finding.severity != "not judged" for finding in findings)
    told = f"{count} of {len(findings)} checks applied"
    return told if count == len(findings) else f"{told}, {len(findings) - count} could not"


def unjudged(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Why checks could not judge -> their names."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity == "not judged":
            reasons.setdefault(finding.evidence, []).append(finding.check.name)
    return reasons


def _bounded(check: Check, max_bad_episodes: int) -> Check:
    if check.name != BAD_EPISODES:
        return check
    return dataclasses.replace(check, error_from=max_bad_episodes + 1)
