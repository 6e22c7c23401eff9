"""The row of the doctor's table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One row of the doctor's table.

    Attributes:
        name: what was looked at.
        found: what there is, for people.
        status: "broken" where the quickstart cannot run.
        advice: what to do; empty when all is well.
    """

    name: str
    found: str
    status: Status = "ok"
    advice: str = ""


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """The rows that keep the quickstart from running."""
    return [finding for finding in findings if finding.status == "broken"]
