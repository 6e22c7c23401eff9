"""Parts of a self-contained HTML page: its frame, tables, films, and charts as inline SVG.

Charts take their colours from the page's CSS, so they suit light and dark.
"""

from __future__ import annotations

import base64
import html
import math
from pathlib import Path
from typing import Mapping, Sequence, Tuple

from eval.files import write_bytes

Points = Sequence[Tuple[float, float]]

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_OPEN = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">'
_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def html_page(
    title: str, lead: str, sections: Sequence[tuple[str, str]], *, style: str = ""
) -> str:
    """Returns a page with nothing to load from elsewhere.

    Args:
        title: heading, plain text.
        lead: HTML below it.
        sections: (heading, HTML); those without content are left out.
        style: CSS added to that of every page.
    """
    body = "".join(
        f"<section><h2>{html.escape(heading)}</h2>{content}</section>"
        for heading, content in sections
        if content
    )
    escaped = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped}</title><style>{_STYLE}{style}</style></head>"
        f"<body><main><h1>{escaped}</h1>{lead}{body}</main></body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Writes the page; it appears under `path` only when it is complete."""
    write_bytes(path, page.encode("utf-8"))


def data_uri(media_type: str, content: bytes) -> str:
    """Returns `content` inside an address, such as data:video/mp4;base64,..."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def plain_table(rows: Sequence[Sequence[str]], head: Sequence[str] | None = None) -> str:
    """Returns a table of plain text, or "" without rows."""
    if not rows:
        return ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head or ())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def bullet_list(lines: Sequence[str]) -> str:
    """Returns a list of plain text, or "" without lines."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if lines else ""


def figure_grid(figures: Sequence[tuple[str, str, str]]) -> str:
    """Returns figures of (title, HTML, caption) in two columns, or "" without figures."""
    cells = []
    for title, content, caption in figures:
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        cells.append(f"<figure><h3>{html.escape(title)}</h3>{content}{below}</figure>")
    return f'<div class="grid-of-two">{"".join(cells)}</div>' if cells else ""


