"""The host inside a simulator's process: one environment, and the commands for it.

A worker (eval/simulators/worker.py) builds a `SimulatorHost` and calls its methods by name. The
host carries out chunks with an `EpisodeClient`, so that the policy's process sees observations and
chunks only.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray

from eval.client.episode import EpisodeClient, proprio, row_to_action, view_images
from eval.pictures import side_by_side
from eval.tasks import profiles, spec
from eval.tasks.spec import Environment, Episode, TaskSpec
from eval.wire import table

from .expert import expert_for
from .preflight import SIMULATORS, SimulatorError, SimulatorSetupError, commits, versions
from .recorder import record_episode, save_episode

# benchmark -> module and class of its adapter, imported when first needed
ADAPTERS: dict[str, tuple[str, str]] = {
    "calvin": ("calvin", "CalvinEnv"),
    "libero": ("libero", "LiberoEnv"),
    "robotwin": ("robotwin", "RobotwinEnv"),
    "simpler": ("simpler", "SimplerEnv"),
    "so101": ("so101", "So101Env"),
    "vlabench": ("vlabench", "VlabenchEnv"),
}
# benchmark whose instructions have a source to note -> module and function that names it
TEXT_SOURCES: dict[str, tuple[str, str]] = {"libero": ("libero", "text_source")}


def open_environment(spec: TaskSpec, task_id: int) -> Environment:
    """Builds the simulator adapter of the row's benchmark.

    Raises:
        ValueError: no adapter for it.
    """
    if spec.benchmark not in ADAPTERS:
        raise ValueError(
            f"no adapter for benchmark {spec.benchmark!r}; eval/simulators/host.py has "
            f"{', '.join(ADAPTERS)}"
        )
    module, name = ADAPTERS[spec.benchmark]
    return getattr(importlib.import_module("." + module, __package__), name)(spec, task_id)


@dataclass(frozen=True)
class Progress:
    """State of an episode after some steps.

    Attributes:
        steps: control steps so far.
        success: True where the task was solved at one of them.
        observation: of door 2, for the next chunk; None when the episode is over.
        state_hash: of the initial state.
        rows: action rows carried out since the last report, float32[n, D], positions absolute.
        score: the adapter's, of the episode so far; None where it has none.
    """

    steps: int
    success: bool
    observation: dict[str, Any] | None
    state_hash: str
    rows: NDArray[np.float32]
    score: float | None


@dataclass(frozen=True)
class Description:
    """Instruction of a task, renderer with its device, and distribution -> version or commit."""

    instruction: str
    renderer: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Replay:
    """A repeated episode.

    Attributes:
        frames: all views side by side, uint8[f, H, W, 3].
        path: measured proprio at each frame, float32[f, D].
        success: True where the task was solved again.
    """

    frames: NDArray[np.uint8]
    path: NDArray[np.float32]
    success: bool


@dataclass(frozen=True)
class Attempt:
    """A complete episode of the scripted expert."""

    instruction: str
    steps: int
    success: bool
    seconds: float
    state_hash: str
    rows: NDArray[np.float32]
    score: float | None


# What a worker and the process that started it send each other beside plain values and arrays.
RECORDS = table(
    *(profiles.View, profiles.Slot, profiles.ArmState, profiles.GripperRule, profiles.ActionForm),
    *(profiles.Joint, profiles.JointForm, profiles.Wire, profiles.ClientProfile),
    *(spec.Reference, spec.Scenario, spec.Disturbance, spec.Override, TaskSpec, Episode),
    *(Progress, Description, Replay, Attempt),
)


def _nothing(_: bool) -> None:
    """Takes the news of a set-up where nobody asks for it."""


@dataclass(frozen=True)
class _Simulating:
    """Turns what the adapter's `method` raises into a `SimulatorError`; a context manager."""

    method: str

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # a machine that cannot run the simulator is another matter, and so is Ctrl-C
        if isinstance(error, Exception) and not isinstance(error, SimulatorSetupError):
            raise SimulatorError(f"{self.method} of the simulator's adapter raised") from error


