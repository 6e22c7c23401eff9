"""A simulator's host that shows the beginning of an episode of one row after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from eval.pictures import side_by_side
from eval.simulators.host import SimulatorHost
from eval.tasks.table import Episode, TaskSpec
from eval.wire import Records, table

_REACH = 0.05  # m, how far the hand is sent


@dataclass(frozen=True)
class Shown:
    """The beginning of an episode.

    Attributes:
        state_hash: of the initial state.
        instruction: text for the policy.
        image: all views side by side, uint8[H, W, 3].
        path: measured positions while a chunk is carried out, float64[n, 3].
    """

    state_hash: str
    instruction: str
    image: NDArray[np.uint8]
    path: NDArray[np.float64]


class SheetHost(SimulatorHost):
    """A host that shows one row after the other."""

    records: ClassVar[Records] = table(Shown)

    def show(self, spec: TaskSpec, episode: Episode) -> Shown:
        """Starts an episode of a row and sends the hand a little to the side."""
        self._leave()
        self._spec = spec
        seen = self.start(episode)
        if seen.observation is None:
            raise ValueError(f"{spec.name}: the episode ended at once")
        row = seen.observation["proprio"].copy()
        row[1] += _REACH
        path = []
        for _ in range(spec.client.executed):
            self._step(row)
            path.append(self._env.pose()[0])
        image = side_by_side(seen.observation["images"])
        return Shown(seen.state_hash, seen.observation["instruction"], image, np.stack(path))
