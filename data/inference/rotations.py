"""Poses: unit of the position, encoding and order of the rotation."""

from __future__ import annotations

import math

import numpy as np

from data.inference.choices import Choice, Choices, measured, open_choice, stated
from data.inference.columns import ArmColumns, arms_of, skews
from data.inference.recording import Float64, Recording
from data.poses.rotations import columns_from_quat_xyzw, matrices_of_columns

METRES, MILLIMETRES, CENTIMETRES = "m", "mm", "cm"
SCALES = {METRES: 1.0, MILLIMETRES: 0.001, CENTIMETRES: 0.01}
LONGEST_M = 2.5  # no arm at a table reaches farther ...
LEAST_MM = 250.0  # ... and in centimetres this would be as far
LEAST_SPAN_M = 0.03  # a hand that works moves at least so far along one axis
DOWN, NOT_DOWN = 0.9, 0.6  # mean cosine between the tool and the vertical
VERTICAL, NOT_VERTICAL = 0.7, 0.5  # share of the turning about the vertical
TURNS = 0.3  # rad within an episode, from which the axis of the turning is judged
JUMP = 4.0  # rad between two frames: an angle was wrapped
QUATERNIONS = {"quaternion xyzw": (0, 1, 2, 3), "quaternion wxyz": (1, 2, 3, 0)}
VECTORS = ("axis_angle", "euler xyz", "euler XYZ", "euler zyx", "euler ZYX")


def position_unit(recording: Recording, choices: Choices) -> Choice:
    """Unit of the positions, by how far a hand moves and how far it is away."""
    key = choices["state_key"].value
    rows = recording.rows(key)
    columns = [c for arm in arms_of(recording, choices) for c in arm.position]
    most = float(np.abs(rows[:, columns]).max())
    span = float(np.ptp(rows[:, columns], axis=0).max())
    text = f"positions up to {most:.4g} from the origin, moving over {span:.4g}"
    if most <= LONGEST_M and span >= LEAST_SPAN_M:
        return measured(METRES, f"{text}: in mm the hand would stand still", *SCALES)
    if most >= LEAST_MM:
        return measured(MILLIMETRES, f"{text}: more than {LONGEST_M} m in cm", *SCALES)
    return open_choice(text, *SCALES)


def rotation(recording: Recording, choices: Choices) -> Choice:
    """Encoding and order of the rotation, the same for every arm."""
    arms = arms_of(recording, choices)
    key = choices["state_key"].value
    judge = {
        "quaternion": _quaternion,
        "rot6d": _rot6d,
        "euler": _euler,
        "vector": _vector,
    }[arms[0].kind]
    by_arm = [
        judge([rows[:, list(arm.rotation)] for rows in recording.episodes(key)], arm)
        for arm in arms
    ]
    unequal = len({choice.value for choice in by_arm}) > 1
    text = "; ".join(dict.fromkeys(choice.evidence for choice in by_arm))
    if unequal or any(choice.is_open for choice in by_arm):
        return open_choice(text, *by_arm[0].allowed)
    return Choice(by_arm[0].value, by_arm[0].certainty, text, by_arm[0].allowed)


def _quaternion(parts: list[Float64], arm: ArmColumns) -> Choice:
    """Order by names, held against the hand: at a table it points down and turns about vertical.

    Without names it is asked for: a hand that pours, read in the other order, seems to do just so.
    """
    votes, texts = [], []
    names = tuple(QUATERNIONS)
    down = {n: _down(parts, order) for n, order in QUATERNIONS.items()}
    texts.append(
        f"the tool's cosine with the vertical is {down[names[0]]:.2f} as xyzw, "
        f"{down[names[1]]:.2f} as wxyz"
    )
    for one, other in (names, names[::-1]):
        if abs(down[one]) >= DOWN and abs(down[other]) <= NOT_DOWN:
            votes.append(one)
    turning = {n: _vertical(parts, order) for n, order in QUATERNIONS.items()}
    texts.append(
        f"of the turning {100 * turning[names[0]]:.0f} % is vertical as xyzw, "
        f"{100 * turning[names[1]]:.0f} % as wxyz"
    )
    for one, other in (names, names[::-1]):
        if turning[one] >= VERTICAL and turning[other] <= NOT_VERTICAL:
            votes.append(one)
    named = f"quaternion {arm.letters}" if arm.letters else ""
    if named and named not in QUATERNIONS:
        return open_choice(f"named {arm.letters}", *names)
    if named and set(votes) <= {named}:
        return stated(named, "; ".join([f"named {arm.letters}", *texts]), *names)
    said = [f"named {arm.letters}, which the motion contradicts"] if named else []
    return open_choice("; ".join([*said, *texts]), *names)


