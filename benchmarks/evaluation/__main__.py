"""Measures the cost of an evaluation, and that its results do not depend on how it is run.

``python -m benchmarks.evaluation [--workers=2] [--quick] [--out=FILE.json]``

Needs LIBERO. The yardstick is the loop of LIBERO's published client: one environment that renders
both cameras at every step. Ours renders when a chunk is due, in several processes.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.evaluation.libero_original import OriginalLoop
from benchmarks.evaluation.policies import ReplayPolicy, SleepingEnv, WanderingPolicy
from eval.files import write_json
from eval.runs.rollout import (
    EpisodeResult,
    MeteredPolicy,
    Policy,
    expert_rollout,
    rollout,
    simulator_pool,
)
from eval.runs.traces import CallLog
from eval.simulators.host import SimulatorHost
from eval.simulators.workers import WorkerPool, run_jobs
from eval.tasks.table import TASKS, Episode, TaskSpec, episodes

_WORKERS = flags.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Few and short episodes.")
_OUT = flags.DEFINE_string("out", "outputs/evaluation.json", "Where the figures go.")

# The scripted expert has a plan for this task of the row.
_ROW: Final = TASKS["libero_object"]
_TASK_ID: Final = 3
_FAKES: Final = 8


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table: a measured value, its target if any, and whether that is reached."""

    name: str
    measured: str
    target: str
    reached: bool


def _row(step_limit: int) -> TaskSpec:
    return dataclasses.replace(_ROW, task_ids=(_TASK_ID,), step_limit=step_limit)


def _plan(spec: TaskSpec, count: int) -> list[Episode]:
    return episodes(spec, init_states=range(count), seed=42)


def _timed_rollout(
    spec: TaskSpec, plan: Sequence[Episode], policy: Policy, num_workers: int
) -> tuple[list[EpisodeResult], CallLog, float]:
    """Returns results, calls, and seconds from starting the simulators to the last step."""
    log = CallLog()
    began = time.perf_counter()
    with simulator_pool(spec, num_workers) as pool:
        results = rollout(MeteredPolicy(policy, log.add), spec, plan, pool=pool)
        return results, log, time.perf_counter() - began


def speed(record: dict[str, Any]) -> list[Line]:
    """Measures steps per second against the original's loop, calls per step, and fill with LIBERO.

    Both build a simulator for each episode, and that time counts.
    """
    steps = 60 if _QUICK.value else 300
    spec, workers = _row(steps), _WORKERS.value
    plan = _plan(spec, workers * (1 if _QUICK.value else 2))
    with WorkerPool(functools.partial(OriginalLoop, spec), 1) as pool:
        ((_, (built, stepped)),) = run_jobs(pool, [("run", (plan[0], steps))])
    results, log, seconds = _timed_rollout(spec, plan, WanderingPolicy(), workers)
    made = sum(result.steps for result in results)
    original, ours = steps / (built + stepped), made / seconds
    record["speed"] = {
        "original_steps_per_s": original,
        "original_stepping_only": steps / stepped,
        "ours_steps_per_s": ours,
        "steps": made,
        "seconds": seconds,
        "calls": log.summary(workers),
    }
    fill = sum(log.batches) / (len(log.batches) * workers)
    return [
        Line(
            f"LIBERO steps/s, {workers} workers, episodes of {steps} steps, resets included",
            f"{ours:.1f}; original {original:.1f}: {ours / original:.1f} x",
            "3 x",
            ours >= 3 * original,
        ),
        Line(
            "answers of the policy per step, chunk 30",
            f"{sum(log.batches)} / {made}",
            "1 / 30",
            30 * sum(log.batches) == made,
        ),
        Line(f"batch fill, LIBERO, {workers} workers", f"{fill:.0%}", "", True),
    ]


def fill(record: dict[str, Any]) -> list[Line]:
    """Measures batch fill with environments that sleep as long as simulators work."""
    spec = dataclasses.replace(TASKS["quickstart"], step_limit=150, image_size=8)
    plan = [Episode(_TASK_ID, index, index) for index in range(4 * _FAKES if _QUICK.value else 64)]
    log = CallLog()
    with WorkerPool(functools.partial(SimulatorHost, spec, SleepingEnv), _FAKES) as pool:
        rollout(MeteredPolicy(WanderingPolicy(), log.add), spec, plan, pool=pool)
    made = log.summary(_FAKES)
    record["fill"] = made
    return [
        Line(
            f"batch fill, {_FAKES} environments of uneven pace, {len(plan)} episodes",
            f"{made['batch_fill']:.0%}",
            "80 %",
            made["batch_fill"] >= 0.8,
        )
    ]


def repeatability(record: dict[str, Any]) -> list[Line]:
    """Compares outcomes of one worker and of two; actions depend on seed and every pixel."""
    spec = dataclasses.replace(TASKS["quickstart"], step_limit=60 if _QUICK.value else 150)
    plan = episodes(spec, init_states=range(30, 32 if _QUICK.value else 38), seed=0)

    def outcomes(num_workers: int) -> list[tuple[Any, ...]]:
        results, _, _ = _timed_rollout(spec, plan, WanderingPolicy(), num_workers)
        with simulator_pool(spec, num_workers) as pool:
            results += expert_rollout(spec, plan, pool=pool)
        return [(r.success, r.steps, r.queries, r.state_hash, r.rows.tobytes()) for r in results]

    one, two = outcomes(1), outcomes(2)
    equal = sum(a == b for a, b in zip(one, two, strict=True))
    record["repeatability"] = {"episodes": len(one), "equal": equal}
    return [
        Line(
            "episodes with the same outcome and actions, 1 and 2 workers",
            f"{equal} of {len(one)}",
            "all",
            equal == len(one),
        )
    ]


def replay(record: dict[str, Any]) -> list[Line]:
    """Plays scripted demonstrations back as chunks through the row's own client."""
    count = 2 if _QUICK.value else 10
    spec = dataclasses.replace(_ROW, task_ids=(_TASK_ID,))
    plan = _plan(spec, count)
    with simulator_pool(spec, _WORKERS.value) as pool:
        shown = expert_rollout(spec, plan, pool=pool)
        demonstrations = {result.episode: result.rows for result in shown}
        policy = ReplayPolicy(demonstrations, spec)
        results = rollout(policy, spec, plan, pool=pool)
    made, solved = sum(r.success for r in shown), sum(r.success for r in results)
    record["replay"] = {"demonstrations": made, "replayed": solved, "of": count}
    return [
        Line(
            f"replayed demonstrations that succeed, row {spec.name}",
            f"{solved} of {count} ({made} succeeded when made)",
            f"{count} of {count}",
            solved == count,
        )
    ]


_PARTS: Final[Sequence[Callable[[dict[str, Any]], list[Line]]]] = (
    speed,
    fill,
    repeatability,
    replay,
)


def main(argv: list[str]) -> int:
    """Measures, prints the table and returns 0 if every target is reached, else 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    console, record = Console(), {}
    lines = [line for part in _PARTS for line in part(record)]
    table = Table(title="Evaluation")
    for column in ("what", "measured", "target", "reached"):
        table.add_column(column)
    for line in lines:
        verdict = ("yes" if line.reached else "no") if line.target else ""
        table.add_row(line.name, line.measured, line.target, verdict)
    console.print(table)
    record["lines"] = [dataclasses.asdict(line) for line in lines]
    path = pathlib.Path(_OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return 0 if all(line.reached for line in lines) else 1


if __name__ == "__main__":
    sys.exit(app.run(main))
