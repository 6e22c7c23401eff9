"""Roles of the cameras by what moves in their images, and the order of their colours."""

from __future__ import annotations

import re

import numpy as np

from data.inference.choices import Choice, Choices, measured, open_choice, stated
from data.inference.columns import (
    FIRST,
    LEFT,
    POSES,
    RIGHT,
    SIDES,
    arm_halves,
    arms_of,
    joints_in_order,
    side,
    state_names,
)
from data.inference.recording import Float64, Recording, Shots, last

WRIST = re.compile(r"wrist|hand|gripper|eye_in|tool", re.IGNORECASE)
MAIN = re.compile(r"main|front|top|head|agent|exterior|overhead|high|third|base", re.IGNORECASE)
EDGE = 8.0  # grey levels between neighbours where an image has texture
TEXTURE = 0.05  # share of the pixels that must have some
CHANGED = 12.0  # grey levels
STATIC, CARRIED = 0.35, 0.6  # share of the textured pixels that change between two images
MANY = 12  # channels without names, from which they may be those of two arms
COLOURED, MIN_COLOURED, CLEARLY = 30, 0.01, 2.0
SHORT_WAY = 0.1  # of the ranges of an arm's joints, added up
SURE = 0.3  # difference of correlations that separates two arms


def changes(shots: Shots) -> Float64:
    """Share of the textured pixels that change from image to image: [n - 1]; NaN without any."""
    grey = shots.images.astype(np.float64).mean(axis=-1)
    edges = np.maximum(
        np.abs(np.diff(grey, axis=1, append=grey[:, -1:])),
        np.abs(np.diff(grey, axis=2, append=grey[:, :, -1:])),
    )
    textured = (edges[1:] > EDGE) | (edges[:-1] > EDGE)
    moved = (np.abs(np.diff(grey, axis=0)) > CHANGED) & textured
    count = textured.sum(axis=(1, 2))
    enough = count >= TEXTURE * grey[0].size
    return np.where(enough, moved.sum(axis=(1, 2)) / np.maximum(count, 1), np.nan)


def movement(recording: Recording) -> dict[str, float]:
    """Median share of the texture that moves, by camera; NaN where there is no texture."""
    shares = {
        camera: np.concatenate([changes(s) for s in shots] or [np.full(1, np.nan)])
        for camera, shots in recording.shots.items()
    }
    return {
        c: float(np.nanmedian(s)) if np.isfinite(s).any() else np.nan for c, s in shares.items()
    }


def views(recording: Recording, _: Choices) -> Choice:
    """Keys of the cameras, the main one first, those that the arms carry last."""
    allowed = f"keys of {', '.join(recording.cameras)}, the main camera first"
    medians = movement(recording)
    text = "; ".join(f"{c}: {100 * m:.0f} % of the texture moves" for c, m in medians.items())
    static = [c for c, m in medians.items() if m <= STATIC]
    carried = [c for c, m in medians.items() if m >= CARRIED]
    unclear = [c for c in medians if c not in static and c not in carried]
    short = {c: last(c) for c in medians}
    odd = [c for c in static if WRIST.search(short[c])] + [
        c for c in carried if MAIN.search(short[c]) and not WRIST.search(short[c])
    ]
    if unclear or odd or not static:
        reason = "no camera is static" if not static else "another role than its name says"
        which = ", ".join(unclear or odd) or "all"
        why = f"neither static nor carried: {which}" if unclear else f"{reason}: {which}"
        return open_choice(f"{text}; {why}", allowed, free=True)
    main = static if len(static) == 1 else [c for c in static if MAIN.search(short[c])]
    if len(main) != 1:
        return open_choice(f"{text}; several static cameras", allowed, free=True)
    carried.sort(key=lambda c: side(short[c]) == RIGHT)
    order = [*main, *(c for c in static if c not in main), *carried]
    return measured(",".join(order), text, allowed, free=True)


def view_list(recording: Recording, choices: Choices) -> tuple[str, ...]:
    """Keys of the views.

    Raises:
        ValueError: a key is no camera, or stands twice.
    """
    keys = tuple(key.strip() for key in choices["views"].value.split(","))
    if len(set(keys)) != len(keys) or not set(keys) <= set(recording.cameras):
        raise ValueError(
            f"views is {choices['views'].value!r}, allowed are keys of "
            f"{', '.join(recording.cameras)}, each once"
        )
    return keys


