"""The tables and the figure of the experiment, from the receipts of its cells."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.adaptation.cells import CELLS, METHODS, Cell
from eval.files import write_bytes, write_json
from eval.runs.binomial import success_interval
from eval.runs.compare import Comparison, compare_runs, total
from eval.runs.receipt import RESULTS, read_receipt
from xvla_jax.errors import needs

NAME = "report"
_SCRATCH = "scratch"
_SEEDS_TITLE = "seeds of the training"
# pairs of methods that are compared on the same states
_PAIRS = (
    *((method, _SCRATCH) for method in METHODS if method != _SCRATCH),
    ("full", "two_step"),
    ("nearest", "two_step"),
)
_COLOURS = ("#666666", "#9467bd", "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished cell.

    Attributes:
        cell: the cell.
        receipt: of its evaluation.
        l1: see `benchmarks.adaptation.held_out`; rad.
    """

    cell: Cell
    receipt: Mapping[str, Any]
    l1: float

    @property
    def successes(self) -> tuple[int, int]:
        """Episodes that were solved, of how many."""
        (task,) = self.receipt["tasks"].values()
        summary = task["policies"][self.cell.name]["summary"]
        return summary["successes"], summary["episodes"]


def finished(workdir: pathlib.Path) -> list[Cell]:
    """Returns the cells whose evaluation is complete, in the order of `CELLS`."""
    return [cell for cell in CELLS.values() if _results(workdir, cell).is_file()]


def l1_file(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
    """Path of the l1 of a cell."""
    return workdir / cell.folder / "l1.json"


def read_outcomes(workdir: pathlib.Path) -> list[Outcome]:
    """Reads the finished cells, whose l1 must have been measured."""
    return [
        Outcome(
            cell,
            read_receipt(_results(workdir, cell)),
            json.loads(l1_file(workdir, cell).read_text())["l1"],
        )
        for cell in finished(workdir)
    ]


def comparisons(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Compares pairs of methods on the same states, by number of demonstrations, seeds summed."""
    by_cell = {outcome.cell: outcome for outcome in outcomes}
    rows = []
    for count in sorted({outcome.cell.demonstrations for outcome in outcomes}):
        for first, second in _PAIRS:
            pairs = _pairs(by_cell, count, first, second)
            if pairs:
                rows.append(
                    {"demonstrations": count, "first": first, "second": second} | _summary(pairs)
                )
    return rows


def markdown(outcomes: Sequence[Outcome], compared: Sequence[Mapping[str, Any]]) -> str:
    """Returns two tables: the cells, and the comparisons."""
    lines = [
        "| demonstrations | way | seed | solved | 95 % (Blaker) | l1, rad |",
        "|---:|---|---:|---:|---|---:|",
    ]
    for outcome in sorted(outcomes, key=lambda o: (o.cell.demonstrations, o.cell.seed)):
        solved, tried = outcome.successes
        low, high = success_interval(solved, tried)
        cell = outcome.cell
        lines.append(
            f"| {cell.demonstrations} | {METHODS[cell.method].title} | {cell.seed} "
            f"| {solved} of {tried} | {low:.0%} to {high:.0%} | {outcome.l1:.4f} |".replace(
                "%", " %"
            )
        )
    lines += [
        "",
        f"| demonstrations | first | against | {_SEEDS_TITLE} | only first | only second "
        "| difference, points (95 %) | McNemar p |",
        "|---:|---|---|---:|---:|---:|---|---:|",
    ]
    for row in compared:
        difference, low, high = (100 * value for value in row["difference"])
        lines.append(
            f"| {row['demonstrations']} | {METHODS[row['first']].title} "
            f"| {METHODS[row['second']].title} | {row['seeds']} | {row['only_first']} "
            f"| {row['only_second']} | {difference:+.0f} ({low:+.0f} to {high:+.0f}) "
            f"| {row['p_value']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def write(workdir: pathlib.Path, settings: Mapping[str, Any]) -> str:
    """Writes the report as Markdown, JSON and PNG; returns the first."""
    outcomes = read_outcomes(workdir)
    compared = comparisons(outcomes)
    text = markdown(outcomes, compared)
    write_bytes(workdir / f"{NAME}.md", text.encode())
    cells = [
        dataclasses.asdict(o.cell)
        | {"solved": o.successes[0], "episodes": o.successes[1], "l1": o.l1}
        | {"interval95": success_interval(*o.successes)}
        for o in outcomes
    ]
    write_json(
        workdir / f"{NAME}.json",
        {"settings": dict(settings), "cells": cells, "comparisons": compared},
    )
    if outcomes:
        draw(outcomes, workdir / f"{NAME}.png")
    return text


def draw(outcomes: Sequence[Outcome], path: pathlib.Path) -> None:
    """Draws success with exact intervals, and l1, against demonstrations; seeds summed."""
    with needs("sim"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = sorted({outcome.cell.demonstrations for outcome in outcomes})
    for number, (method, row) in enumerate(METHODS.items()):
        points = [
            (place + 0.13 * (number - (len(METHODS) - 1) / 2), own)
            for place, count in enumerate(counts)
            if (own := _of(outcomes, count, method))
        ]
        if not points:
            continue
        places = [place for place, _ in points]
        style = {"color": _COLOURS[number], "marker": "o", "linestyle": "none", "markersize": 5}
        solved = [_success(own) for _, own in points]
        rates = [rate for rate, _, _ in solved]
        reach = [[r - low for r, low, _ in solved], [high - r for r, _, high in solved]]
        left.errorbar(places, rates, yerr=reach, capsize=3, label=row.title, **style)
        right.plot(places, [sum(o.l1 for o in own) / len(own) for _, own in points], **style)
    for axes, title in (
        (left, "solved, % (95 %, Blaker)"),
        (right, "l1 on held-out demonstrations, rad"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlabel("demonstrations")
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.grid(alpha=0.3, axis="y")
    left.set_ylim(-3, 103)
    right.set_ylim(bottom=0)
    # outside of both, where no point can lie under it
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=110)


def _success(outcomes: Sequence[Outcome]) -> tuple[float, float, float]:
    """Returns rate, low and high in percent, episodes of all seeds together."""
    solved, tried = (sum(numbers) for numbers in zip(*(o.successes for o in outcomes), strict=True))
    low, high = success_interval(solved, tried)
    return 100 * solved / tried, 100 * low, 100 * high


def _of(outcomes: Iterable[Outcome], count: int, method: str) -> list[Outcome]:
    return [o for o in outcomes if (o.cell.demonstrations, o.cell.method) == (count, method)]


def _pairs(
    by_cell: Mapping[Cell, Outcome], count: int, first: str, second: str
) -> list[Comparison]:
    """Returns a comparison for each seed that both methods were trained with."""
    compared = []
    for cell, outcome in by_cell.items():
        other = by_cell.get(dataclasses.replace(cell, method=second))
        if (cell.demonstrations, cell.method) == (count, first) and other:
            runs = compare_runs(outcome.receipt, cell.name, other.receipt, other.cell.name)
            compared.append(total(runs.values()))
    return compared


def _summary(pairs: Sequence[Comparison]) -> dict[str, Any]:
    all_pairs = total(pairs)
    return {
        "seeds": len(pairs),
        **dataclasses.asdict(all_pairs),
        "difference": all_pairs.difference,
        "p_value": all_pairs.p_value,
    }


def _results(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
    return workdir / cell.folder / "evaluation" / RESULTS
