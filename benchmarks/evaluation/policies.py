"""Policies and environments that exist to be timed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.runs.rollout import query_seed
from eval.tasks.table import Episode, TaskSpec

_CHUNK = 30


class WanderingPolicy:
    """Moves a little around the hand's place, by numbers drawn from the seed and from every pixel.

    It solves no task, so that episodes last until the step limit; one changed pixel changes the
    actions.

    Args:
        size: largest move, in metres.
    """

    def __init__(self, size: float = 0.02) -> None:
        self._size = size

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Returns chunks, float32[B, 30, 20]."""
        return np.stack([self._one(o, s) for o, s in zip(observations, seed, strict=True)])

    def _one(self, observation: Mapping[str, Any], seed: int) -> NDArray[np.float32]:
        pixels = [zlib.crc32(np.ascontiguousarray(i).tobytes()) for i in observation["images"]]
        rng = np.random.default_rng([seed, *pixels])
        chunk = np.tile(np.asarray(observation["proprio"], np.float32), (_CHUNK, 1))
        chunk[:, :3] += np.linspace(0, 1, _CHUNK)[:, None] * rng.uniform(-1, 1, 3) * self._size
        chunk[:, 9] = 0.0
        return chunk


class ReplayPolicy:
    """Plays rows back in chunks and ignores images; it knows the episode by the query's seed.

    Args:
        rows: for each episode the rows [n, 10 or more] of its demonstration.
        spec: row of the task table; its step limit bounds the number of chunks.
    """

    def __init__(self, rows: Mapping[Episode, NDArray[np.float32]], spec: TaskSpec) -> None:
        self._chunks: dict[int, NDArray[np.float32]] = {}
        for episode, demonstration in rows.items():
            steps = np.arange(-(-spec.step_limit // _CHUNK) * _CHUNK)
            held = demonstration[np.minimum(steps, len(demonstration) - 1)]
            padded = np.zeros((len(steps), spec.client.action_width), np.float32)
            padded[:, : held.shape[1]] = held
            for query, chunk in enumerate(padded.reshape(-1, _CHUNK, spec.client.action_width)):
                self._chunks[query_seed(episode.seed, query)] = chunk

    def act(
        self, observations: Sequence[Mapping[str, Any]], *, seed: Sequence[int]
    ) -> NDArray[np.float32]:
        """Returns chunks, float32[B, 30, D]; the last pose is held after the demonstration."""
        del observations
        return np.stack([self._chunks[s] for s in seed])


class SleepingEnv:
    """Sleeps as long as LIBERO works; ends at a step drawn from the seed.

    Args:
        spec: row of the task table.
        task_id: not used.
    """

    instruction = "wait"
    renderer_name = "none"
    num_parts = 1
    failed = False
    step_s = 0.002
    render_s = 0.02

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self._spec = spec
        del task_id

    def reset(self, init_state: int, seed: int) -> str:
        """Draws the length of the episode."""
        rng = np.random.default_rng(seed)
        self._left = int(rng.integers(_CHUNK, self._spec.step_limit + 1))
        self._pace = float(rng.uniform(0.5, 1.5))
        return str(init_state)

    def step(self, row: NDArray[np.float32]) -> bool:
        """Waits."""
        del row
        time.sleep(self.step_s * self._pace)
        self._left -= 1
        return self._left <= 0

    def score(self) -> float | None:
        """Returns None: it has no score."""
        return None

    def observe(self) -> dict[str, Any]:
        """Waits, and returns black images."""
        time.sleep(self.render_s * self._pace)
        size = self._spec.image_size
        views = {v.source: np.zeros((size, size, 3), np.uint8) for v in self._spec.client.views}
        return {**views, "ee_pos": np.zeros(3), "ee_mat": np.eye(3)}

    def close(self) -> None:
        """Does nothing: there is nothing to free."""
