"""Prints what an evaluation can show, and its success tables.

Names come from files, so they are no markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.pages.evaluation import (
    CHANGE_HEAD,
    change_cells,
    change_notes,
    row_title,
    sampler_text,
    score_text,
)
from eval.runs.compare import against_control
from eval.runs.evaluation import Task
from eval.runs.seal import SEAL
from eval.runs.statistics import episodes_to_separate, power_to_separate
from eval.tasks.spec import row_values

PAGE = "report.html"


_POINTS = 0.1  # difference whose power is stated


def print_power(console: Console, tasks: Sequence[Task]) -> None:
    """Prints before a run what its number of episodes can show."""
    for task in tasks:
        published = task.spec.reference[0].rate if task.spec.reference else None
        # without a published rate the one at which differences are hardest to see
        higher = 0.5 + _POINTS / 2 if published is None else max(published, _POINTS)
        lower, count = higher - _POINTS, len(task.plan)
        needed = episodes_to_separate(higher, lower)
        name = row_title(task.spec.name, row_values(task.spec))
        console.print(
            f"{name}: {count} episodes of each policy separate {higher:.0%} from "
            f"{lower:.0%} with probability {power_to_separate(count, higher, lower):.2f} "
            f"(level 5 %, unpaired); {needed} would with 0.80",
            markup=False,
        )


def print_tables(console: Console, receipt: dict[str, Any]) -> None:
    """Prints the success of each policy on each row of the task table, with its interval."""
    for name, task in receipt["tasks"].items():
        _print_task(console, name, task)
    print_changes(console, receipt)
    for name, policy in receipt["policies"].items():
        if sampler_text(policy):
            console.print(name + sampler_text(policy), markup=False)
    console.print(f"seal: {receipt[SEAL]}", markup=False, soft_wrap=True)


def print_changes(console: Console, receipt: dict[str, Any], policy: str = "") -> None:
    """Prints what each changed row did to a policy, or to each, beside the row's control arm."""
    made = against_control(receipt)
    changes = [c for c in made if policy in ("", c.policy)]
    for name, control in dict.fromkeys((c.policy, c.control) for c in changes):
        title = Text(f"{name}, against the control arm {control}")
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        for column in CHANGE_HEAD:
            table.add_column(column, no_wrap=column == CHANGE_HEAD[0])
        for change in changes:
            if (change.policy, change.control) == (name, control):
                table.add_row(*map(Text, change_cells(change)))
        console.print(table)
    for line in change_notes(receipt, made) if changes else ():
        console.print(line, markup=False)


def _print_task(console: Console, name: str, task: dict[str, Any]) -> None:
    table = Table(title=Text(row_title(name, task["row"])))
    for column in ("policy", "success", "episodes", "95 %", "steps to success"):
        table.add_column(column)
    for policy, entry in task["policies"].items():
        s = entry["summary"]
        if not s["episodes"]:
            continue
        low, high = s["interval95"]
        steps = s["mean_steps_to_success"]
        table.add_row(
            Text(policy),
            f"{s['rate']:.0%}",
            f"{s['successes']} of {s['episodes']}",
            f"{low:.0%} to {high:.0%}",
            "" if steps is None else f"{steps:.0f}",
        )
    console.print(table)
    reference = task["reference"]
    if reference is not None:
        console.print(
            f"published: {reference['value']:g} {reference['unit']} ({reference['source']})",
            markup=False,
        )
    for policy, entry in task["policies"].items():
        text = score_text(task["row"], entry)
        if text:
            console.print(f"{policy}: {text}", markup=False)
        if entry["episodes_to_separate"] is not None:
            console.print(
                f"{policy}: {entry['episodes_to_separate']} episodes each would separate this rate "
                "from the published one (power 80 %, level 5 %)",
                markup=False,
            )
    stopping = task["stopping"]
    if stopping is not None:
        verdict = "decided" if stopping["decided"] else "not decided"
        console.print(
            f"stopped after {stopping['pairs']} of {stopping['planned']} pairs: {verdict}, "
            f"p = {stopping['p_value']:.3g}, valid at any stop"
        )
    if task["golden_frame"]["state"] != "identical":
        console.print(f"golden frame: {task['golden_frame']['state']}", markup=False)
