"""A point that carries a full cup around a post: a light world with two equally good ways.

It starts at (0, 0) and is to stop at (1, 0); a post of radius 0.12 m stands in the middle. A
commanded step of more than 0.08 m spills. The policy passes the post at the left or at the right,
and forgets the side between two queries, as a sampled policy does. Where a query has a prefix, it
continues on that side, which is the purpose of inpainting in a sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SPEED = 0.025  # m in a step
BULGE = 0.3  # m beside the post
ROWS = 24
_POST, _RADIUS, _SPILL = np.array([0.5, 0.0]), 0.12, 0.08
_POSE = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0, 0] + [0] * 10, np.float32)


class PointWorld:
    """One run; the point follows commands at once."""

    def reset(self, episode: Any) -> np.ndarray:
        self._at = np.zeros(2)
        self._lost = False
        return _POSE.copy()

    def observe(self) -> Mapping[str, Any]:
        proprio = _POSE.copy()
        proprio[:2] = self._at
        return {"images": [], "instruction": "carry", "proprio": proprio, "domain_id": 0}

    def step(self, row: np.ndarray) -> bool:
        way = row[:2] - self._at
        near = self._at + way * np.linspace(0, 1, 9)[1:, None] - _POST
        self._lost |= bool(np.hypot(*way) > _SPILL or np.hypot(*near.T).min() < _RADIUS)
        self._at = np.array(row[:2], float)
        return not self._lost and bool(np.hypot(*(self._at - (1.0, 0.0))) < 0.03)


class TwoWays:
    """The policy: from its place along one of two arcs, by the seed or by the prefix."""

    def act(self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]) -> np.ndarray:
        return np.stack([self._chunk(o, s) for o, s in zip(observations, seed, strict=True)])

    def _chunk(self, observation: Mapping[str, Any], seed: int) -> np.ndarray:
        prefix = observation.get("prefix", np.zeros((0, 20)))
        kept = prefix[: observation.get("prefix_committed", 0)]
        x, y = map(float, kept[-1, :2] if len(kept) else observation["proprio"][:2])
        side = 1.0 if np.random.default_rng(seed).random() < 0.5 else -1.0
        if len(prefix):
            side = float(np.sign(prefix[-1, 1] + prefix[0, 1]))
        elif x > 0.3:  # beside the post there is no choice left
            side = float(np.sign(y))
        rows = np.tile(_POSE, (ROWS, 1))
        rows[: len(kept)] = kept
        for i in range(len(kept), ROWS):
            x = min(x + SPEED, 1.0)
            arc = side * BULGE * math.sin(math.pi * x)
            y += min(max(arc - y, -2 * SPEED), 2 * SPEED)
            rows[i, :2] = x, y
        return rows
