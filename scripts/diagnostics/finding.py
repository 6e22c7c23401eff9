"""The row of the doctor's table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One row of the doctor's table.

    Attributes:
        name: the subject of the check.
        state: version, amount or message, for people.
        status: "broken" where the quickstart cannot run.
        advice: a remedy; empty when the status is ok.
    """

    name: str
    state: str
    status: Status = "ok"
    advice: str = ""


def broken(findings: Iterable[Finding]) -> list[Finding]:
    """Returns the rows that keep the quickstart from running."""
    return [finding for finding in findings if finding.status == "broken"]
