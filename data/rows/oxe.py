"""Open X-Embodiment: a row for every set of the catalogue, read from oxe.csv beside this file.

A line is one set; `{a|b}` in its name makes one row of each. A row NAME_oxe reads the set NAME,
where NAME is taken by a row or mixture of other views. The columns:

    name        of the set and of the row
    class       state: the measured pose is recorded; partial: without some of its axes;
                commanded: only the commanded one; fk: joints, from which the pose is computed;
                integrate: changes of an unknown pose; none: no arm pose
    confidence  high: two sources agree; medium: one; low: none that states it
    robot       a name of data/rows/robots.py, or -; `simulated` behind it
    hz          frames per second, or ? (1 stands for it); `uneven` where time is not uniform
    pose ... keep    see oxe_cells.py; `placeholders` ends a pose whose first rows are zeros
    frame       in which the poses are given
    versions    of the storage whose features are these; - any
    splits      read; in brackets those that are held out
    episodes    of split train, as published
    share       of samples in a mixture (data/rows/oxe_mixtures.py)
    source      where the facts were found
    remarks     what to know; of a line without a pose why it is refused

Nothing in it was measured on the published files but what its remarks say.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.poses.arms import Arm
from data.rows import oxe_cells as cells
from data.spec import DatasetSpec

FILE = Path(__file__).with_name("oxe.csv")
WRITTEN_IN = "data/rows/oxe.csv"
COLUMNS = [
    *("name", "class", "confidence", "robot", "hz"),
    *("pose", "gripper", "views", "text", "keep"),
    *("frame", "versions", "splits", "episodes", "share"),
    *("source", "remarks"),
]
# by class, what the proprio of a row is; of the last two there are no rows
PROPRIO = {
    "state": "measured",
    "partial": "measured",
    "commanded": "commanded",
    "fk": "measured",
    "integrate": "",
    "none": "",
}
CONFIDENCES = ("high", "medium", "low")
SUFFIX = "_oxe"
# second words of a cell
SIMULATED, UNEVEN, PLACEHOLDERS = "simulated", "uneven", " placeholders"
UNKNOWN = "?"
STATIC_EPSILON = 1e-5  # m, and the same number for rotation and gripper, as X-VLA's reader
# X-VLA's rule for windows and margins, by rate
MIN_WINDOW_S, MIN_WINDOW_FRAMES, MARGIN_S = 4.0, 25, 2.0

_FAMILY = re.compile(r"(?P<before>[^{]*)\{(?P<parts>[^}]+)\}(?P<behind>.*)")
_SPLITS = re.compile(r"(?P<read>[^(]+?)(?: \((?P<held>[^)]+)\))?")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        number: in the file, from 1.
        names: of its sets.
        cells: text by column.
    """

    number: int
    names: tuple[str, ...]
    cells: Mapping[str, str]

    @property
    def refused(self) -> bool:
        """True for a line without a pose; its remarks are the reason."""
        return self.cells["pose"] == cells.NOTHING

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{WRITTEN_IN}, line {self.number}"

    @property
    def domain(self) -> str:
        """Domain of its rows: several names share one."""
        name = self.cells["name"]
        return _FAMILY.sub(lambda match: match["before"].rstrip("_") + match["behind"], name)

    @property
    def share(self) -> float | None:
        """Weight in a mixture per samples, or None."""
        share = self.cells["share"]
        return None if share == cells.NOTHING else float(share)