class SimulatorHost:
    """Holds the environment of one task at a time and runs episodes in it.

    Args:
        spec: protocol of the episodes.
        open_env: builds the environment of a task index; tests put a fake here.

    Attributes:
        on_set_up: called with True before an environment is built and with False once it is, so
            that a crash in between is known as one of the set-up.
    """

    on_set_up: Callable[[bool], None]

    def __init__(
        self, spec: TaskSpec, open_env: Callable[[TaskSpec, int], Any] = open_environment
    ) -> None:
        self.on_set_up = _nothing
        self._spec = spec
        self._open_env = open_env
        self._client = EpisodeClient(spec.client)
        self._env: Any = None
        self._task_id: int | None = None
        self._steps = 0
        self._state_hash = ""

    def describe(self, task_id: int) -> Description:
        """Returns the instruction of a task, the renderer, and the versions of this process."""
        env = self._environment(task_id)
        packages = {**versions((*SIMULATORS, "numpy")), **commits()}
        return Description(env.instruction, env.renderer_name, packages)

    def text_sources(self, task_ids: list[int]) -> dict[str, Any]:
        """Returns the instruction of each task with its source, without building a simulator.

        Empty where the row has one source alone.
        """
        if not self._spec.text_source:
            return {}
        module, name = TEXT_SOURCES[self._spec.benchmark]
        source = getattr(importlib.import_module("." + module, __package__), name)
        with _Simulating("text_sources"):
            return {str(task_id): source(self._spec, task_id) for task_id in task_ids}

    def start(self, episode: Episode) -> Progress:
        """Resets to the episode's initial state and asks for the first chunk."""
        env = self._reset(episode)
        self._client.reset()
        self._client.instruct(env.instruction)
        return self._report(success=False, over=False, rows=[])

    def start_undisturbed(self, episode: Episode) -> Progress:
        """Starts an episode of the row without its disturbance, whose first frame is stored.

        The next command builds the environment of the row itself again.
        """
        own = self._spec
        self._leave()
        self._spec = dataclasses.replace(own, disturbance=None)
        try:
            return self.start(episode)
        finally:
            self._leave()
            self._spec = own

    def advance(self, chunk: NDArray[np.float32]) -> Progress:
        """Carries out a chunk [T, D] as the row says, and renders only for the next query.

        Raises:
            ValueError: the chunk does not fit the row, see `EpisodeClient.put`.
        """
        self._client.put(chunk)
        rows: list[NDArray[np.float32]] = []
        success = over = False
        while not over and not self._client.needs_chunk:
            rows.append(self._client.take())
            success = self._step(rows[-1])
            self._steps += 1
            over = success or self._env.failed or self._steps >= self._limit()
            self._client.instruct(self._env.instruction)
        return self._report(success=success, over=over, rows=rows)

    def attempt_by_expert(self, episode: Episode) -> Attempt:
        """Runs one episode of the scripted expert, without excursions and without images."""
        began = time.monotonic()
        env = self._reset(episode)
        scene = env.scene()
        expert = expert_for(self._spec, episode, scene, wander=0.0)
        rows: list[NDArray[np.float32]] = []
        success = False
        while not success and len(rows) < self._spec.step_limit:
            rows.append(env.policy_row(expert.act(scene)))
            success = self._step(rows[-1])
            scene = env.scene()
        seconds = time.monotonic() - began
        return Attempt(
            instruction=env.instruction,
            steps=len(rows),
            success=success,
            seconds=seconds,
            state_hash=self._state_hash,
            rows=np.stack(rows),
            score=self._score(),
        )

    def replay(self, episode: Episode, rows: NDArray[np.float32], every: int) -> Replay:
        """Repeats action rows [n, D] and films them.

        The first frame comes before and the last after all rows, the others are `every` control
        steps apart.
        """
        self._reset(episode)
        observations = []
        success = False
        for step, row in enumerate(rows):
            if step % every == 0:
                observations.append(self._observe())
            success = self._step(row) or success
        observations.append(self._observe())
        return Replay(
            frames=np.stack(
                [side_by_side(view_images(self._spec.client, raw)) for raw in observations]
            ),
            path=np.stack([proprio(self._spec.client, raw) for raw in observations]).astype(
                np.float32
            ),
            success=success,
        )

    def record(self, episode: Episode, wander: float, rate_hz: float, path: str) -> dict[str, Any]:
        """Records one demonstration; a successful one is saved at `path`."""
        env = self._environment(episode.task_id)
        recording = record_episode(env, self._spec, episode, wander=wander, rate_hz=rate_hz)
        if recording["success"]:
            save_episode(path, recording)
        return {"success": recording["success"], "frames": len(recording["action"])}

    def _limit(self) -> int:
        """Control steps of an episode; the row's limit is that of one of its parts."""
        return self._spec.step_limit * self._env.num_parts

    def _report(self, *, success: bool, over: bool, rows: list[NDArray[np.float32]]) -> Progress:
        return Progress(
            steps=self._steps,
            success=success,
            observation=None if over else self._client.request(self._observe()),
            state_hash=self._state_hash,
            rows=np.stack(rows) if rows else np.zeros((0, self._spec.client.action_width), "f4"),
            score=self._score(),
        )

    def _reset(self, episode: Episode) -> Any:
        env = self._environment(episode.task_id)
        with _Simulating("reset"):
            self._state_hash = env.reset(episode.init_state, episode.seed)
        self._steps = 0
        return env

    def _step(self, row: NDArray[np.float32]) -> bool:
        action = row_to_action(self._spec.client, row)
        with _Simulating("step"):
            return self._env.step(action)

    def _score(self) -> float | None:
        with _Simulating("score"):
            return self._env.score()

    def _observe(self) -> dict[str, Any]:
        with _Simulating("observe"):
            return self._env.observe()

    def _environment(self, task_id: int) -> Any:
        if self._task_id != task_id:
            self._leave()
            self.on_set_up(True)
            with _Simulating("set-up"):
                self._env = self._open_env(self._spec, task_id)
            self._task_id = task_id
            self.on_set_up(False)
        return self._env

    def _leave(self) -> None:
        """Closes the environment, if there is one."""
        if self._env is not None:
            self._env.close()
        self._env, self._task_id = None, None
