"""The page is complete, well formed, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eval.pages.html import bar_chart, figure_grid, line_chart, path_chart, video
from eval.pages.quickstart import Curve, Report, render_report, write_report
from eval.pictures import encode_mp4
from eval.runs.receipt import summary
from tests.eval.runs.test_receipt import records

VOID = {"meta", "br", "line", "polyline", "rect", "circle", "img", "link"}


class Tags(HTMLParser):
    """Keeps attributes and checks that tags close in the order they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report() -> Report:
    frames = np.random.default_rng(0).integers(0, 255, (4, 16, 32, 3), np.uint8)
    return Report(
        title="X-VLA <quickstart>",
        lead="Trained & evaluated here.",
        policies=[
            ("trained", "after 600 steps", summary(records([True] * 14 + [False] * 6))),
            ("untrained", "the same model before", summary(records([False] * 20))),
        ],
        facts=["Actions after conversion are equal: worst difference 0"],
        curves=[
            Curve("Loss", {"total": [(0, 10.0), (10, 1.0), (20, 0.1)]}, "step", log_y=True),
            Curve("Rate", {"a": [(0, 0.0), (5, 2.0)], "b": [(0, 1.0), (5, 1.0)]}, "step"),
        ],
        sections=[
            ("Films", figure_grid([("A success", video(encode_mp4(frames, fps=4)), "state <31>")]))
        ],
        stages=[("record", 61.0), ("train", 300.4)],
        versions={"mujoco": "3.17.0"},
        commands=["python -m scripts.quickstart"],
    )


def test_the_page_is_well_formed_and_self_contained() -> None:
    page = render_report(report())
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    sources = [value for name, value in tags.attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(value.startswith("data:") for value in sources)
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_says_what_happened() -> None:
    tags = Tags()
    tags.feed(render_report(report()))
    text = " ".join(tags.text)
    for part in (
        "X-VLA <quickstart>",
        "70 %",
        "14 of 20",
        "47 to 86 %",
        "0 to 16 %",
        "5:00",
        "6:01",
        "worst difference 0",
        "3.17.0",
    ):
        assert part in text, part


def test_empty_sections_are_left_out() -> None:
    page = render_report(Report(title="t", lead="l", policies=[]))
    assert "<video" not in page
    assert "Time of each stage" not in page


def test_the_page_replaces_an_older_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, report())
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_films_are_h264_in_mp4() -> None:
    data = encode_mp4(np.zeros((3, 9, 12, 3), np.uint8), fps=5)
    assert data[4:8] == b"ftyp"
    assert b"avc1" in data


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4), (2, 4, 4, 4)])
def test_what_is_no_film_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"need uint8 \[f, H, W, 3\]"):
        encode_mp4(np.zeros(shape, np.uint8), fps=5)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="even sizes, got 9 x 12"):
        encode_mp4(np.zeros((3, 9, 12, 3), np.uint8), fps=5, scale=1)


def points(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'points="([^"]*)"', svg)
    return [(float(p.split(",")[0]), float(p.split(",")[1])) for p in points.split()]


def test_a_line_runs_through_its_points() -> None:
    (x0, y0), (x1, y1), (x2, y2) = points(
        line_chart({"loss": [(0, 0.0), (50, 5.0), (100, 10.0)]}, x_label="step")
    )
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2  # SVG's y runs downwards


def test_decades_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    svg = line_chart({"loss": [(0, 100.0), (1, 10.0), (2, 1.0)]}, x_label="step", log_y=True)
    (_, y0), (_, y1), (_, y2) = points(svg)
    assert y1 - y0 == pytest.approx(y2 - y1)
    assert ">100<" in svg
    assert ">1<" in svg


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    line = [(0, 1.0), (1, float("nan")), (2, 3.0), (3, float("inf"))]
    assert len(points(line_chart({"loss": line}, x_label="step"))) == 2
    assert "no points" in line_chart({"loss": [(0, 0.0)]}, x_label="step", log_y=True)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_flat_line_is_drawn(value: float) -> None:
    assert len(points(line_chart({"loss": [(0, value), (1, value)]}, x_label="step"))) == 2


def test_bars_stand_in_their_places() -> None:
    svg = bar_chart([0.0, 1.0, 3.0], [2, 4], x_label="samples")
    bars = re.findall(r'<rect class="bar0" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', svg)
    (x0, y0, w0, h0), (x1, y1, w1, h1) = [tuple(map(float, bar)) for bar in bars]
    assert h1 == pytest.approx(2 * h0, abs=0.2)
    assert y0 + h0 == pytest.approx(y1 + h1, abs=0.2)
    assert x0 + w0 + 1 == pytest.approx(x1, abs=0.2)
    assert w1 + 1 == pytest.approx(2 * (w0 + 1), abs=0.2)
    assert "samples" in svg
    assert ">0.5</text>" in bar_chart([0.5, 1.5], [10], x_label="")
    assert ">0.5</text>" not in bar_chart([0.5, 1.5], [10], x_label="", integers=True)


def test_a_chart_includes_given_values_and_has_marks() -> None:
    flat = {"gripper": [(0.0, 0.0), (4.0, 0.0)]}
    assert ">1</text>" in line_chart(flat, x_label="s", reach_y=(0.0, 1.0))
    assert ">0.5</text>" not in line_chart(flat, x_label="s")
    bare, marked = (line_chart(flat, x_label="s", marks=marks) for marks in ((), (1.0, 2.0)))
    assert marked.count('class="grid"') == bare.count('class="grid"') + 2


def test_a_path_is_drawn_to_one_scale_with_the_plans_made_along_it() -> None:
    path = [(0.0, 0.0), (0.2, 0.1)]
    plans = [[(0.0, 0.0), (0.1, 0.0)], [(0.1, 0.05), (0.1, 0.15)], []]
    svg = path_chart(path, plans, x_label="x, m", y_label="z, m", path_name="measured")
    lines = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'points="([^"]*)"', svg)
    ]
    assert len(lines) == 3
    assert 'class="line line0 thick"' in svg
    (start, end), (_, across), (below, above) = lines
    metre = (across[0] - start[0]) / 0.1
    assert below[1] - above[1] == pytest.approx(0.1 * metre, abs=0.2)  # both axes to one scale
    assert end[0] - start[0] == pytest.approx(0.2 * metre, abs=0.2)
    assert start[1] > end[1]  # SVG's y runs downwards
    assert all(56 <= x <= 408 and 12 <= y <= 186 for line in lines for x, y in line)
    assert ">0.1</text>" in svg
    assert svg.count("<circle") == 3


def test_a_way_without_extent_is_drawn_too() -> None:
    labels = {"x_label": "x", "y_label": "y", "path_name": "p"}
    assert "<polyline" in path_chart([(0.3, 0.3), (0.3, 0.3)], [], **labels)
    assert "no points" in path_chart([], [], **labels)
