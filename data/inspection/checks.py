"""All checks, in the order in which the page lists them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from data.inspection.check import Check, Finding, judge
from data.inspection.content_checks import BAD_EPISODES, CONTENT_CHECKS
from data.inspection.motion_checks import MOTION_CHECKS
from data.inspection.reports import SourceReport
from data.inspection.sense_checks import SENSE_CHECKS

CHECKS: tuple[Check, ...] = (*CONTENT_CHECKS, *MOTION_CHECKS, *SENSE_CHECKS)


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


def _bounded(check: Check, max_bad_episodes: int) -> Check:
    if check.name != BAD_EPISODES:
        return check
    return dataclasses.replace(check, error_from=max_bad_episodes + 1)
