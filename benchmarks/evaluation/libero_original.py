"""The loop of LIBERO's published client, to be timed in a simulator's process."""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np

from eval.simulators.preflight import require_headless_gl
from eval.tasks.table import Episode, TaskSpec


@dataclasses.dataclass(frozen=True)
class OriginalLoop:
    """The loop of LIBERO's published client: a new environment that renders at every step."""

    spec: TaskSpec

    def run(self, episode: Episode, steps: int) -> tuple[float, float]:
        """Holds the first pose for `steps` steps.

        Returns:
            Seconds of building and resetting, and of stepping.
        """
        require_headless_gl()
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        began = time.perf_counter()
        suite = benchmark.get_benchmark_dict()[self.spec.suite]()
        task = suite.get_task(episode.task_id)
        size = self.spec.image_size
        env = OffScreenRenderEnv(
            bddl_file_name=os.path.join(
                get_libero_path("bddl_files"), task.problem_folder, task.bddl_file
            ),
            camera_heights=size,
            camera_widths=size,
        )
        env.seed(episode.seed)
        env.reset()
        env.set_init_state(suite.get_task_init_states(episode.task_id)[episode.init_state])
        rest = np.array([0.0] * 6 + [-1.0])
        for _ in range(self.spec.settle_steps):
            env.step(rest)
        ready = time.perf_counter()
        for _ in range(steps):
            env.step(rest)
        done = time.perf_counter()
        env.close()
        return ready - began, done - ready
