"""The success table of a receipt, for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = "results.json"


def print_table(console: Console, record: dict[str, Any]) -> None:
    """Success of each policy with its interval."""
    table = Table(title=f"{record['task']}: {record['instruction']}")
    for column in ("policy", "success", "episodes", "Wilson 95 %", "steps to success"):
        table.add_column(column)
    for name, entry in record["policies"].items():
        s = entry["summary"]
        low, high = s["wilson95"]
        steps = s["mean_steps_to_success"]
        table.add_row(
            name,
            f"{s['rate']:.0%}",
            f"{s['successes']} of {s['episodes']}",
            f"{low:.0%} to {high:.0%}",
            "" if steps is None else f"{steps:.0f}",
        )
    console.print(table)
