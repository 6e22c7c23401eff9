"""Kinds of the columns of an array: joints, poses, grippers, extras; by names, else by numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.inference.choices import Choice, Choices, measured, open_choice, stated
from data.inference.recording import (
    JOIN,
    JOINT_ARRAY,
    Float64,
    Recording,
    last,
)

JOINTS, POSES = "joints", "poses"
LEFT, RIGHT = "left", "right"
SIDES = (LEFT, RIGHT)
FIRST = ("left_first", "right_first")  # which arm stands first in the array
UNIT_LENGTH = 2e-3  # largest distance of a norm, or of a dot product, from that of a rotation
GRIPPER = re.compile(r"gripper|finger|claw|jaw", re.IGNORECASE)
# of measurements beside positions; "velocity" and "vel" alike
EXTRA = re.compile(
    r"vel|torque|effort|current|temp|force|volt|time|reward|done|success|load|acc", re.IGNORECASE
)
JOINT = re.compile(
    r"joint|shoulder|elbow|wrist|waist|forearm|upper_?arm|\.pos$|^j\d|_j\d", re.IGNORECASE
)
POSITION = re.compile(r"(?:^|[._/ -]|pos|ee|eef|tcp)([xyz])$", re.IGNORECASE)
# parts of a rotation, by name -> kind; the first group is the place within it
ROTATION_NAMES = (
    ("quaternion", re.compile(r"(?:q|quat|orientation|rot(?:ation)?)[._]?([wxyz])$", re.I), "wxyz"),
    ("quaternion", re.compile(r"quat_(\d)$", re.I), "0123"),  # in an unknown order
    ("euler", re.compile(r"(?:^|[._/])(roll|pitch|yaw)$", re.I), ("roll", "pitch", "yaw")),
    ("vector", re.compile(r"(?:^|[._/])(?:r|rot|rot_|a)([xyz])$", re.I), "xyz"),
    ("rot6d", re.compile(r"(?:r6d|rot6d|rot_6d)[._]?(\d)$", re.I), "012345"),
)


NAMES_FORM = (
    "each of x, y, z, roll, pitch, yaw (or rx, ry, rz, or qx, qy, qz, qw, or rot6d_0 to 5), "
    "gripper, or - for others, as x,y,z,roll,pitch,yaw,-,gripper; of two arms left_x, right_x"
)


@dataclass(frozen=True)
class ArmColumns:
    """Columns of one arm's pose in the array of the state."""

    side: str
    position: tuple[int, ...]
    rotation: tuple[int, ...]
    kind: str  # of the rotation: a key of ROTATION_NAMES
    letters: str = ""  # of a quaternion, in the order in which its names stand


def state_key(recording: Recording, _: Choices) -> Choice:
    """The array that is the state of the robot, or several side by side."""
    arrays = ", ".join(recording.arrays)
    allowed = f"arrays, as A or A{JOIN}B, of {arrays}"
    one = "(?:" + "|".join(map(re.escape, recording.arrays)) + ")"
    form = f"{one}(?:{re.escape(JOIN)}{one})*"
    candidates = [key for key in recording.states if recording.has(key)]
    if len(candidates) == 1:
        text = f"the files have {candidates[0]}"
        return stated(candidates[0], text, allowed, free=True, form=form)
    text = f"no array is named {' or '.join(recording.states) or 'as a state'}; there are {arrays}"
    if candidates:
        text = f"the files have {' and '.join(candidates)}"
    return open_choice(text, *candidates, allowed, free=True, form=form)


def kind(recording: Recording, choices: Choices) -> Choice:
    """Joints or poses, by names of columns or by columns that are a rotation."""
    key = choices["state_key"].value
    names = recording.column_names(key)
    shown = ", ".join(names[:8])
    if any(_place(POSITION, n) for n in names) and named_arms(names):
        return stated(POSES, f"columns of {key} are named {shown}", JOINTS, POSES)
    kept = [n for n in names if not GRIPPER.search(n) and not EXTRA.search(n.removesuffix(".pos"))]
    if kept and all(JOINT.search(name) for name in kept):
        return stated(JOINTS, f"columns of {key} are named {shown}", JOINTS, POSES)
    arms = measured_arms(recording.rows(key))
    if not names and not arms and JOINT_ARRAY.search(last(key)):
        return stated(JOINTS, f"the array is named {last(key)}", JOINTS, POSES)
    if arms:
        blocks = " and ".join(f"{a.rotation[0]}..{a.rotation[-1]}" for a in arms)
        evidence = f"columns {blocks} of {key} are a {arms[0].kind} in every frame"
        return measured(POSES, evidence, JOINTS, POSES)
    named = f"are named {shown}" if names else "have no names"
    return open_choice(
        f"the {recording.width(key)} columns of {key} {named}, and none are a unit quaternion or "
        "an orthonormal 6-D rotation: joints, or x, y, z and three angles",
        *(JOINTS, POSES),
    )


