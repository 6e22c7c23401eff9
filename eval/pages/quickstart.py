"""One self-contained HTML page: success table, facts, sections, curves, times and versions."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

from .html import (
    Points,
    bullet_list,
    figure_grid,
    html_page,
    line_chart,
    plain_table,
    write_page,
)


@dataclass(frozen=True)
class Curve:
    """A chart: title, name -> (x, y) points, and its axes."""

    title: str
    series: Mapping[str, Points]
    x_label: str
    log_y: bool = False


@dataclass(frozen=True)
class Report:
    """Contents of the page, from plain values only.

    Attributes:
        title: heading.
        lead: a paragraph that says what was run.
        policies: (name, description, summary from `eval.runs.receipt.summary`), in order.
        facts: short statements, such as that conversion keeps the actions.
        sections: further (heading, HTML), after the facts.
        curves: charts.
        stages: (stage, seconds), in order.
        versions: distribution -> version.
        commands: that repeat the run.
    """

    title: str
    lead: str
    policies: Sequence[tuple[str, str, Mapping[str, Any]]]
    facts: Sequence[str] = ()
    sections: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[tuple[str, float]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def render_report(report: Report) -> str:
    """Returns the page as HTML, with nothing to load from elsewhere."""
    sections = [
        ("Success", _policies(report.policies)),
        ("What was checked", bullet_list(report.facts)),
        *report.sections,
        ("Training", _curves(report.curves)),
        ("Time of each stage", _stages(report.stages)),
        ("Repeat it", _commands(report.commands)),
        (
            "Versions",
            plain_table([[k, v] for k, v in report.versions.items()], ("what", "version")),
        ),
    ]
    lead = f'<p class="lead">{html.escape(report.lead)}</p>'
    return html_page(report.title, lead, sections)


def write_report(path: Path, report: Report) -> None:
    """Writes the page; it appears under `path` only when it is complete."""
    write_page(path, render_report(report))


def _policies(policies: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    rows: list[str] = []
    for name, meaning, summary in policies:
        low, high = (100 * bound for bound in summary["interval95"])
        rate = 100 * (summary["rate"] or 0.0)
        steps = summary["mean_steps_to_success"]
        rows.append(
            f"<tr><td><b>{html.escape(name)}</b><br><small>{html.escape(meaning)}</small></td>"
            f'<td class="bar"><div class="track"><i class="range" style="left:{low:.1f}%;'
            f'width:{high - low:.1f}%"></i><i class="rate" style="left:{rate:.1f}%"></i></div></td>'
            f'<td class="number"><b>{rate:.0f} %</b><br><small>{summary["successes"]} of '
            f"{summary['episodes']}</small></td>"
            f'<td class="number">{low:.0f} to {high:.0f} %</td>'
            f'<td class="number">{"" if steps is None else f"{steps:.0f}"}</td></tr>'
        )
    head = "<th>policy</th><th></th><th>success</th><th>95 % interval</th><th>steps to success</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curves(curves: Sequence[Curve]) -> str:
    return figure_grid(
        [(c.title, line_chart(c.series, x_label=c.x_label, log_y=c.log_y), "") for c in curves]
    )


def _stages(stages: Sequence[tuple[str, float]]) -> str:
    if not stages:
        return ""
    total = sum(seconds for _, seconds in stages)
    rows = [[name, _clock(seconds)] for name, seconds in (*stages, ("all", total))]
    return plain_table(rows, ("stage", "minutes:seconds"))


def _commands(commands: Sequence[str]) -> str:
    lines = "\n".join(html.escape(command) for command in commands)
    return f"<pre>{lines}</pre>" if commands else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
