"""Parts of a dataset row beside its arms: views, filters of episodes, folders, late instructions.

And what all parts share: the check of a field, whose message names the value found, the values
allowed and the file of the row.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

# red and blue are exchanged in decoded files; or in images that are stored as pixels
BGR_SWAPPED, BGR_PIXELS = "bgr_swapped", "bgr_pixels"
CHANNEL_ORDERS = ("rgb", BGR_SWAPPED, BGR_PIXELS)
TURNS = (0, 180)  # degrees

_CHECKOUT = Path(__file__).resolve().parents[1]
# code that runs while a row is made
_MAKERS = (__name__, "data.spec", "data.poses.arms", "dataclasses", "copy")


def caller() -> tuple[str, str]:
    """Module that makes a row, and its file from the root of the checkout, or its name."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _MAKERS:
        frame = frame.f_back
    if frame is None:
        return "", "its row"
    module, file = str(frame.f_globals.get("__name__")), Path(frame.f_code.co_filename)
    inside = file.is_relative_to(_CHECKOUT)
    return module, file.relative_to(_CHECKOUT).as_posix() if inside else module


def check(part: str, field: str, good: bool, value: object, allowed: str) -> None:
    """Refuses a field of a part with the value found, the values allowed and the caller's file."""
    if not good:
        raise ValueError(f"{part}: {field} is {value}, allowed is {allowed} ({caller()[1]})")


def one_of(part: str, field: str, value: object, allowed: Collection[object]) -> None:
    """Refuses a value that is not in `allowed`."""
    names = ", ".join(str(item) if item != "" else "none" for item in allowed)
    check(part, field, value in allowed, repr(value), f"one of {names}")


def fill_in(name: str, *allowed: str) -> NoReturn:
    """Refuses a row of which a value is still to be given; scripts.new_robot writes such lines.

    Raises:
        ValueError: always; it names the line, the value and what is allowed there.
    """
    frame = inspect.currentframe()
    line = frame.f_back.f_lineno if frame is not None and frame.f_back is not None else 0
    raise ValueError(
        f"{caller()[1]}, line {line}: {name} is not filled in, allowed is {' or '.join(allowed)}; "
        f"write the value there, or run scripts.new_robot again with --answer NAME=VALUE"
    )


@dataclass(frozen=True)
class Channel:
    """Name, unit and polarity of one joint; a checkpoint and its server pass them on.

    `low` and `high` say what a gripper's low and high values mean; empty: as `arms` say, or the
    robot's own.
    """

    name: str
    unit: str = "unknown"
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Unit:
    """Unit in which a joint channel was recorded: trained is `scale` * recorded + `offset`.

    Attributes:
        name: of the robot's own unit.
        scale: of one recorded unit; a negative one turns a gripper round.
        offset: what a recorded 0 becomes.
        becomes: unit of the trained number.
    """

    name: str
    scale: float
    offset: float = 0.0
    becomes: str = "unknown"

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and bool(self.name)
        check("Unit", "name", named, repr(self.name), "a text")
        good = math.isfinite(self.scale) and self.scale != 0
        check(f"Unit {self.name}", "scale", good, self.scale, "a finite number but 0")
        check(f"Unit {self.name}", "offset", math.isfinite(self.offset), self.offset, "finite")


def normalised(low: float, high: float, becomes: str = "rad") -> Unit:
    """Unit of LeRobot's -100..100 between two limits, which its calibration of the robot states."""
    return Unit("-100..100", (high - low) / 200, (high + low) / 2, becomes)


# units that mean the same on every robot; a row names them, and writes others as `Unit`
UNITS: Mapping[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit("rad", 1.0, becomes="rad"),
        Unit("deg", math.pi / 180, becomes="rad"),
        Unit("m", 1.0, becomes="m"),
        Unit("cm", 0.01, becomes="m"),
        Unit("mm", 0.001, becomes="m"),
        Unit("0..1", 1.0, becomes="0..1"),
        Unit("0..100", 0.01, becomes="0..1"),
    )
}


@dataclass(frozen=True)
class View:
    """Images of one camera.

    Attributes:
        key: of the images.
        channel_order: of the stored images of this view; None: as the row says.
        turn: degrees by which the images are turned when they are read, 0 or 180.
        present_key: flag of the episode, or of its steps, that says whether the camera was there.
            Where it is false (of steps: anywhere), the samples of the episode lack the view.
    """

    key: str
    channel_order: str | None = None
    turn: int = 0
    present_key: str | None = None

    def __post_init__(self) -> None:
        part = f"View {self.key!r}"
        check("View", "key", bool(self.key), repr(self.key), "the key of images")
        one_of(part, "channel_order", self.channel_order, (None, *CHANNEL_ORDERS))
        one_of(part, "turn", self.turn, TURNS)


def plain_views(*keys: str) -> tuple[View, ...]:
    """Views that have nothing of their own beside their keys."""
    return tuple(View(key) for key in keys)


@dataclass(frozen=True, kw_only=True)
class EpisodeFilter:
    """Condition on a feature of the episode, or of every step; other episodes are left out.

    Attributes:
        key: of the feature.
        equals: the value that it must have.
        pattern: regular expression that must match somewhere in its text.
    """

    key: str
    equals: bool | int | float | str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        part = f"EpisodeFilter {self.key!r}"
        given = (self.equals is None) != (self.pattern is None)
        values = f"{self.equals!r} and {self.pattern!r}"
        check(part, "equals and pattern", given, values, "one of the two")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            check(part, "pattern", False, f"{self.pattern!r} ({error})", "a regular expression")


@dataclass(frozen=True, kw_only=True)
class LateInstruction:
    """A second instruction: at frame i of T, past `after_frame`, with probability i / T."""

    text: str
    after_frame: int | None  # None: T // 2


@dataclass(frozen=True, kw_only=True)
class EpisodeFolder:
    """An episode that is a folder of loose files, as templates of paths inside it.

    `{episode}` is the folder's own name, `{view}` the view, `{frame}` the number of the frame. A
    template of images without `{frame}` is one video per view.
    """

    state: str  # .h5 by dataset path, or .json: a list of frames under "data"
    pictures: str
    # where the first array is absent, column 0 of each of the others side by side
    substitutes: tuple[tuple[str, tuple[str, ...]], ...] = ()
