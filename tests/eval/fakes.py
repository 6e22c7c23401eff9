"""A simulator of three lines of physics, importable by worker processes."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.simulators import preflight
from eval.simulators.cameras import in_view
from eval.simulators.expert import Scene
from eval.simulators.host import SimulatorHost
from eval.tasks.table import TASKS, Episode, TaskSpec, View

# without LIBERO: the instruction is the fake's own
SPEC = dataclasses.replace(TASKS["quickstart"], image_size=8, step_limit=150, text_source="")
POINTING_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


class FakeEnv:
    """The hand follows a command at once; a closed hand near the item carries it."""

    renderer_name = "fake renderer"
    num_parts = 1
    failed = False
    instruction = "pick up the bbq sauce and place it in the basket"

    def __init__(self, spec: TaskSpec, task_id: int) -> None:
        self._spec = spec

    def reset(self, init_state: int, seed: int) -> str:
        rng = np.random.default_rng((init_state + 1, seed if init_state < 0 else 0))
        self._hand = np.array([-0.15, 0.0, 0.26])
        self._item = np.array([0.05, -0.1, 0.055]) + np.append(rng.uniform(-0.01, 0.01, 2), 0)
        self._goal = np.array([0.0, 0.26, 0.0])
        self._grip, self._held = -1.0, False
        return f"state {init_state}"

    def step(self, action: Any) -> bool:
        command = np.asarray(action, np.float64)
        before, self._hand = self._hand, command[:3]
        if command[6] < 0:
            self._held = False
        elif self._grip < 0 and np.linalg.norm(self._item - before) < 0.03:
            self._held = True
        self._grip = command[6]
        if self._held:
            self._item = self._item + self._hand - before
        return not self._held and bool(np.linalg.norm((self._item - self._goal)[:2]) < 0.03)

    def scene(self) -> Scene:
        return Scene(
            position=self._hand,
            matrix=POINTING_DOWN,
            objects={"bbq_sauce_1": self._item, "basket_1": self._goal},
        )

    def policy_row(self, row: np.ndarray) -> np.ndarray:
        return row

    def score(self) -> float | None:
        return None

    def observe(self) -> dict[str, Any]:
        # As the simulator has it: the client turns the first view.
        raw = {view.source: view.turned(self.image(view)) for view in self._spec.client.views}
        return {**raw, "ee_pos": self._hand, "ee_mat": POINTING_DOWN}

    def image(self, view: View) -> np.ndarray:
        # Carries the item's place (mm, from -0.5 m), so that a policy can find it by sight.
        image = np.zeros((8, 8, 3), np.uint8)
        millimetres = np.rint((self._item[:2] + 0.5) * 1000).astype(int)
        image[0, 0, :2], image[0, 1, :2] = millimetres // 256, millimetres % 256
        return image

    def close(self) -> None:
        pass


class SightPolicy:
    """Reads the item's place from the image and answers chunks of a pick and place, plus noise.

    Which part of the way comes next it reads from proprio and from whether the item has moved up;
    the noise follows the seed, as a policy's does. Batch sizes are kept in `batches`.
    """

    def __init__(self, noise: float) -> None:
        self._noise = noise
        self.batches: list[int] = []

    def act(self, observations: Any, *, seed: Any) -> np.ndarray:
        self.batches.append(len(observations))
        return np.stack([self._one(o, s) for o, s in zip(observations, seed, strict=True)])

    def _one(self, observation: dict[str, Any], seed: int) -> np.ndarray:
        pixels = observation["images"][0][0, :2, :2].astype(int)
        place = (pixels[0] * 256 + pixels[1]) / 1000 - 0.5
        place = place + np.random.default_rng(seed).normal(0, self._noise, 2)
        grasp, goal = np.append(place, 0.055), np.array([0.0, 0.26, 0.25])
        chunk = np.zeros((30, 20), np.float32)
        chunk[:, 3:9] = observation["proprio"][3:9]
        holding = observation["proprio"][2] < 0.1
        start = observation["proprio"][:3]
        for k in range(30):
            part = min(1.0, (k + 1) / 20)
            aim = goal if holding else grasp
            chunk[k, :3] = start + part * (aim - start)
            chunk[k, 9] = float(k < 25 if holding else k >= 25)
        return chunk


class LocalPool:
    """The interface of a `WorkerPool` with all hosts in this process: quick, and never crashes."""

    def __init__(self, spec: TaskSpec, num_workers: int, open_env: Any = FakeEnv) -> None:
        self._hosts = [SimulatorHost(spec, open_env) for _ in range(num_workers)]
        self._done: list[tuple[int, Any]] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self._hosts)

    def send(self, index: int, method: str, *arguments: Any) -> None:
        self._done.append((index, getattr(self._hosts[index], method)(*arguments)))

    def wait(self) -> list[tuple[int, Any]]:
        done, self._done = self._done, []
        return done


def crashing_env(
    folder: str, init_state: int, times: int, method: str = "reset", raises: bool = False
) -> Callable[[TaskSpec, int], FakeEnv]:
    """Returns what opens a `CrashingEnv` in a worker."""
    return functools.partial(_open_crashing, folder, init_state, times, method, raises)


def _open_crashing(*crash_and_task: Any) -> FakeEnv:
    *crash, spec, task_id = crash_and_task
    return CrashingEnv(*crash)(spec, task_id)


@dataclasses.dataclass
class CrashingEnv:
    """Breaks in the episodes of one initial state, the first `times` times.

    At `method`; it dies without a word, or raises if `raises`.
    """

    folder: str
    init_state: int
    times: int
    method: str = "reset"
    raises: bool = False

    def __call__(self, spec: TaskSpec, task_id: int) -> FakeEnv:
        crash = self

        class Crashing(FakeEnv):
            def reset(self, init_state: int, seed: int) -> str:
                self.doomed = init_state == crash.init_state
                crash.now("reset", self.doomed)
                return super().reset(init_state, seed)

            def step(self, action: Any) -> bool:
                crash.now("step", self.doomed)
                return super().step(action)

            def observe(self) -> dict[str, Any]:
                crash.now("observe", self.doomed)
                return super().observe()

        return Crashing(spec, task_id)

    def now(self, method: str, doomed: bool) -> None:
        marks = len(list(Path(self.folder).iterdir()))
        if method == self.method and doomed and marks < self.times:
            (Path(self.folder) / str(marks)).touch()
            if self.raises:
                raise ArithmeticError("the bowl fell through the table")
            os._exit(3)


def open_refusing(doomed: Sequence[int], spec: TaskSpec, task_id: int) -> FakeEnv:
    """Opens an environment whose reset to the states `doomed` raises."""

    class Refusing(FakeEnv):
        def reset(self, init_state: int, seed: int) -> str:
            if init_state in doomed:
                raise LookupError(f"no state {init_state}")
            return super().reset(init_state, seed)

    return Refusing(spec, task_id)


class Host:
    """A host for tests of the pool itself."""

    def __init__(self) -> None:
        self.calls = 0

    def double(self, value: int) -> int:
        self.calls += 1
        return 2 * value

    def complain(self) -> None:
        raise ValueError("no such drawer")

    def die(self) -> None:
        os.write(2, b"last words")
        os._exit(9)

    def loaded(self) -> list[str]:
        import sys

        return sorted({name.split(".")[0] for name in sys.modules})

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def pid(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        import time

        time.sleep(60)


def break_at_start() -> Host:
    raise RuntimeError("the simulator is not installed")


def find_no_renderer() -> Host:
    raise preflight.SimulatorSetupError("no renderer here")


class GlHost(SimulatorHost):
    """A real host with a look behind the scenes."""

    def gl_problem(self) -> str:
        try:
            preflight.require_headless_gl()
        except preflight.SimulatorSetupError as problem:
            return str(problem)
        return ""

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        return self._env.pose()

    def beginning(self, spec: TaskSpec, episode: Episode, steps: int) -> list[Any]:
        """Hash, images and way of the hand, which is sent 5 cm aside, of an episode of any row."""
        self._leave()
        self._spec = spec
        seen = self.start(episode)
        assert seen.observation is not None
        row = seen.observation["proprio"].copy()
        row[1] += 0.05
        path = []
        for _ in range(steps):
            self._step(row)
            path.append(self._env.pose()[0])
        return [seen.state_hash, *seen.observation["images"], np.stack(path)]

    def pixels_changed_by_culling(self, episode: Episode) -> list[int]:
        self.start(episode)
        renderer = self._env._renderer
        quick = [self._env.image(view).astype(int) for view in self._spec.client.views]
        assert renderer._may_cull
        renderer._may_cull = False
        unculled = [self._env.image(view) for view in self._spec.client.views]
        renderer._may_cull = True
        return [int(np.abs(a - b).max()) for a, b in zip(quick, unculled, strict=True)]

    def shapes_left_out(self, episode: Episode) -> list[int]:
        self.start(episode)
        sim = self._env._env.sim
        model, data = sim.model._model, sim.data._data
        cameras = [model.camera(view.camera).id for view in self._spec.client.views]
        return [int((~in_view(model, data, camera)).sum()) for camera in cameras]


def host_with_gl(spec: TaskSpec) -> GlHost:
    return GlHost(spec)


EPISODES = [Episode(3, index, 42 + index) for index in range(30, 36)]