def video(mp4: bytes) -> str:
    """Returns a player with the film inside the page."""
    source = data_uri("video/mp4", mp4)
    return f'<video controls loop muted playsinline preload="auto" src="{source}"></video>'


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    log_y: bool = False,
    marks: Sequence[float] = (),
    reach_y: Sequence[float] = (),
) -> str:
    """Returns an SVG of one or more lines, in the CSS classes line0, line1, ...

    Args:
        series: name -> (x, y) points in order of x; points that are not finite are left out, and
            with `log_y` those that are not positive.
        x_label: written below the axis.
        log_y: logarithmic y axis.
        marks: x of fine vertical lines.
        reach_y: values that the y axis includes in any case.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log_y)]
        for name, points in series.items()
    }
    xs = [x for points in kept.values() for x, _ in points]
    ys = [*reach_y, *(y for points in kept.values() for _, y in points)]
    if not xs:
        return '<p class="quiet">no points</p>'
    low, high = min(ys), max(ys)
    ticks = _decades(low, high) if log_y else _nice(min(0.0, low), high)
    scale_y = math.log10 if log_y else float
    y0, y1 = scale_y(min(low, ticks[0])), scale_y(max(high, ticks[-1]))
    x0, x1 = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0 or 1.0)
        up = (scale_y(y) - y0) / (y1 - y0 or 1.0)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_OPEN, *(_y_tick(tick, place(x0, tick)[1]) for tick in ticks)]
    for mark in marks:
        x, _ = place(mark, ticks[0])
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        )
    parts += [_x_tick(tick, place(tick, ticks[0])[0]) for tick in _nice(x0, x1) if x0 <= tick <= x1]
    parts.append(_x_name(x_label))
    for number, points in enumerate(kept.values()):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline class="line line{number % 6}" points="{path}"/>')
    parts.append("</svg>")
    legend = " ".join(
        f'<span class="key key{number % 6}">{html.escape(name)}</span>'
        for number, name in enumerate(kept)
    )
    return "".join(parts) + f'<p class="legend">{legend}</p>'


def bar_chart(
    edges: Sequence[float], counts: Sequence[int], *, x_label: str, integers: bool = False
) -> str:
    """Returns an SVG of a histogram: counts[i] values lie between edges[i] and edges[i + 1].

    With `integers` only integers are written below the axis.
    """
    top, width = max(counts) or 1, edges[-1] - edges[0] or 1.0
    inner, floor = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + (x - edges[0]) / width * inner

    parts = [_OPEN]
    for tick in _nice(0.0, float(top)):
        if tick <= top:
            parts.append(_y_tick(tick, floor - tick / top * (floor - _TOP)))
    for left, right, count in zip(edges, edges[1:], counts):
        height = count / top * (floor - _TOP)
        parts.append(
            f'<rect class="bar0" x="{across(left) + 0.5:.1f}" y="{floor - height:.1f}" '
            f'width="{max(across(right) - across(left) - 1, 0.5):.1f}" height="{height:.1f}"/>'
        )
    ticks = [tick for tick in _nice(edges[0], edges[-1]) if not integers or tick == round(tick)]
    parts += [_x_tick(tick, across(tick)) for tick in ticks if edges[0] <= tick <= edges[-1]]
    return "".join([*parts, _x_name(x_label), "</svg>"])


def path_chart(
    path: Points, plans: Sequence[Points], *, x_label: str, y_label: str, path_name: str
) -> str:
    """Returns an SVG of a path in a plane with the plans along it, both axes to one scale.

    Args:
        path: its points; drawn thick, from a dot at its start.
        plans: points of each plan; drawn thin, from a dot at its first point.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        path_name: of the path, in the legend.
    """
    points = [*path, *(point for plan in plans for point in plan)]
    if not points:
        return '<p class="quiet">no points</p>'
    (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*points))
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    scale = min(inner / ((x1 - x0) or 1e-9), tall / ((y1 - y0) or 1e-9), inner / 1e-3)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + inner / 2 + (x - (x0 + x1) / 2) * scale,
            _TOP + tall / 2 - (y - (y0 + y1) / 2) * scale,
        )

    def line(points: Points, kind: str) -> str:
        dots = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        x, y = place(*points[0])
        return (
            f'<polyline class="line {kind}" points="{dots}"/>'
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        )

    half_x, half_y = inner / 2 / scale, tall / 2 / scale
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    parts = [_OPEN]
    for tick in _nice(middle_y - half_y, middle_y + half_y):
        if abs(tick - middle_y) <= half_y:
            parts.append(_y_tick(tick, place(0.0, tick)[1]))
    for tick in _nice(middle_x - half_x, middle_x + half_x):
        if abs(tick - middle_x) <= half_x:
            parts.append(_x_tick(tick, place(tick, 0.0)[0]))
    parts.append(_x_name(x_label))
    parts.append(f'<text x="{_LEFT + 3}" y="{_TOP + 2}">{html.escape(y_label)}</text>')
    if path:
        parts.append(line(path, "line0 thick"))
    parts += [line(plan, "line1 thin") for plan in plans if plan]
    parts.append("</svg>")
    keys = (path_name, "predicted chunks, each from the place of its query")
    legend = " ".join(
        f'<span class="key key{k}">{html.escape(name)}</span>' for k, name in enumerate(keys)
    )
    return "".join(parts) + f'<p class="legend">{legend}</p>'


def _y_tick(value: float, y: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _x_tick(value: float, x: float) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{value:g}</text>'


def _x_name(label: str) -> str:
    return (
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 3}" text-anchor="middle">'
        f"{html.escape(label)}</text>"
    )


def _nice(low: float, high: float) -> list[float]:
    """Returns about four round numbers, from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**k for k in range(first, max(last, first + 1) + 1)]
