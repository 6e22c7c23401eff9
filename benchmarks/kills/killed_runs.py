"""Training runs that are killed at random moments, and what they lose."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from benchmarks.data.recordings import Scene
from benchmarks.kills.run_state import different, newest_step
from data.rows.table import dataset
from data.writing.recorded import write_dataset
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.training.telemetry import all_lines

SAVE_EVERY: Final = 20  # config.save_every: steps that may be lost; a save starts every 10
_STEPS_A_KILL: Final = 20  # trained at most from one kill to the next, on average
_LIMIT_S: Final = 600  # for one start to get anywhere
_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Outcome:
    """Results of one run that was killed over and over."""

    name: str
    lost: list[int] = dataclasses.field(default_factory=list)  # steps, for each kill
    moments: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)  # last words of failed starts
    differences: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class KilledRun:
    """A run of ``iters`` steps in a workdir, started as often as necessary."""

    def __init__(self, folder: pathlib.Path, name: str, iters: int) -> None:
        """``folder`` holds the data and what was compiled."""
        self.workdir = folder / name
        self._log = folder / f"{name}.log"
        self._command = [
            *(sys.executable, "-m", "scripts.train", "--config=configs/debug.py"),
            "--config.from_scratch=True",
            *(f"--workdir={self.workdir}", f"--config.data.root={folder / 'demos'}"),
            *(f"--config.optimizer.iters={iters}", f"--config.save_every={SAVE_EVERY}"),
        ]
        self._environ = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    @property
    def steps(self) -> int:
        """The last step that any process completed and logged."""
        lines = all_lines(self.workdir)
        return lines[-1]["step"] if lines else 0

    @property
    def lines(self) -> int:
        """Number of lines that all processes have logged."""
        return len(all_lines(self.workdir))

    @property
    def saving(self) -> bool:
        """True while a checkpoint is being written."""
        folder = self.workdir / CHECKPOINTS
        return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())

    def start(self) -> subprocess.Popen[bytes]:
        """Starts one more process with the same command."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, cwd=_ROOT, env=self._environ, stdout=log, stderr=log
            )

    def finish(self) -> None:
        """Trains to the end.

        Raises:
            RuntimeError: the process failed.
        """
        if self.start().wait() != 0:
            raise RuntimeError(f"{self.workdir.name}: {self.last_words()}")

    def last_words(self) -> str:
        """Returns the last line that was printed."""
        return self._log.read_text(errors="replace").strip().rpartition("\n")[2]


def _wait(
    process: subprocess.Popen[bytes], happened: Callable[[], bool], every_s: float = 0.1
) -> bool:
    """Waits until something has happened; False if the process ended before."""
    deadline = time.monotonic() + _LIMIT_S
    while not happened():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            return False
        time.sleep(every_s)
    return True


def _moment(
    run: KilledRun, process: subprocess.Popen[bytes], number: signal.Signals, rng: random.Random
) -> str | None:
    """Waits for a random moment; its name, or None if the process ended before."""
    kinds = ["between saves", "between saves", "while saving"]
    kind = rng.choice([*kinds, "before the first step"] if number == signal.SIGKILL else kinds)
    if kind == "before the first step":
        time.sleep(rng.uniform(0, 20))
        return kind if process.poll() is None else None
    lines = run.lines + (rng.randint(1, 2 * SAVE_EVERY) if kind == "between saves" else 1)
    if not _wait(process, lambda: run.lines >= lines):
        return None
    if kind == "while saving":
        if not _wait(process, lambda: run.saving, every_s=0.01):
            return None
        time.sleep(rng.uniform(0, 0.2))
    else:
        time.sleep(rng.uniform(0, 0.5))
    return kind


def kill_often(
    run: KilledRun,
    number: signal.Signals,
    kills: int,
    rng: random.Random,
    report: Callable[[str], None],
) -> Outcome:
    """Kills a run ``kills`` times, then lets it finish; ``report`` takes a line for each kill."""
    outcome, began = Outcome(number.name), time.monotonic()
    while len(outcome.lost) < kills and len(outcome.failures) < kills:
        logged = run.lines
        process = run.start()
        moment = _moment(run, process, number, rng)
        if moment is not None:
            process.send_signal(number)
        status = process.wait()
        expected = 0 if number == signal.SIGTERM else -number
        if moment is None or status != expected:
            outcome.failures.append(f"status {status}: {run.last_words()}")
            continue
        trained = run.lines > logged  # else the steps after the checkpoint were lost before
        outcome.lost.append(max(run.steps - newest_step(run.workdir), 0) if trained else 0)
        outcome.moments.append(moment)
        report(
            f"{number.name} {len(outcome.lost)}/{kills} {moment}: at step {run.steps}, "
            f"lost {outcome.lost[-1]}, {time.monotonic() - began:.0f} s"
        )
    run.finish()
    outcome.seconds = time.monotonic() - began
    return outcome


def write_demos(folder: pathlib.Path) -> None:
    """Writes three generated demonstrations in RLDS."""
    frames, size = 20, 32
    made = folder / "episodes"
    made.mkdir(parents=True)
    paths = [made / f"{number}.npz" for number in range(3)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        command = np.cumsum(rng.normal(0, 0.01, (frames, 10)), axis=0).astype(np.float32)
        command[:, 3:9] = (1, 0, 0, 0, 1, 0)
        command[:, 9] = np.where(np.arange(frames) < frames // 2, -1, 1)
        scenes = {
            view: Scene(size, 10 * number + i) for i, view in enumerate(("agentview", "wrist"))
        }
        recorded: dict[str, Any] = {
            view: np.stack([scene.frame(frame) for frame in range(frames)])
            for view, scene in scenes.items()
        }
        recorded |= {
            "command_pose": command,
            "ee_pose": command[:, :9],
            "action": np.concatenate((command[:, :6], command[:, 9:]), axis=1),
            "instruction": "pick up the soup",
            "task": "soup",
            "suite": "libero_object",
            "init_state": number,
            "seed": number,
            "success": True,
            "rate_hz": dataset("libero_demos").rate_hz,
            "image_size": size,
        }
        np.savez(path, **recorded)
    write_dataset(
        paths,
        folder / "demos",
        name="libero_demos",
        licence="CC0-1.0",
        command="kills",
        receipt={},
        on_episode=lambda _: None,
    )


def measure(
    folder: pathlib.Path, kills: int, seed: int, report: Callable[[str], None]
) -> list[Outcome]:
    """Trains the straight run, then both killed ones side by side."""
    shutil.rmtree(folder, ignore_errors=True)
    write_demos(folder)
    iters = _STEPS_A_KILL * kills + 2 * SAVE_EVERY
    straight = KilledRun(folder, "straight", iters)
    straight.finish()
    report(f"{iters} steps without a kill")
    numbers = (signal.SIGTERM, signal.SIGKILL)
    runs = [KilledRun(folder, number.name, iters) for number in numbers]
    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [
            pool.submit(kill_often, run, number, kills, random.Random(f"{seed}/{number}"), report)
            for run, number in zip(runs, numbers, strict=True)
        ]
        outcomes = [future.result() for future in futures]
    for run, outcome in zip(runs, outcomes, strict=True):
        outcome.differences = different(run.workdir, straight.workdir)
    return outcomes
