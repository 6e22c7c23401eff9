"""Targets by the lead of the action over the state, the rate by clocks, the unit by ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data.inference.choices import Choice, Choices, measured, open_choice, stated
from data.inference.columns import joint_columns
from data.inference.grippers import gripper_columns
from data.inference.recording import Float64, Recording

STATE_TARGETS, ACTION_TARGETS = "state", "action"
RAD, DEG, NORMALISED = "rad", "deg", "-100..100"
FULL_TURN = 2 * math.pi
ENDS = (99.0, 100.5)  # LeRobot's -100..100 is clipped there
SHARES = (0.99, 1.005)  # and a range of -1..1 ends there
MOST_DEGREES = 400.0
LEAST_TURN = 0.3  # rad: a recording of a robot that works has a joint that turns as far
EQUAL = 1e-5  # of a channel's range: two arrays of float32 with the same numbers
FOLLOWS = 0.5  # correlation of the steps of an action with those of a state that follows it
LEAD_S = 0.5  # s, the longest lead of a command that is looked for
LEAD_FRAMES = 15  # where the rate is not known
SENSIBLE = (1.0, 250.0)  # Hz of a recording whose clock counts seconds
NUMBER = r"\d+(?:\.\d+)?"
CLOCK = 5e-4  # share by which a clock may differ from the stated rate


def unit(recording: Recording, choices: Choices) -> Choice:
    """Unit of the joints, grippers left out, by the range of each."""
    allowed = (RAD, DEG, NORMALISED)
    key = choices["state_key"].value
    columns = [c for c in joint_columns(recording, choices) if c not in gripper_columns(choices)]
    rows = recording.rows(key)[:, columns]
    ends = np.abs(rows).max(axis=0)
    widest = float(np.ptp(rows, axis=0).max())
    names = _names(recording, key, columns)
    listed = ", ".join(
        f"{name} {low:.4g}..{high:.4g}"
        for name, low, high in zip(names, rows.min(axis=0), rows.max(axis=0), strict=True)
    )
    most = float(ends.max())
    if SHARES[0] <= most <= SHARES[1] and (ends >= SHARES[0]).sum() >= 2:
        return open_choice(
            f"{listed}: several joints end at 1 and none goes beyond, as shares of a range do",
            *allowed,
        )
    if most <= FULL_TURN:
        if widest >= LEAST_TURN:
            return measured(RAD, f"{listed}: none beyond a full turn of 6.28 rad", *allowed)
        return open_choice(f"{listed}: hardly any motion, of any unit", *allowed)
    small = [name for name, end in zip(names, ends, strict=True) if end <= FULL_TURN]
    if len(small) > len(names) / 2:
        return open_choice(
            f"{listed}: {', '.join(small)} look like radians beside larger joints", *allowed
        )
    if ENDS[1] < most <= MOST_DEGREES:
        return measured(DEG, f"{listed}: beyond 100.5, within {MOST_DEGREES:g}", *allowed)
    if most <= ENDS[1] and (ends >= ENDS[0]).sum() >= 2:
        text = f"{listed}: {(ends >= ENDS[0]).sum()} joints end at 100, none goes beyond"
        return measured(NORMALISED, text, *allowed)
    if most <= ENDS[1]:
        return open_choice(f"{listed}: degrees, or LeRobot's -100..100", *allowed)
    return open_choice(
        f"{listed}: encoder counts or another unit; convert to radians first", *allowed
    )


def _names(recording: Recording, key: str, columns: Sequence[int]) -> list[str]:
    names = recording.column_names(key)
    return [names[c] if names else f"column {c}" for c in columns]


def action_columns(recording: Recording, choices: Choices) -> tuple[int, ...]:
    """Columns of the action for those of the state, by name or, without names, by place.

    None where the action has another number of columns, or other names.
    """
    key = choices["state_key"].value
    columns = joint_columns(recording, choices)
    names, own = recording.column_names(key), recording.column_names(recording.action)
    if names and own:
        channel_names = [names[c] for c in columns]
        return tuple(own.index(n) for n in channel_names) if set(channel_names) <= set(own) else ()
    same = recording.width(recording.action) == recording.width(key)
    return columns if same else ()


def targets(recording: Recording, choices: Choices) -> Choice:
    """Actions or states as targets, by which of the two is ahead."""
    allowed = (ACTION_TARGETS, STATE_TARGETS)
    if not recording.has(recording.action):
        text = f"no array is named {recording.action or 'action'}"
        return stated(STATE_TARGETS, text, STATE_TARGETS)
    key = choices["state_key"].value
    columns, own = joint_columns(recording, choices), action_columns(recording, choices)
    if not own:
        width = recording.width(recording.action)
        columns_there = ", ".join(recording.column_names(recording.action)) or f"{width} columns"
        return open_choice(
            f"{recording.action} has {columns_there}, not the channels of {key}", STATE_TARGETS
        )
    pairs = [
        (a[:, own], s[:, columns])
        for a, s in zip(recording.episodes(recording.action), recording.episodes(key), strict=True)
    ]
    spread = np.maximum(np.ptp(np.concatenate([s for _, s in pairs]), axis=0), 1e-9)
    equal = {
        lag: all((np.abs(a - s) <= EQUAL * spread).all() for a, s in _shifted(pairs, lag))
        for lag in (0, 1, -1)
    }
    for lag, what in (
        (0, "equals the state of the same frame"),
        (1, "equals the state of the next frame"),
        (-1, "equals the state of the frame before: it is late by one"),
    ):
        if equal[lag]:
            return measured(STATE_TARGETS, f"{recording.action} {what}", *allowed)
    return _by_lead(recording, pairs, spread, allowed)


def _by_lead(
    recording: Recording,
    pairs: list[tuple[Float64, Float64]],
    spread: Float64,
    allowed: tuple[str, ...],
) -> Choice:
    relative = _correlation([(a[:-1], np.diff(s, axis=0)) for a, s in pairs], spread).mean()
    hertz, own = recording.rate_hz, recording.action
    longest = max(2, round(LEAD_S * hertz)) if hertz else LEAD_FRAMES
    curves = {
        lag: _correlation(
            [(np.diff(a, axis=0), np.diff(s, axis=0)) for a, s in _shifted(pairs, lag)], spread
        )
        for lag in range(-3, longest + 1)
    }
    lead = max(curves, key=lambda lag: float(curves[lag].mean()))
    follows = curves[lead]
    if relative > max(FOLLOWS, float(follows.mean())):
        text = f"{own} is a step (correlation {relative:.2f} with the change of the state)"
        return measured(STATE_TARGETS, text, *allowed)
    if float(follows.min()) < FOLLOWS:
        return open_choice(
            f"the steps of {recording.action} and of the state correlate with "
            f"{', '.join(f'{f:.2f}' for f in follows)}: another order or space",
            STATE_TARGETS,
        )
    slopes = _slopes(list(_shifted(pairs, lead)))
    if np.abs(np.log(np.maximum(np.abs(slopes), 1e-9))).max() > math.log(2):
        listed = ", ".join(f"{slope:.3g}" for slope in slopes)
        text = f"{own} is in another unit: {listed} times the state"
        return measured(STATE_TARGETS, text, *allowed)
    text = (
        f"{own} leads the state by {lead} frames "
        f"({f'{1000 * lead / hertz:.0f} ms; ' if hertz else ''}the steps then correlate with "
        f"{float(follows.mean()):.2f})"
    )
    if lead <= 0:
        text = f"{own} does not lead the state ({lead} frames): recorded late, or no command"
        return measured(STATE_TARGETS, text, *allowed)
    return measured(ACTION_TARGETS, text, *allowed)


def _shifted(pairs: list[tuple[Float64, Float64]], lag: int) -> list[tuple[Float64, Float64]]:
    """Action of t beside the state of t + lag."""
    shifted = []
    for a, s in pairs:
        frames = len(a) - abs(lag)
        if frames > 2:
            shifted.append((a[max(0, -lag) :][:frames], s[max(0, lag) :][:frames]))
    return shifted


def _correlation(pairs: list[tuple[Float64, Float64]], spread: Float64) -> Float64:
    """Correlation of two arrays over all episodes, by channel; 1 where both stand still."""
    a = np.concatenate([one for one, _ in pairs]) / spread
    s = np.concatenate([other for _, other in pairs]) / spread
    a, s = a - a.mean(axis=0), s - s.mean(axis=0)
    still = (np.sqrt((a**2).mean(axis=0)) < 1e-6) & (np.sqrt((s**2).mean(axis=0)) < 1e-6)
    scale = np.sqrt(np.maximum((a**2).sum(axis=0) * (s**2).sum(axis=0), 1e-18))
    return np.where(still, 1.0, (a * s).sum(axis=0) / scale)


def _slopes(pairs: list[tuple[Float64, Float64]]) -> Float64:
    """Spread of the action in spreads of the state, by channel; 1 where both stand still."""
    a = np.concatenate([one for one, _ in pairs]).std(axis=0)
    s = np.concatenate([other for _, other in pairs]).std(axis=0)
    return np.where((a < 1e-6) & (s < 1e-6), 1.0, a / np.maximum(s, 1e-9))


def rate(recording: Recording, _: Choices) -> Choice:
    """Frames per second: what the files state, unless the clocks say another."""
    steps = [np.diff(clock) for clock in recording.clocks if len(clock) > 1]
    if recording.rate_hz is None:
        return _by_clock(steps)
    said, stated_by = f"{recording.rate_hz:g}", recording.rate_from
    if not steps:
        return stated(said, f"{stated_by} {said} Hz; no clock was recorded", said)
    spans_s = sum(float(step.sum()) for step in steps)
    hertz = sum(map(len, steps)) / max(spans_s, 1e-9)
    every = np.concatenate(steps)
    uneven = float((np.abs(every * recording.rate_hz - 1) > 0.5).mean())
    text = f"{stated_by} {said} Hz, the recorded times say {hertz:.2f} Hz"
    if uneven > 0.01:
        text += f", and {100 * uneven:.0f} % of the steps are off by half a frame or more"
    if abs(hertz / recording.rate_hz - 1) > CLOCK or uneven > 0.01:
        return open_choice(
            f"{text}; correct what the files state (LeRobot: fps in meta/info.json), or confirm it",
            said,
        )
    return measured(said, text, said)


def _by_clock(steps: Sequence[Float64]) -> Choice:
    """The rate of a recording whose files state none: by its clock, or asked for."""
    asked = "frames a second, as 50 or 29.97"
    if not steps:
        text = "the files state no rate, and no clock was recorded"
        return open_choice(text, asked, free=True, form=NUMBER)
    every = np.concatenate(steps)
    hertz = len(every) / max(float(every.sum()), 1e-9)
    rounded = f"{round(hertz)}"
    uneven = float((np.abs(every * hertz - 1) > 0.5).mean())
    text = f"the files state no rate; the recorded times, as seconds, say {hertz:.3f} Hz"
    exact = abs(hertz / max(round(hertz), 1) - 1) <= CLOCK and uneven <= 0.01
    if exact and SENSIBLE[0] <= hertz <= SENSIBLE[1]:
        return measured(rounded, text, asked, free=True, form=NUMBER)
    return open_choice(text, asked, free=True, form=NUMBER)