def channel_order(recording: Recording, _: Choices) -> Choice:
    """RGB where the format says so and the colours agree: strong ones are mostly warm indoors."""
    warm, cold = [], []
    for shots in recording.shots.values():
        for one in shots:
            redder = one.images[..., 0].astype(np.int16) - one.images[..., 2]
            warm.append(float((redder > COLOURED).mean()))
            cold.append(float((redder < -COLOURED).mean()))
    of_warm, of_cold = (float(np.mean(part)) if part else 0.0 for part in (warm, cold))
    text = (
        f"{100 * of_warm:.0f} % of the pixels are clearly red to yellow, {100 * of_cold:.0f} % blue"
    )
    said = "the format stores RGB; " if recording.rgb else "the files do not say; "
    orders = recording.channel_orders
    if recording.rgb and of_warm >= MIN_COLOURED and of_warm > CLEARLY * of_cold:
        return stated(orders[0], said + text, *orders)
    other = f"blue skin or wood is {orders[1]}" if len(orders) > 1 else "some cameras keep files"
    return open_choice(f"{said}{text}: look at the images, {other}", *orders)


def two_arms(recording: Recording, choices: Choices) -> bool:
    """True where the state may hold two arms: by names, by poses, or by two named wrist cameras."""
    names = state_names(recording, choices)
    sides = {side(name) for name in names}
    if choices["kind"].value == POSES:
        return len(arms_of(recording, choices)) == 2
    count = len(joints_in_order(recording, choices))
    many = not names and count >= MANY and count % 2 == 0
    return set(SIDES) <= sides or many or (not sides and len(_wrist(recording)) == 2)


def arm_order(recording: Recording, choices: Choices) -> Choice:
    """The arm that stands first in the array: by names, held against the wrist cameras."""
    key = choices["state_key"].value
    names = state_names(recording, choices)
    halves = arm_halves(recording, choices)
    named = side(names[halves[0][0]]) if names else ""
    cameras = _wrist(recording)
    own, cross = _agreement(recording, key, halves, cameras) if len(cameras) == 2 else (0.0, 0.0)
    seen = "" if abs(own - cross) < SURE else (LEFT if own > cross else RIGHT)
    text = f"columns are named {named} first" if named else "columns have no names"
    if len(cameras) == 2:
        text += (
            f"; the first arm moves with the left wrist camera ({own:.2f}), with the right one "
            f"({cross:.2f})"
        )
    if named and seen in ("", named):
        return stated(f"{named}_first", text, *FIRST)
    if seen and not named:
        return measured(f"{seen}_first", text, *FIRST)
    return open_choice(text, *FIRST)


def _wrist(recording: Recording) -> dict[str, str]:
    """Cameras of a left and a right wrist, by side."""
    wrists = {}
    for camera in recording.cameras:
        short = last(camera)
        if side(short) and WRIST.search(short):
            wrists[side(short)] = camera
    return wrists if set(wrists) == set(SIDES) else {}


def _agreement(
    recording: Recording,
    key: str,
    halves: tuple[tuple[int, ...], ...],
    cameras: dict[str, str],
) -> tuple[float, float]:
    """Correlation of the arms' steps with their wrist cameras: as left first, as right first."""
    spread = np.maximum(np.ptp(recording.rows(key), axis=0), 1e-9)
    steps: list[list[Float64]] = [[], []]
    seen: list[list[Float64]] = [[], []]
    for number in range(len(next(iter(recording.shots.values())))):
        for place, camera in enumerate(cameras[s] for s in SIDES):
            shots = recording.shots[camera][number]
            seen[place].append(np.nan_to_num(changes(shots)))
            rows = recording.episodes(key)[number][shots.frames] / spread
            moved = np.abs(np.diff(rows[:, list(halves[place])], axis=0)).sum(axis=1)
            # a short way already changes a carried camera's image altogether
            steps[place].append(moved / (moved + SHORT_WAY))
    signals = np.stack([np.concatenate(part) for part in (*steps, *seen)])
    table: Float64 = np.nan_to_num(np.asarray(np.corrcoef(signals)))[:2, 2:]
    return float(np.trace(table)) / 2, float(table[0, 1] + table[1, 0]) / 2