def side(name: str) -> str:
    """Arm of a column by its name: left, right, or empty."""
    match = re.match(r"(left|right)|.*[._/ -](left|right)(?=[._/ -]|$)", name.lower())
    return next(filter(None, match.groups()), "") if match else ""


def named_arms(names: Sequence[str]) -> tuple[ArmColumns, ...]:
    """Arms whose position and rotation have names; none where any part lacks one."""
    arms = []
    sides = [s for s in SIDES if any(side(n) == s for n in names)] or [""]
    for arm in sides:
        mine = {i: n for i, n in enumerate(names) if side(n) in (arm, "") and not EXTRA.search(n)}
        rotation = _named_rotation(mine)
        taken = set(rotation[1]) if rotation else set()
        position = {_place(POSITION, n): i for i, n in mine.items() if i not in taken}
        axes = tuple(position[axis] for axis in "xyz" if axis in position)
        if len(axes) != 3 or rotation is None:
            return ()
        arms.append(ArmColumns(arm, axes, rotation[1], rotation[0], rotation[2]))
    return tuple(arms)


def _named_rotation(names: dict[int, str]) -> tuple[str, tuple[int, ...], str] | None:
    for kind_name, pattern, parts in ROTATION_NAMES:
        places = {_place(pattern, name): i for i, name in names.items()}
        if not all(part in places for part in parts):
            continue
        columns = tuple(sorted(places[part] for part in parts))
        letters = "".join(_place(pattern, names[i]) for i in columns)
        if kind_name == "euler":  # by name, whatever their order in the file
            columns = tuple(places[part] for part in parts)
        return kind_name, columns, letters if set(letters) == set("wxyz") else ""
    return None


