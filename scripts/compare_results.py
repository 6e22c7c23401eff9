"""Whether one policy is better than another on the same episodes.

python -m scripts.compare_results FOLDER[@POLICY] FOLDER[@POLICY]

Folders are those of scripts.evaluate or scripts.merge_results, or receipts (results.json); the name
of the policy is needed where a receipt has several. Episodes are paired by task, initial state and
seed, and must have begun in the same state. docs/receipts.md says how to read the table.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from absl import app
from rich.console import Console
from rich.table import Table

from eval.runs.compare import (
    Comparison,
    PairingError,
    compare_runs,
    only_policy,
    protocol_differences,
    total,
)
from eval.runs.receipt import ReceiptError, read_receipt
from scripts.terminal import ends_clearly


def _side(text: str) -> tuple[dict[str, Any], str]:
    """The receipt, and the name of the policy in it."""
    file, _, policy = text.partition("@")
    receipt = read_receipt(pathlib.Path(file))
    return receipt, only_policy(receipt, policy)


def _table(names: tuple[str, str], found: dict[str, Comparison]) -> Table:
    table = Table(title=f"{names[0]} against {names[1]}")
    for column in (
        "task", "pairs", "both", f"only {names[0]}", f"only {names[1]}", "neither",
        "difference, points (95 %)", "McNemar p",
    ):  # fmt: skip
        table.add_column(column)
    rows = dict(found)
    if len(found) > 1:
        rows["all"] = total(found.values())
    for task, one in rows.items():
        difference, low, high = (100 * value for value in one.difference)
        counts = (one.pairs, one.both, one.only_first, one.only_second, one.neither)
        table.add_row(
            task,
            *(str(count) for count in counts),
            f"{difference:+.1f} ({low:+.1f} to {high:+.1f})",
            f"{one.p_value:.3g}",
        )
    return table


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 after an error."""
    if len(argv) != 3:
        raise app.UsageError("name two receipts or their folders, each with @POLICY if need be")
    console = Console()
    try:
        (first, one), (second, other) = _side(argv[1]), _side(argv[2])
        found = compare_runs(first, one, second, other)
    except (ReceiptError, PairingError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    names = (one, other) if one != other else (f"{one} (first)", f"{other} (second)")
    console.print(_table(names, found))
    for receipt in (first, second):
        for task in receipt["tasks"].values():
            if task["stopping"] is not None:
                console.print("an early stop: its own p value counts, not McNemar's")
    for line in protocol_differences(first, second):
        console.print(f"also different: {line}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