def _matrices(rows: Float64, order: tuple[int, ...]) -> Float64:
    return matrices_of_columns(columns_from_quat_xyzw(rows[:, list(order)]))


def _down(parts: list[Float64], order: tuple[int, ...]) -> float:
    """Mean cosine of the tool's z axis with the vertical."""
    return float(np.mean(np.concatenate([_matrices(rows, order)[:, 2, 2] for rows in parts])))


def _vertical(parts: list[Float64], order: tuple[int, ...]) -> float:
    """Share of the turning in episodes that is about the base's z axis; 0 if it hardly turns."""
    sums, widest = np.zeros(3), 0.0
    for rows in parts:
        turns = _matrices(rows, order)
        turn = turns[5:] @ turns[:-5].swapaxes(-1, -2)
        axes = 0.5 * np.stack(
            [
                turn[:, 2, 1] - turn[:, 1, 2],
                turn[:, 0, 2] - turn[:, 2, 0],
                turn[:, 1, 0] - turn[:, 0, 1],
            ],
            axis=1,
        )
        sums += (axes**2).sum(axis=0)
        from_first = np.einsum("tij,ij->t", turns, turns[0])  # trace of the turn since frame 0
        widest = max(widest, float(np.arccos(np.clip((from_first - 1) / 2, -1, 1)).max()))
    return float(sums[2] / max(float(sums.sum()), 1e-12)) if widest >= TURNS else 0.0


def _rot6d(parts: list[Float64], _: ArmColumns) -> Choice:
    """Layout by orthonormality; contiguous is asked for, since two rows pass as two columns."""
    skew_by_layout = skews(np.concatenate(parts))
    text = "; ".join(f"{n} is off orthonormal by {v:.2g}" for n, v in skew_by_layout.items())
    names = tuple(f"rot6d {layout}" for layout in skew_by_layout)
    good = [n for n, v in zip(names, skew_by_layout.values(), strict=True) if v < 2e-3]
    if good == ["rot6d interleaved"]:
        return measured(good[0], text, *names)
    return open_choice(
        f"{text}. The first two columns of the matrix and its first two rows (pytorch3d) look "
        "alike: rows must be converted, columns one after the other are contiguous",
        *(good or names),
    )


def _euler(parts: list[Float64], _: ArmColumns) -> Choice:
    """Roll, pitch, yaw by name: about fixed axes x, y, z."""
    most = float(np.abs(np.concatenate(parts)).max())
    text = f"named roll, pitch, yaw; up to {most:.4g}"
    if most > 2 * math.pi + 0.01:
        return open_choice(f"{text}: degrees. A row takes radians; convert them first", "none")
    if float(np.ptp(np.concatenate(parts), axis=0).max()) < 0.05:
        return open_choice(f"{text}: hardly any turning, of any unit", "euler xyz", "euler ZYX")
    return stated("euler xyz", f"{text} rad", "euler xyz", "euler ZYX")


def _vector(parts: list[Float64], _: ArmColumns) -> Choice:
    """Rotation vector or angles, by what happens at half a turn."""
    rows = np.concatenate(parts)
    longest = float(np.linalg.norm(rows, axis=1).max())
    alone = flipped = 0
    for part in parts:
        steps = np.abs(np.diff(part, axis=0))
        wraps = np.abs(steps - 2 * math.pi) < 0.5
        still = steps < 0.5
        alone += int(((wraps.sum(axis=1) == 1) & (still.sum(axis=1) == 2)).sum())
        ends = part[:-1], part[1:]
        norms = [np.linalg.norm(end, axis=1) for end in ends]
        cosine = (ends[0] * ends[1]).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-9)
        around = np.abs(norms[0] + norms[1] - 2 * math.pi) < 0.5
        flipped += int((around & (cosine < -0.9) & ((steps > 0.5).sum(axis=1) >= 2)).sum())
    text = (
        f"the longest vector is {longest:.2f}; {alone} steps wrap one number by a full turn, "
        f"{flipped} turn the vector around at half a turn"
    )
    if longest > 2 * math.pi * math.sqrt(3) + 0.01:
        return open_choice(f"{text}: degrees. A row takes radians; convert them first", "none")
    if flipped >= 3 and not alone and longest <= math.pi + 0.05:
        return measured("axis_angle", text, *VECTORS)
    return open_choice(text, *VECTORS)
