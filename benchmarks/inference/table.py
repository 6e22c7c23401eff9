"""The tables of ``benchmarks.inference``."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(console: Console, record: dict[str, Any]) -> None:
    """Prints a record: speed by cell, work by stage, way to the first action, yardsticks."""
    _speed(console, record)
    _work(console, record)
    if record["cold_start"]:
        _cold_start(console, record["cold_start"])
    for dtype, peak in record["matmul_peak"].items():
        console.print(f"matrix product, {dtype}: {peak / 1e9:.0f} GFLOP/s on {record['device']}")
    console.print(
        f"peak resident memory of this process: {record['peak_rss_bytes'] / 2**30:.2f} GiB"
    )


def _speed(console: Console, record: dict[str, Any]) -> None:
    table = Table(title="One chunk of actions, seconds", box=box.SIMPLE)
    table.add_column("views/steps/batch", no_wrap=True)
    for column in (
        "p50", "p90", "p99", "chunks/s", "of peak", "GiB", "compile", "PyTorch p50", "ratio",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for cell in record["cells"]:
        if "not_run" in cell:
            table.add_row(_name(cell), "not run", *[""] * 5, f"{cell['compile_seconds']:.0f}")
            continue
        share = cell["flops_per_second"] / record["matmul_peak"][cell["dtype"]]
        other = cell.get("pytorch")
        table.add_row(
            _name(cell),
            *(f"{cell[name]:.3f}" for name in ("p50", "p90", "p99")),
            f"{cell['chunks_per_second']:.3g}",
            f"{share:.0%}",
            f"{cell['memory_bytes'] / 2**30:.2f}",
            f"{cell['compile_seconds']:.0f}",
            f"{other['p50']:.3f}" if other else "not run",
            f"{cell['ratio']:.2f}" if other else "",
        )
    console.print(table)
    for cell in record["cells"]:
        if "not_run" in cell:
            console.print(f"{_name(cell)} not run: {cell['not_run']}")


def _name(cell: dict[str, Any]) -> str:
    return f"{cell['views']}/{cell['steps']}/{cell['batch']} {cell['dtype']}"


def _work(console: Console, record: dict[str, Any]) -> None:
    cells = {(c["views"], c["steps"]): c for c in record["cells"] if c["batch"] == 1}
    if not cells:
        return
    table = Table(title="GFLOP of one chunk, from the compiled program", box=box.SIMPLE)
    table.add_column("views/steps")
    for views, steps in cells:
        table.add_column(f"{views}/{steps}", justify="right")
    for stage in next(iter(cells.values()))["flops"]:
        table.add_row(stage, *(f"{cell['flops'][stage] / 1e9:.1f}" for cell in cells.values()))
    totals = (sum(cell["flops"].values()) / 1e9 for cell in cells.values())
    table.add_row("all", *(f"{total:.1f}" for total in totals), end_section=True)
    console.print(table)


def _cold_start(console: Console, starts: dict[str, dict[str, float]]) -> None:
    table = Table(title="A fresh process to its first action, seconds", box=box.SIMPLE)
    columns = ("import", "read", "load", "first", "second")
    for column in ("", *columns, "all", "but the chunk", "x read"):
        table.add_column(column, justify="right")
    for name, parts in starts.items():
        total = parts["import"] + parts["load"] + parts["first"]
        around = total - parts["second"]
        table.add_row(
            name,
            *(f"{parts[column]:.2f}" for column in columns),
            f"{total:.2f}",
            f"{around:.2f}",
            f"{around / parts['read']:.2f}",
        )
    console.print(table)
