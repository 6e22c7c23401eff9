"""What learns in a run, as a table that the trainer prints before its first step."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from xvla_jax.training.optimizer import GroupRow


def group_table(rows: Sequence[GroupRow]) -> Table:
    """Group, parameters, highest learning rate of the run, and until when it is frozen."""
    table = Table("group")
    for heading in ("parameters", "learning rate", "frozen until step"):
        table.add_column(heading, justify="right")
    for row in rows:
        until = "always" if row.frozen_until is None else str(row.frozen_until or "-")
        table.add_row(row.name, f"{row.parameters:,}", f"{row.learning_rate:g}", until)
    learning = [row.parameters for row in rows if row.frozen_until is not None]
    table.add_section()
    table.add_row("learning", f"{sum(learning):,}")
    return table