def _place(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    return match.group(1).lower() if match else ""


def measured_arms(rows: Float64) -> tuple[ArmColumns, ...]:
    """Arms found by their rotations: three columns of a position stand before each."""
    arms: list[ArmColumns] = []
    column = 3
    while column < rows.shape[1]:
        for kind_name, width, is_rotation in (
            ("rot6d", 6, is_rot6d),
            ("quaternion", 4, is_quaternion),
        ):
            block = rows[:, column : column + width]
            if block.shape[1] == width and is_rotation(block):
                position = (column - 3, column - 2, column - 1)
                rotation = tuple(range(column, column + width))
                arms.append(ArmColumns("", position, rotation, kind_name))
                column += width + 2  # at the next position's last axis, at least
                break
        column += 1
    if len(arms) == 2:
        arms = [
            ArmColumns(s, arm.position, arm.rotation, arm.kind)
            for s, arm in zip(SIDES, arms, strict=True)
        ]
    return tuple(arms) if len(arms) <= 2 else ()


def is_quaternion(block: Float64) -> bool:
    """True where all rows [T, 4] have length one, and more than one of the numbers moves."""
    norms = np.linalg.norm(block, axis=1)
    moving = (np.ptp(block, axis=0) > 1e-3).sum() >= 2
    return bool(np.abs(norms - 1).max() < UNIT_LENGTH and moving)


def is_rot6d(block: Float64) -> bool:
    """True where rows [T, 6] hold two orthonormal columns in either layout."""
    return bool(min(skews(block).values()) < UNIT_LENGTH)


def skews(block: Float64) -> dict[str, float]:
    """Largest distance of rows [T, 6] from orthonormal, by layout."""
    readings = {
        "interleaved": block.reshape(-1, 3, 2),
        "contiguous": block.reshape(-1, 2, 3).swapaxes(-1, -2),
    }
    return {
        layout: float(np.abs(c.swapaxes(-1, -2) @ c - np.eye(2)).max())
        for layout, c in readings.items()
    }


def arms_of(recording: Recording, choices: Choices) -> tuple[ArmColumns, ...]:
    """Arms of a recording of poses, in the order in which they stand in the array."""
    key = choices["state_key"].value
    return named_arms(state_names(recording, choices)) or measured_arms(recording.rows(key))


def state_names(recording: Recording, choices: Choices) -> tuple[str, ...]:
    """Names of the columns of the state: the files' own, or those that the answer `arms` gives.

    Raises:
        ValueError: the answer gives another number of names, or no complete pose.
    """
    key = choices["state_key"].value
    answer = choices["arms"].value if "arms" in choices else ""
    if "," not in answer:
        return recording.column_names(key)
    names = tuple(name.strip() for name in answer.split(","))
    width = recording.width(key)
    if len(names) != width or not named_arms(names):
        raise ValueError(
            f"arms is {answer!r}, allowed are names of the {width} columns of {key}, {NAMES_FORM}"
        )
    return names


def arms(recording: Recording, choices: Choices) -> Choice:
    """Columns of the position of each arm; open where neither names nor numbers show them."""
    blocks = arms_of(recording, choices)
    if not blocks:
        width = recording.width(choices["state_key"].value)
        return open_choice(
            "the columns of the position and of the rotation have no names",
            f"names of the {width} columns, {NAMES_FORM}",
            free=True,
            form=f"[^,]+(?:,[^,]+){{{width - 1}}}",
        )
    places = "; ".join(
        f"{a.side or 'arm'}: position {a.position}, {a.kind} {a.rotation}" for a in blocks
    )
    return measured(str(len(blocks)), places, "1", "2")


def channels(recording: Recording, choices: Choices) -> Choice:
    """Columns of the state that are joints or grippers, as "0-5" or "0-5,12-17"."""
    key = choices["state_key"].value
    names, width = recording.column_names(key), recording.width(key)
    own = recording.action
    allowed = f"columns of {key}, 0..{width - 1}, as 0-5 or 0-5,7"
    if not names:
        if recording.has(own) and recording.width(own) == width:
            text = f"{key} and {own} have {width} columns each, without names"
            return measured(spans(range(width)), text, allowed, free=True)
        return open_choice(f"the {width} columns of {key} have no names", allowed, free=True)
    kept = [i for i, n in enumerate(names) if not EXTRA.search(n.removesuffix(".pos"))]
    named = recording.column_names(recording.action)
    if named and set(named) < {names[i] for i in kept}:
        kept = [i for i in kept if names[i] in named]
    left = [name for i, name in enumerate(names) if i not in kept]
    text = f"named {', '.join(names[i] for i in kept)}"
    if left:
        text += f"; left out as measurements that are not commanded: {', '.join(left)}"
    odd = [names[i] for i in kept if not JOINT.search(names[i]) and not GRIPPER.search(names[i])]
    if odd:
        return open_choice(f"{text}; {', '.join(odd)} may be no joints", allowed, free=True)
    return stated(spans(kept), text, allowed, free=True)


def spans(columns: Sequence[int]) -> str:
    """Columns as text: 0-5,7."""
    parts: list[list[int]] = []
    for column in columns:
        if parts and column == parts[-1][1] + 1:
            parts[-1][1] = column
        else:
            parts.append([column, column])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def columns_of(text: str, width: int) -> tuple[int, ...]:
    """Columns of a text as 0-5,7.

    Raises:
        ValueError: it is of another form, or a column is outside of the array.
    """
    columns: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not match or last < first or last >= width:
            raise ValueError(f"channels is {text!r}, allowed are columns 0..{width - 1}, as 0-5,7")
        columns += range(first, last + 1)
    return tuple(columns)


def joint_columns(recording: Recording, choices: Choices) -> tuple[int, ...]:
    """Columns of the joints and grippers; of two arms, the left one's first."""
    columns = joints_in_order(recording, choices)
    if not choices.get("arm_order"):
        return columns
    halves = arm_halves(recording, choices)
    ordered = halves if choices["arm_order"].value == FIRST[0] else halves[::-1]
    rest = tuple(c for c in columns if c not in (*halves[0], *halves[1]))
    return (*ordered[0], *ordered[1], *rest)


def joints_in_order(recording: Recording, choices: Choices) -> tuple[int, ...]:
    """Columns of the joints and grippers, in the order in which they were given."""
    key = choices["state_key"].value
    return columns_of(choices["channels"].value, recording.width(key))


def arm_halves(recording: Recording, choices: Choices) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Columns of the arm that stands first in the array, and of the other."""
    key = choices["state_key"].value
    if choices["kind"].value == POSES:
        one, other = sorted(arms_of(recording, choices), key=lambda arm: arm.position)
        return (*one.position, *one.rotation), (*other.position, *other.rotation)
    columns = sorted(joints_in_order(recording, choices))
    names = recording.column_names(key)
    groups = [tuple(c for c in columns if names and side(names[c]) == s) for s in SIDES]
    if all(groups):
        first, second = sorted(groups)
        return first, second
    half = len(columns) // 2
    return tuple(columns[:half]), tuple(columns[half:])


def is_bimodal(rows: Float64) -> bool:
    """True where readings [T] are at one of two ends nine times of ten, at each in one of ten."""
    low, high = np.quantile(rows, (0.01, 0.99))
    if high - low < 1e-6:
        return False
    scaled: NDArray[np.float64] = (rows - low) / (high - low)
    shares = float((scaled < 0.15).mean()), float((scaled > 0.85).mean())
    return sum(shares) >= 0.9 and min(shares) >= 0.1