def read_lines(text: str) -> tuple[Line, ...]:
    """Reads the table.

    Raises:
        ValueError: other columns, a line of another length, an unknown class or confidence, a
            name that is there twice, or a refused line without a reason.
    """
    reader = csv.reader(text.splitlines(), strict=True)
    header = next(reader, [])
    if header != COLUMNS:
        raise ValueError(f"{WRITTEN_IN}: columns are {header}, allowed are {COLUMNS}")
    lines = tuple(_line(reader.line_num, row) for row in reader)
    names = [name for line in lines for name in line.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{WRITTEN_IN}: {name} is there {names.count(name)} times")
    return lines


def rows_of(line: Line) -> Iterator[DatasetSpec]:
    """Yields the rows of a line, one for each of its names.

    Raises:
        ValueError: a cell that is not in the language; line, set and column are named.
    """
    arrays = cells.Arrays()
    with _column(line, "pose") as cell:
        recorded = cell.removesuffix(PLACEHOLDERS)
        poses = [cells.pose(arm, arrays) for arm in cells.arms(recorded)]
    with _column(line, "gripper") as cell:
        grippers = [cells.gripper(arm, arrays) for arm in cells.arms(cell)]
        if len(grippers) != len(poses):
            raise ValueError(f"{len(grippers)} grippers for {len(poses)} arms")
    with _column(line, "views") as cell:
        views = cells.views(cell)
    with _column(line, "text") as cell:
        text = cells.text(cell)
    with _column(line, "keep") as cell:
        keep = cells.keep(cell)
    with _column(line, "robot") as cell:
        robot, simulated = cells.one_of_two(cell, SIMULATED)
    with _column(line, "hz") as cell:
        hz, uneven = cells.one_of_two(cell, UNEVEN)
        timing = _timing(hz, uneven)
    with _column(line, "splits") as cell:
        splits = _splits(cell)
    for name in line.names:
        yield DatasetSpec(
            name=name,
            storage="rlds",
            storage_name=name.removesuffix(SUFFIX),
            domain=line.domain,
            arms=tuple(
                Arm(pose=pose, gripper=gripper)
                for pose, gripper in zip(poses, grippers, strict=True)
            ),
            rotation_layout="interleaved",
            views=views,
            encoded_channel_order="rgb",
            proprio=PROPRIO[line.cells["class"]],
            delta_idx=(),
            mask_proprio_idx=(),
            static_epsilon=STATIC_EPSILON,
            augment="none" if simulated else "jitter",
            before_lag="leave_out",
            skip_placeholders=recorded != line.cells["pose"],
            keep_episodes=keep,
            storage_versions=cells.words_of(line.cells["versions"]),
            splits=splits,
            frame=line.cells["frame"],
            confidence=line.cells["confidence"],
            source=line.cells["source"],
            robot="" if robot == cells.NOTHING else robot,
            widths=dict(arrays.widths),
            written_in=line.place,
            **timing,
            **text,
        )


def _line(number: int, row: list[str]) -> Line:
    """Checks what a line says before its cells are read."""
    if len(row) != len(COLUMNS):
        raise ValueError(
            f"{WRITTEN_IN}, line {number}: {len(row)} cells, {len(COLUMNS)} are allowed; a cell "
            "with a comma stands in quotes"
        )
    text = dict(zip(COLUMNS, map(str.strip, row), strict=True))
    line = Line(number, _expanded(text["name"]), text)
    for column, allowed in (("class", PROPRIO), ("confidence", CONFIDENCES)):
        with _column(line, column) as cell:
            if cell not in allowed:
                raise ValueError(f"{cell!r} is not one of {', '.join(allowed)}")
    for column, others in (("share", "-"), ("episodes", "?-")):
        with _column(line, column) as cell:
            if not re.fullmatch(rf"\d+|[{others}]", cell):
                raise ValueError(f"{cell!r} is not a number{', ?' if '?' in others else ''} or -")
    with _column(line, "pose"):
        if not line.refused and not PROPRIO[text["class"]]:
            raise ValueError(f"a pose in class {text['class']!r}, of which no row is read")
    with _column(line, "remarks"):
        if line.refused and text["remarks"] == cells.NOTHING:
            raise ValueError("a line without a pose says why here")
    return line


def _expanded(name: str) -> tuple[str, ...]:
    """Names of a line: `a_{b|c}_d` is a_b_d and a_c_d."""
    match = _FAMILY.fullmatch(name)
    if match is None:
        return (name,)
    return tuple(f"{match['before']}{part}{match['behind']}" for part in match["parts"].split("|"))


def _timing(hz: str, uneven: bool) -> dict[str, Any]:
    """Fields of a row about time, by X-VLA's rule for a rate.

    Args:
        hz: frames per second; ? (then frames stand for seconds) only where time is not uniform.
        uneven: windows are counted in frames.
    """
    if hz == UNKNOWN and not uneven:
        raise ValueError(f"a rate of {hz!r} is allowed with {UNEVEN} only")
    rate = 1.0 if hz == UNKNOWN else float(hz)
    window = max(MIN_WINDOW_S, MIN_WINDOW_FRAMES / rate)
    return {
        "rate_hz": rate,
        "window_s": window,
        "window_frames": math.ceil(window * rate) if uneven else None,
        "index_margin": math.ceil(MARGIN_S * rate),
    }


def _splits(cell: str) -> tuple[str, ...]:
    match = _SPLITS.fullmatch(cell)
    if match is None:
        raise ValueError(f"{cell!r} is not written as SPLIT ... (HELD_OUT_SPLIT ...)")
    return tuple(match["read"].split())


@contextlib.contextmanager
def _column(line: Line, column: str) -> Iterator[str]:
    """Yields a cell; a ValueError gets its line, set and column."""
    try:
        yield line.cells[column]
    except ValueError as error:
        name = line.cells["name"]
        raise ValueError(f"{line.place} ({name}), column {column}: {error}") from None


LINES = read_lines(FILE.read_text(encoding="utf-8"))
OXE_ROWS = tuple(row for line in LINES if not line.refused for row in rows_of(line))
# name -> reason
REFUSED = {name: line.cells["remarks"] for line in LINES if line.refused for name in line.names}
