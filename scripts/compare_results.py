"""Tests if one policy is better than another on the same episodes.

python -m scripts.compare_results FOLDER[@POLICY] FOLDER[@POLICY]

FOLDER is the --out of scripts.evaluate or scripts.merge_results, or the results.json in it. POLICY
is needed where a receipt has several. Episodes are paired by task, initial state and seed, and must
have begun in the same state. docs/receipts.md explains the table.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.files import FileError
from eval.runs.compare import (
    Comparison,
    PairingError,
    compare_runs,
    only_policy,
    protocol_differences,
    total,
)
from eval.runs.receipt import read_receipt
from scripts.terminal import Command, UsageError

COMMAND = Command(__doc__, more=True)


def _side(text: str) -> tuple[dict[str, Any], str]:
    """Reads FOLDER[@POLICY]: the receipt, and the name of the policy in it."""
    file, _, policy = text.partition("@")
    receipt = read_receipt(pathlib.Path(file))
    return receipt, only_policy(receipt, policy)


def _table(names: tuple[str, str], comparisons: dict[str, Comparison]) -> Table:
    """Returns a line for each task; names come from files, so they are `Text` and no markup."""
    table = Table(title=Text(f"{names[0]} against {names[1]}"))
    for column in (
        "task", "pairs", "both", f"only {names[0]}", f"only {names[1]}", "neither",
        "difference, points (95 %)", "McNemar p",
    ):  # fmt: skip
        table.add_column(Text(column))
    rows = dict(comparisons)
    if len(comparisons) > 1:
        rows["all"] = total(comparisons.values())
    for task, one in rows.items():
        counts = (one.pairs, one.both, one.only_first, one.only_second, one.neither)
        table.add_row(Text(task), *(str(count) for count in counts), *_difference(one))
    return table


def _difference(one: Comparison) -> tuple[str, str]:
    """Returns the difference with its interval, and the p value; nothing without pairs."""
    if not one.pairs:
        return "", ""
    difference, low, high = (100 * value for value in one.difference)
    return f"{difference:+.1f} ({low:+.1f} to {high:+.1f})", f"{one.p_value:.3g}"


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 after an error."""
    if len(arguments) != 2:
        raise UsageError("name two receipts or their folders, each with @POLICY if need be")
    console = Console()
    try:
        (first, one), (second, other) = map(_side, arguments)
        comparisons = compare_runs(first, one, second, other)
    except (FileError, PairingError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    names = (one, other) if one != other else (f"{one} (first)", f"{other} (second)")
    console.print(_table(names, comparisons))
    for receipt in (first, second):
        for task in receipt["tasks"].values():
            if task["stopping"] is not None:
                console.print("the comparison stopped early: use its own p value, not McNemar's")
    for line in protocol_differences(first, second):
        console.print(f"also different: {line}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
