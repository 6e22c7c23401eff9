"""Compares the numbers of a row with what else is recorded of the same episodes."""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data.faults import DATA_ERRORS, BadEpisodeError
from data.inspection.companion import Companion
from data.inspection.movement import movement
from data.inspection.reports import BesideReport
from data.inspection.timing import Timing
from data.inspection.turns import quaternion_turns
from data.spec import DatasetSpec
from data.trajectory import Reader, Trajectory

Float64 = NDArray[np.float64]
QUATERNION = "xyz_quat_xyzw"
ANGLES = ("xyz_euler_xyz", "xyz_axis_angle")


class Beside:
    """Gathers some of the episodes of a source, one by one."""

    def __init__(self, spec: DatasetSpec, companion: Companion, numbers: Sequence[int]) -> None:
        """Reads the companion's rows of the episodes `numbers`, in rising order."""
        self._spec = spec
        self._companion = companion
        self._numbers = set(numbers)
        self._timing = Timing(spec, companion)
        read = () if companion.reader is None else read_chosen(companion.reader, numbers)
        self._rows = {n: found.poses for n, found in read if isinstance(found, Trajectory)}
        self._turns: list[list[Float64]] = [[] for _ in companion.turns]

    def add(self, number: int, trajectory: Trajectory) -> None:
        """Notes an episode, if it is one of those that are compared."""
        if number not in self._numbers:
            return
        rows = self._rows.pop(number, None)
        if rows is not None:
            for kept, columns in zip(self._turns, self._companion.turns, strict=True):
                kept.append(rows[:, columns])
        with contextlib.suppress(*DATA_ERRORS):  # training may never take the image that fails
            self._timing.add(trajectory, movement(trajectory, self._spec), rows)

    def report(self) -> BesideReport:
        """All that the comparison shows."""
        companion, timing = self._companion, self._timing
        key = companion.other_key if timing.values else ""
        lacks = companion.lacks or (
            f"{companion.other_key} has other columns or rows"
            if companion.other
            else "no other array was looked for"
        )
        arms = () if self._spec.joints else self._spec.arms
        kinds = [(arm.pose_encoding, r) for arm, r in zip(arms, self._turns, strict=False)]
        angles = [np.abs(rows).max() for kind, r in kinds for rows in r if kind in ANGLES]
        return BesideReport(
            episodes=len(timing.lengths),
            other_key=key,
            lacks="" if key else lacks,
            lead=timing.command_lead(),
            agreement=timing.gripper_agreement(),
            image_lags=timing.image_lags(),
            turns=tuple(
                quaternion_turns(r, self._spec.rate_hz) if kind == QUATERNION else None
                for kind, r in kinds
            ),
            widest_angle=float(max(angles, default=math.nan)),
        )


def read_chosen(
    reader: Reader, chosen: Sequence[int]
) -> Iterator[tuple[int, Trajectory | BadEpisodeError]]:
    """The chosen episodes, numbers in rising order, from the parts that hold them."""
    wanted = set(chosen)
    first = 0
    for part, count in enumerate(reader.episodes_per_part):
        end = bisect.bisect_left(chosen, first + count)
        if end and chosen[end - 1] >= first:
            for number, found in enumerate(reader.read(part), start=first):
                if number in wanted:
                    yield number, found
                if number == chosen[end - 1]:
                    break
        first += count
