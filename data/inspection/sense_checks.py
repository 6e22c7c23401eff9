"""Checks of what the robot grips and sees: grippers and cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data.inspection.channels import SIDES
from data.inspection.check import Check, Measured, named, percent
from data.inspection.grippers import MIN_EPISODES, Polarity, polarity
from data.inspection.reports import EpisodeReport, SourceReport


def _polarity(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    guesses: list[tuple[str, Polarity]] = []
    for arm, side in enumerate(SIDES[len(source.spec.arms)] if source.spec.arms else ()):
        guess = polarity([episode.hands[arm].gripper for episode in source.episodes])
        if guess is not None:
            guesses.append((side, guess))
    if not guesses:
        return None
    side, worst = max(guesses, key=lambda pair: pair[1].confidence)
    told = (
        f"{worst.start_closed} of {worst.switching} episodes with a switch of the {side}gripper "
        f"start closed ({worst.both_closed} also end so)"
    )
    if not math.isnan(worst.rise):
        told += f"; closed, the hand rises by {100 * worst.rise:.0f} cm in the median"
    if max(worst.open_spread, worst.closed_spread) > 0:
        told += (
            f"; readings vary between episodes by {worst.open_spread:.2f} when open and "
            f"{worst.closed_spread:.2f} when closed (a hand that holds something varies more)"
        )
    return Measured(100 * worst.confidence, told)


def _never_switches(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    if not source.episodes or not source.spec.arms:
        return None
    never = [e for e in source.episodes if not any(hand.gripper.switches for hand in e.hands)]
    told = f"{len(never)} of {len(source.episodes)} episodes have no switch of any gripper"
    return Measured(percent(len(never), len(source.episodes)), told)


def _outside(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    if not source.episodes or not source.spec.arms:
        return None
    grippers = [hand.gripper for episode in source.episodes for hand in episode.hands]
    low = min(gripper.reading_low for gripper in grippers)
    high = max(gripper.reading_high for gripper in grippers)
    return Measured(max(0.0, -low, high - 1), f"readings run from {low:.3g} to {high:.3g}")


def _view_name(source: SourceReport, number: int) -> str:
    names = source.spec.views
    return names[number] if number < len(names) else f"view {number}"


def _seen(source: SourceReport) -> list[EpisodeReport]:
    return [episode for episode in source.episodes if episode.views]


def _views_that(source: SourceReport, flags: list[list[bool]]) -> Measured | None:
    """Share of episodes of the worst view, from [episode][view]."""
    seen = _seen(source)
    if not seen:
        return None
    columns = [list(column) for column in zip(*flags, strict=True)]
    counts = [sum(column) for column in columns]
    told = []
    for number, count in enumerate(counts):
        if count:
            where = [e.episode for e, bad in zip(seen, columns[number], strict=True) if bad]
            told.append(f"{count} of {len(seen)} in {_view_name(source, number)}: {named(where)}")
    return Measured(
        percent(max(counts), len(seen)), "; ".join(told) or f"none in {len(seen)} episodes"
    )


def _frozen(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    if not source.spec.arms:
        return None
    flags = [[view.frozen_frames > 0 for view in e.views] for e in _seen(source)]
    return _views_that(source, flags)


def _blank(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    return _views_that(source, [[view.blank for view in e.views] for e in _seen(source)])


def _copied_views(source: SourceReport, _: Sequence[SourceReport]) -> Measured | None:
    seen = _seen(source)
    if not seen or len(seen[0].views) < 2:
        return None
    equal = [episode for episode in seen if episode.equal_views]
    told = f"{len(equal)} of {len(seen)} episodes"
    if equal:
        pair = " and ".join(_view_name(source, number) for number in equal[0].equal_views[0])
        told += f": {pair} in {named(e.episode for e in equal)}"
    return Measured(percent(len(equal), len(seen)), told)


SENSE_CHECKS = (
    Check(
        name="gripper polarity",
        unit="% sure it is reversed",
        warn_from=65,
        error_from=None,
        meaning="A hand usually starts open, and closes to lift something. Where most episodes "
        "that switch begin closed, the row may have open and closed exchanged. A guess: the lower "
        f"95 % bound of the share that starts closed, from {MIN_EPISODES} episodes on.",
        remedy="look at the pictures below; if the hand is open where the plot says closed, change "
        "gripper.closed of the row",
        measure=_polarity,
    ),
    Check(
        name="gripper never switches",
        unit="% of episodes",
        warn_from=60,
        error_from=None,
        meaning="No gripper crosses from open to closed: the threshold is outside the readings, "
        "the column is another, or the tasks need no grip.",
        remedy="check gripper.key, column, scale and threshold of the row",
        measure=_never_switches,
    ),
    Check(
        name="gripper outside 0..1",
        unit="beyond",
        warn_from=0.05,
        error_from=0.5,
        meaning="The gripper target is a probability of closed. Readings outside 0 to 1 (metres, "
        "degrees, 0..255) make its loss meaningless.",
        remedy="set gripper.scale, or a threshold, in the row",
        measure=_outside,
    ),
    Check(
        name="frozen camera",
        unit="% of episodes",
        warn_from=0.1,
        error_from=20,
        meaning="A view stays the same over several of the looked-at pictures, 16 an episode at "
        "most, while a hand moves by 2 cm or 10 degrees or more.",
        remedy="leave these episodes out; look for a camera that dropped off while recording",
        measure=_frozen,
    ),
    Check(
        name="blank view",
        unit="% of episodes",
        warn_from=0.1,
        error_from=20,
        meaning="A view shows one colour all over, black for example, in every looked-at picture.",
        remedy="drop the view from the row (absent views are masked), or leave the episodes out",
        measure=_blank,
    ),
    Check(
        name="views that are copies",
        unit="% of episodes",
        warn_from=1,
        error_from=None,
        meaning="Two views show the same pictures: one key names the camera of the other.",
        remedy="check the views of the row, or the meta file",
        measure=_copied_views,
    ),
)
