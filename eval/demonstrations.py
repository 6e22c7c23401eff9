"""A folder of recorded demonstrations that can be left off and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

from .receipt import versions, write_json
from .rollout import OnProgress
from .tasks import TRAINING_STATES, Episode, TaskSpec
from .workers import WorkerCrashError, WorkerPool, run_jobs

LEDGER = "recording.json"

# Seeds of two recordings do not overlap as long as each has fewer episodes than this.
_SEED_STRIDE = 100_000


def plan(spec: TaskSpec, *, num_episodes: int, seed: int) -> list[Episode]:
    """Episodes to record: training states only, in turn, with a seed each.

    The seed draws the expert's excursions, so several episodes from one state differ.
    """
    tasks, states = spec.task_ids, TRAINING_STATES
    return [
        Episode(
            task_id=tasks[k % len(tasks)],
            init_state=states[k // len(tasks) % len(states)],
            seed=seed * _SEED_STRIDE + k,
        )
        for k in range(num_episodes)
    ]


def episode_file(folder: Path, index: int) -> Path:
    """Where demonstration `index` is, once it is recorded."""
    return folder / f"episode_{index:05d}.npz"


def record(
    folder: Path,
    spec: TaskSpec,
    *,
    num_episodes: int,
    wander: float,
    rate_hz: float,
    seed: int,
    open_pool: Callable[[], WorkerPool],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Records the demonstrations that `folder` lacks; successful ones become files.

    Args:
        folder: made if missing. Its `recording.json` is the ledger: settings, failures, versions.
        spec: task to record.
        num_episodes: how many to try in all; a larger number extends a recording.
        wander: see `eval.expert.ScriptedExpert`, in metres.
        rate_hz: frames in a second of simulation.
        seed: of the whole recording.
        open_pool: starts the simulators; not called when nothing is missing.
        on_progress: called with (tried, in all, successful), first for what is there already.

    Returns:
        The ledger.

    Raises:
        ValueError: the folder has a recording with other settings.
    """
    settings = {
        "task": spec.name,
        "seed": seed,
        "wander": wander,
        "rate_hz": rate_hz,
        "image_size": spec.image_size,
        "msaa_samples": spec.msaa_samples,
        "states": "official initial states "
        f"{TRAINING_STATES[0]}..{TRAINING_STATES[-1]}; the others are held out for evaluation",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        leftover.unlink()
    episodes = plan(spec, num_episodes=num_episodes, seed=seed)
    failures = _known_failures(folder, settings)
    missing = [
        k for k in range(num_episodes) if not episode_file(folder, k).exists() and k not in failures
    ]

    def ledger() -> dict[str, Any]:
        recorded = [k for k in range(num_episodes) if episode_file(folder, k).exists()]
        failed = {str(k): failures[k] for k in sorted(failures) if k < num_episodes}
        return {
            "settings": settings,
            "tried": len(recorded) + len(failed),
            "recorded": len(recorded),
            "failed": len(failed),
            "failures": failed,
            "versions": versions(),
        }

    def report() -> None:
        now = ledger()
        on_progress(now["tried"], num_episodes, now["recorded"])

    write_json(folder / LEDGER, ledger())
    report()
    if missing:
        jobs = [
            ("record", (episodes[k], wander, rate_hz, str(episode_file(folder, k))))
            for k in missing
        ]
        with open_pool() as pool:
            for job, outcome in run_jobs(pool, jobs):
                k = missing[job]
                if isinstance(outcome, WorkerCrashError):
                    failures[k] = str(outcome)
                elif not outcome["success"]:
                    failures[k] = "the expert did not solve the task"
                if k in failures:
                    write_json(folder / LEDGER, ledger())
                report()
    write_json(folder / LEDGER, ledger())
    return ledger()


def _known_failures(folder: Path, settings: dict[str, Any]) -> dict[int, str]:
    path = folder / LEDGER
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in settings if before["settings"].get(name) != settings[name]]
    if differ:
        changes = ", ".join(
            f"{name} {before['settings'].get(name)!r} (now {settings[name]!r})" for name in differ
        )
        raise ValueError(
            f"{folder} has a recording with {changes}; choose another folder or delete this one"
        )
    return {int(k): reason for k, reason in before["failures"].items()}
