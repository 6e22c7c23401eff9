"""The table of what a run trains: groups of parameters and their learning rates."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from xvla_jax.training.optimizer import GroupRow


def group_table(rows: Sequence[GroupRow]) -> Table:
    """Returns a table: group, parameters, highest learning rate, end of its freeze."""
    table = Table("group")
    for heading in ("parameters", "learning rate", "frozen until step"):
        table.add_column(heading, justify="right")
    for row in rows:
        until = "always" if row.frozen_until is None else str(row.frozen_until or "-")
        table.add_row(row.name, f"{row.parameters:,}", f"{row.learning_rate:g}", until)
    trained = [row.parameters for row in rows if row.frozen_until is not None]
    table.add_section()
    table.add_row("trained", f"{sum(trained):,}")
    return table
