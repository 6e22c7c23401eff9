"""Grippers of a recording: their columns, and the end at which each is closed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from data.inference.choices import Choice, Choices, measured, open_choice, stated
from data.inference.columns import (
    EXTRA,
    GRIPPER,
    POSES,
    arm_halves,
    arms_of,
    columns_of,
    is_bimodal,
    joint_columns,
    spans,
    state_names,
)
from data.inference.recording import GRIPPER_ARRAY, Float64, Recording, last

NONE = "none"
LOW, HIGH = "low", "high"
MIN_EPISODES = 8  # that switch, for a guess by their starts
MOST = 0.9  # of them start so
HELD = 0.05  # of the range: a command into an object leaves such a gap
CLEARLY = 3.0  # times as large at one end as at the other
REST = 3  # frames in which a command stands


def grippers(recording: Recording, choices: Choices) -> Choice:
    """Columns of the state that are grippers, by name, else by staying at two ends."""
    key = choices["state_key"].value
    candidates = _candidates(recording, choices)
    names = state_names(recording, choices)
    allowed = (NONE, f"columns of {key}, as 6 or 6,13")
    if names:
        named = _one_finger(recording, choices, [c for c in candidates if GRIPPER.search(names[c])])
        text = ", ".join(names[c] for c in named) or "no column is named a gripper"
        return stated(spans(named) if named else NONE, text, *allowed, free=True)
    rows = recording.rows(key)
    arrays = [array for array, _ in recording.places(key)]
    keyed = [c for c in candidates if GRIPPER_ARRAY.search(last(arrays[c]))]
    both = [c for c in candidates if is_bimodal(rows[:, c])]
    if choices["kind"].value != POSES:
        both = _with_commands(recording, choices, candidates, both)
    text = f"columns {', '.join(map(str, both)) or 'none'} are at one of two ends throughout"
    if keyed and set(both) <= set(keyed):
        fingers = _one_finger(recording, choices, keyed)
        listed = ", ".join(dict.fromkeys(arrays[c] for c in keyed))
        return stated(spans(fingers), f"columns of {listed}", *allowed, free=True)
    if choices["kind"].value == POSES:
        good = len(both) == len(arms_of(recording, choices))
    else:
        # a joint may stay at two ends as well: grippers stand behind the joints of their arm
        halves = arm_halves(recording, choices) if "arm_order" in choices else (candidates,)
        ends = sorted(max(half) for half in halves)
        good = sorted(both) == ends
        text += f"; the last of an arm: {', '.join(map(str, ends))}"
    if both and good:
        return measured(spans(both), text, *allowed, free=True)
    return open_choice(text, *allowed, free=True)


def _candidates(recording: Recording, choices: Choices) -> list[int]:
    if choices["kind"].value != POSES:
        return list(joint_columns(recording, choices))
    key = choices["state_key"].value
    names = state_names(recording, choices)
    taken = {c for arm in arms_of(recording, choices) for c in (*arm.position, *arm.rotation)}
    free = [c for c in range(recording.width(key)) if c not in taken]
    return [c for c in free if not names or not EXTRA.search(names[c].removesuffix(".pos"))]


def _with_commands(
    recording: Recording, choices: Choices, candidates: list[int], both: list[int]
) -> list[int]:
    """Adds joints whose commands are at one of two ends: readings stop at what is held."""
    action = recording.action
    if not recording.has(action) or recording.width(action) != recording.width(
        choices["state_key"].value
    ):
        return both
    rows = recording.rows(action)
    return [c for c in candidates if c in both or is_bimodal(rows[:, c])]


def _one_finger(recording: Recording, choices: Choices, columns: list[int]) -> list[int]:
    """First finger of those of a hand that move as one; joints keep all of theirs."""
    if choices["kind"].value != POSES:
        return columns
    key = choices["state_key"].value
    rows, places = recording.rows(key), recording.places(key)
    kept: list[int] = []
    for column in columns:
        same = [c for c in kept if places[c][0] == places[column][0] != key]
        if not any(_as_one(rows[:, c], rows[:, column]) for c in same):
            kept.append(column)
    return kept


def _as_one(one: Float64, other: Float64) -> bool:
    return bool(min(one.std(), other.std()) > 0 and abs(np.corrcoef(one, other)[0, 1]) > 0.95)


def gripper_columns(choices: Choices) -> tuple[int, ...]:
    """Columns of the grippers; none where there are none."""
    value = choices["grippers"].value
    return () if value in ("", NONE) else columns_of(value, 1 << 16)


def closed_ends(recording: Recording, choices: Choices) -> Choice:
    """The end of each gripper that is closed; two signs must agree, or it is asked."""
    key = choices["state_key"].value
    columns = gripper_columns(choices)
    allowed = tuple(",".join(v) for v in itertools.product((LOW, HIGH), repeat=len(columns)))
    ends, texts = [], []
    for column in columns:
        parts = [rows[:, column] for rows in recording.episodes(key)]
        votes = [_start(parts), _spread(parts), *_gap(recording, choices, column)]
        seen = [end for end, _ in votes if end]
        texts.append(f"column {column}: " + "; ".join(text for _, text in votes))
        ends.append(seen[0] if len(seen) >= 2 and len(set(seen)) == 1 else "")
    evidence = " | ".join(texts)
    if not all(ends):
        return open_choice(f"{evidence}. Two signs must agree", *allowed)
    return measured(",".join(ends), evidence, *allowed)


def ranges(parts: Sequence[Float64]) -> tuple[float, float]:
    """Low and high end of readings: their 1 % and 99 % quantiles."""
    low, high = np.quantile(np.concatenate(list(parts)), (0.01, 0.99))
    return float(low), float(high)


def _scaled(parts: Sequence[Float64]) -> list[Float64]:
    low, high = ranges(parts)
    return [(part - low) / max(high - low, 1e-9) for part in parts]


def _start(parts: Sequence[Float64]) -> tuple[str, str]:
    """Hands are mostly open when an episode begins."""
    scaled = [p > 0.5 for p in _scaled(parts)]
    switching = [p for p in scaled if p.any() and not p.all()]
    high = sum(bool(p[0]) for p in switching)
    text = f"{high} of {len(switching)} episodes with a switch start high"
    if len(switching) < MIN_EPISODES:
        return "", f"{text} (fewer than {MIN_EPISODES})"
    share = high / len(switching)
    if share >= MOST:
        return LOW, text
    return (HIGH if share <= 1 - MOST else ""), text


def _spread(parts: Sequence[Float64]) -> tuple[str, str]:
    """Fingers that hold something stop at its width, so closed readings differ by episode."""
    scaled = _scaled(parts)
    spreads = []
    for end in (0.0, 1.0):
        at = [p[np.abs(p - end) < 0.5] for p in scaled]
        levels = [float(np.median(p)) for p in at if len(p)]
        spreads.append(float(np.std(levels)) if len(levels) >= MIN_EPISODES else 0.0)
    low, high = spreads
    text = f"readings differ between episodes by {low:.3f} when low, {high:.3f} when high"
    if max(spreads) < 0.02 or max(spreads) < CLEARLY * min(spreads):
        return "", text
    return (LOW if low > high else HIGH), text


def _gap(recording: Recording, choices: Choices, column: int) -> list[tuple[str, str]]:
    """A command to close on an object is not reached; a command to open is."""
    key = choices["state_key"].value
    action = recording.action
    names, own = state_names(recording, choices), recording.column_names(action)
    if not recording.has(action) or recording.width(action) != recording.width(key):
        return []
    place = own.index(names[column]) if names and names[column] in own else column
    low, high = ranges([rows[:, place] for rows in recording.episodes(action)])
    bottom, top = ranges([rows[:, column] for rows in recording.episodes(key)])
    # in another unit than the reading a command says nothing of gaps
    if high - low < 1e-9 or not 0.5 < (top - bottom) / (high - low) < 2:
        return []
    gaps: dict[str, list[float]] = {LOW: [], HIGH: []}
    for actions, states in zip(recording.episodes(action), recording.episodes(key), strict=True):
        command = (actions[:, place] - low) / (high - low)
        reading = (states[:, column] - low) / (high - low)
        moves = np.abs(np.diff(command, prepend=command[0])) > 0.01
        stands = np.convolve(moves, np.ones(2 * REST + 1))[: len(moves)] < 0.5
        gaps[LOW] += (reading - command)[stands & (command < 0.2)].tolist()
        gaps[HIGH] += (command - reading)[stands & (command > 0.8)].tolist()
    if not gaps[LOW] or not gaps[HIGH]:
        return []
    at_low, at_high = (float(np.median(gaps[end])) for end in (LOW, HIGH))
    text = f"a standing command is missed by {at_low:.3f} when low, {at_high:.3f} when high"
    if max(at_low, at_high) < HELD or max(at_low, at_high) < CLEARLY * abs(min(at_low, at_high)):
        return [("", text)]
    return [(LOW if at_low > at_high else HIGH, text)]
