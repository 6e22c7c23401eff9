"""A simulator as a world that goes on step by step, in a worker process of its own."""

from __future__ import annotations

import functools
from typing import Any, Mapping

import numpy as np
from numpy.typing import NDArray

from . import states
from .commands import row_to_action
from .simulators.host import open_environment
from .simulators.workers import WorkerCrashError, WorkerPool
from .tasks.spec import Episode, TaskSpec


class SteppedSimulator:
    """Inside the worker: the environment of one task at a time.

    Args:
        spec: protocol of the episodes.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._env: Any = None
        self._task_id: int | None = None

    def reset(self, episode: Episode) -> NDArray[np.float32]:
        """As `World.reset`: what the row has the first query say of the robot."""
        if self._task_id != episode.task_id:
            if self._env is not None:
                self._env.close()
            self._env, self._task_id = None, None
            self._env = open_environment(self._spec, episode.task_id)
            self._task_id = episode.task_id
        self._env.reset(episode.init_state, episode.seed)
        return self.observe()["proprio"]

    def observe(self) -> dict[str, Any]:
        """As `World.observe`."""
        profile, raw = self._spec.client, self._env.observe()
        return {
            "images": states.pictures(profile, raw),
            "instruction": self._env.instruction,
            "proprio": states.proprio(profile, raw).astype(np.float32),
            "domain_id": profile.domain_id,
        }

    def step(self, row: NDArray[np.float32]) -> bool:
        """As `World.step`."""
        return self._env.step(row_to_action(self._spec.client, row))


class WorkerWorld:
    """In our process: a `World` whose simulator runs in a worker; a context manager.

    Args:
        spec: protocol of the episodes.

    Raises:
        SimulatorSetupError: this machine cannot run the simulator.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self._pool = WorkerPool(functools.partial(SteppedSimulator, spec), 1)

    def __enter__(self) -> WorkerWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def reset(self, episode: Any) -> NDArray[np.float32]:
        """As `World.reset`."""
        return self._call("reset", episode)

    def observe(self) -> Mapping[str, Any]:
        """As `World.observe`."""
        return self._call("observe")

    def step(self, row: NDArray[np.float32]) -> bool:
        """As `World.step`."""
        return self._call("step", row)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pool.send(0, method, *arguments)
        ((_, value),) = self._pool.wait()
        if isinstance(value, WorkerCrashError):
            raise value
        return value
