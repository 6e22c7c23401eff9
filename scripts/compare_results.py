"""Tests if one policy is better than another on the same episodes.

python -m scripts.compare_results FOLDER[@POLICY] FOLDER[@POLICY] ... [--export=FILE.jsonl] \
    [--across=executed,step_limit,steps]
python -m scripts.compare_results FOLDER

FOLDER is the --out of scripts.evaluate or scripts.merge_results, or the results.json in it. POLICY
is needed where a receipt has several. Episodes are paired by task, initial state and seed, and must
have begun in the same state. Of more than two policies each is compared with each, corrected for
the number of comparisons. Of one FOLDER, each policy on each changed row is compared with itself on
the row's control arm. Runs in which a command changed a column of the row (--executed, --step_limit
or --steps of scripts.evaluate) on one side alone are refused without --across. FOLDER and FILE may
be gs://BUCKET/FOLDER. docs/receipts.md explains the tables, and what reads the export.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.files import FileError
from eval.runs.compare import (
    Comparison,
    Pair,
    PairingError,
    against_control,
    best_policies,
    compare_all,
    compare_runs,
    episode_rows,
    only_policy,
    protocol_differences,
    total,
)
from eval.tasks.variants import OVERRIDES
from scripts.choices import ARGUMENT
from scripts.evaluation import receipts
from scripts.evaluation.success_table import print_changes
from scripts.places import files
from scripts.terminal import Command, UsageError

COMMAND = Command(__doc__, more=True, in_buckets=("export", ARGUMENT))
_EXPORT = COMMAND.DEFINE_string(
    "export", None, "Write all episodes here, a JSON object a line, for other programs."
)

_ACROSS = COMMAND.DEFINE_list(
    "across", [], f"Columns in which the sides may differ: {', '.join(OVERRIDES)}."
)

Side = tuple[dict[str, Any], str]  # a receipt, and the name of a policy in it


def _side(text: str) -> Side:
    """Reads FOLDER[@POLICY]: the receipt, and the name of the policy in it."""
    file, _, policy = text.partition("@")
    receipt = receipts.read(file)
    return receipt, only_policy(receipt, policy)


def _table(names: tuple[str, str], comparisons: dict[str, Comparison]) -> Table:
    """Returns a line for each task; names come from files, so they are `Text` and no markup."""
    table = Table(title=Text(f"{names[0]} against {names[1]}"))
    for column in (
        "task", "pairs", "both", f"only {names[0]}", f"only {names[1]}", "neither",
        "difference, points (95 %)", "McNemar p",
    ):  # fmt: skip
        table.add_column(Text(column, overflow="fold"), overflow="fold")
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


def _pairs_table(pairs: Sequence[Pair]) -> Table:
    """Returns a line for each two of several policies."""
    table = Table(title=Text(f"{len(pairs)} comparisons, Holm's correction"))
    columns = ("policies", "pairs", "difference, points (95 %)", "McNemar p", "corrected", "better")
    for column in columns:
        table.add_column(column, overflow="fold")
    for pair in pairs:
        table.add_row(
            Text(f"{pair.first} against {pair.second}"),
            str(pair.counts.pairs),
            *_difference(pair.counts),
            f"{pair.adjusted:.3g}",
            Text(pair.better or "not shown"),
        )
    return table


def _named(sides: Sequence[Side], arguments: Sequence[str]) -> dict[str, Side]:
    """Returns the sides by the name of their policy, or by their folder if two have one name."""
    names = [policy for _, policy in sides]
    if len(sides) == 2 and names[0] == names[1]:
        names = [f"{names[0]} (first)", f"{names[1]} (second)"]
    elif len(set(names)) < len(names):
        names = list(arguments)
    if len(set(names)) < len(names):
        raise UsageError("name each policy once")
    return dict(zip(names, sides, strict=True))


def _compare(console: Console, sides: dict[str, Side]) -> None:
    names = list(sides)
    if len(names) == 2:
        console.print(
            _table(
                (names[0], names[1]),
                compare_runs(*sides[names[0]], *sides[names[1]], across=_ACROSS.value),
            )
        )
    else:
        pairs = compare_all(sides, across=_ACROSS.value)
        console.print(_pairs_table(pairs))
        best = ", ".join(best_policies(names, pairs))
        console.print(f"no other policy is shown to be better than: {best}", markup=False)
    receipts = [receipt for receipt, _ in sides.values()]
    for receipt in receipts:
        for task in receipt["tasks"].values():
            if task["stopping"] is not None:
                console.print("the comparison stopped early: use its own p value, not McNemar's")
    for name, receipt in zip(names[1:], receipts[1:], strict=True):
        for line in protocol_differences(receipts[0], receipt):
            console.print(f"also different, {names[0]} and {name}: {line}", markup=False)


def _compare_with_control(console: Console, receipt: dict[str, Any], policy: str) -> None:
    """Prints what each change did to the policy, or to each where none is named.

    Raises:
        PairingError: the receipt has no changed row beside its control arm.
    """
    if not against_control(receipt):
        raise PairingError(
            f"one receipt, of {', '.join(receipt['tasks'])}, in which no row has its control arm "
            "beside it; name two receipts or more"
        )
    print_changes(console, receipt, policy)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 after an error."""
    if not arguments:
        raise UsageError("name receipts, or their folders, with @POLICY if need be")
    unknown = sorted(set(_ACROSS.value) - set(OVERRIDES))
    if unknown:
        raise UsageError(f"--across={','.join(unknown)}; allowed are {', '.join(OVERRIDES)}")
    console = Console()
    try:
        if len(arguments) == 1:
            file, _, policy = arguments[0].partition("@")
            receipt = receipts.read(file)
            names = [only_policy(receipt, policy)] if policy else list(receipt["policies"])
            sides = {name: (receipt, name) for name in names}
            _compare_with_control(console, receipt, policy)
        else:
            sides = _named([_side(argument) for argument in arguments], arguments)
            _compare(console, sides)
        if _EXPORT.value:
            _export(console, sides, _EXPORT.value)
    except (FileError, OSError, PairingError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    return 0


def _export(console: Console, sides: dict[str, Side], path: str) -> None:
    rows = [
        row
        for name, (receipt, policy) in sides.items()
        for row in episode_rows(name, receipt, policy)
    ]
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    files.write(files.place_of(path, flag="--export"), text.encode())
    console.print(f"{len(rows)} episodes: {path}", markup=False)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
