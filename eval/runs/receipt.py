"""The receipt of an evaluation: what was run, on what, and how each episode ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from eval.runs.rollout import CallLog
from eval.tasks.spec import Episode, TaskSpec

from .rollout import EpisodeResult
from .statistics import episodes_to_separate, mean_interval, wilson_interval

SCHEMA = 4
RESULTS = "results.json"


class ReceiptError(RuntimeError):
    """A file that is no receipt of this version; the message says what it is."""


@dataclass(frozen=True)
class TaskRun:
    """What was done for one row of the task table.

    Attributes:
        spec: the row.
        plan: all episodes of the evaluation, those of other shards too.
        golden_frame: as `eval.runs.golden_frame.Verdict.to_dict` gives it.
        episodes: policy -> records, see `episode_record`.
        calls: policy -> calls; the scripted expert has none.
        stopping: how an early stop was decided, None where all of the plan was run.
        films: filmed episodes, as `eval.runs.evaluation` notes them.
    """

    spec: TaskSpec
    plan: Sequence[Episode]
    golden_frame: Mapping[str, Any]
    episodes: Mapping[str, Sequence[dict[str, Any]]]
    calls: Mapping[str, CallLog]
    stopping: Mapping[str, Any] | None = None
    films: Sequence[Mapping[str, Any]] = ()


def episode_record(result: EpisodeResult, suite: str) -> dict[str, Any]:
    """An episode as plain values."""
    return {
        "suite": suite,
        "task_id": result.episode.task_id,
        "task": result.instruction,
        "init_state": result.episode.init_state,
        "seed": result.episode.seed,
        "state_hash": result.state_hash,
        "success": bool(result.success),
        "success_at_end": result.success_at_end,
        "score": result.score,
        "steps": result.steps,
        "queries": result.queries,
        "seconds": round(result.seconds, 2),
        "error": result.error,
    }


def episode_key(record: Mapping[str, Any]) -> str:
    """Task index, initial state and seed of an episode's record: "3:30:130"."""
    return f"{record['task_id']}:{record['init_state']}:{record['seed']}"


def plan_key(episode: Episode) -> str:
    """As `episode_key`."""
    return f"{episode.task_id}:{episode.init_state}:{episode.seed}"


def summary(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Successes of episode records, rate and its Wilson 95 % interval; the same of their scores."""
    successes = sum(episode["success"] for episode in episodes)
    steps = [episode["steps"] for episode in episodes if episode["success"]]
    at_end = [e["success_at_end"] for e in episodes if e["success_at_end"] is not None]
    return {
        "episodes": len(episodes),
        "successes": successes,
        "rate": successes / len(episodes) if episodes else None,
        "wilson95": list(wilson_interval(successes, len(episodes))),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
        "successes_at_end": sum(at_end) if at_end else None,
        "score": _mean_score(episodes),
        "simulator_errors": sum(episode["error"] is not None for episode in episodes),
    }


def _mean_score(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean and its 95 % interval; None where no episode has a score."""
    scores = [episode["score"] for episode in episodes if episode["score"] is not None]
    if not scores:
        return None
    return {
        "mean": float(np.mean(scores)),
        "bootstrap95": list(mean_interval(scores)),
    }


def task_summaries(
    episodes: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Summary of all episodes, of those of each task, and how far the reference is.

    `episodes_to_separate` is how many episodes each of two policies with the found and the
    reference rate would need to be told apart with 80 % power at a level of 5 %; None where they
    are equal, or the reference is another score.
    """
    whole = summary(episodes)
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for episode in episodes:
        by_task.setdefault(str(episode["task_id"]), []).append(episode)
    made = {
        "summary": whole,
        "by_task": {
            task_id: {"task": _instruction(group), **summary(group)}
            for task_id, group in sorted(by_task.items(), key=lambda item: int(item[0]))
        },
        "episodes_to_separate": None,
    }
    published = None if reference is None else reference["rate"]
    if published is not None and whole["rate"] is not None:
        made["episodes_to_separate"] = episodes_to_separate(whole["rate"], published)
    return made


def receipt(
    tasks: Sequence[TaskRun],
    *,
    policies: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    renderer: str,
    git: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All of an evaluation as plain values.

    Args:
        tasks: what was done, row by row.
        policies: name -> kind, source, hash of the parameters and contract.
        config: how it was run: shard [i, n], seed, num_workers, seconds, command and options.
        versions: "simulator" and "policy" process -> distribution -> version.
        renderer: OpenGL renderer of the simulators.
        git: revision of the checkout and whether it had changes, None outside of git.
    """
    return {
        "schema": SCHEMA,
        "config": dict(config),
        "policies": {name: dict(identity) for name, identity in policies.items()},
        "versions": {process: dict(found) for process, found in versions.items()},
        "renderer": renderer,
        "git": None if git is None else dict(git),
        "tasks": {run.spec.name: _task(run, config["num_workers"]) for run in tasks},
    }


def read_receipt(path: Path) -> dict[str, Any]:
    """Reads a receipt that `receipt` made, or the one in a folder.

    Raises:
        ReceiptError: the file is not there, is no receipt, or one of another schema.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReceiptError(f"{path} cannot be read as a receipt: {error}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ReceiptError(
            f"{path} has receipt schema {schema}; this version reads {SCHEMA}. Evaluate again, or "
            "read it with the version that wrote it"
        )
    return found


def _instruction(episodes: Sequence[Mapping[str, Any]]) -> str:
    """What the policy was told; an episode that never began does not say."""
    return next((episode["task"] for episode in episodes if episode["task"]), "")


def _published(spec: TaskSpec) -> dict[str, Any] | None:
    """The row's first published result, and as a rate in [0, 1] where it is one."""
    if not spec.reference:
        return None
    first = spec.reference[0]
    return {
        "value": first.value,
        "unit": first.unit,
        "source": first.source,
        "rate": first.rate,
    }


def _task(run: TaskRun, num_workers: int) -> dict[str, Any]:
    reference = _published(run.spec)
    return {
        # Through JSON, so that a receipt equals itself read back: tuples are lists there.
        "row": json.loads(json.dumps(asdict(run.spec))),
        "reference": reference,
        "golden_frame": dict(run.golden_frame),
        "stopping": None if run.stopping is None else dict(run.stopping),
        "films": [dict(film) for film in run.films],
        "plan": [plan_key(episode) for episode in run.plan],
        "policies": {
            name: {
                **task_summaries(episodes, reference),
                "calls": run.calls.get(name, CallLog()).summary(num_workers),
                "episodes": list(episodes),
            }
            for name, episodes in run.episodes.items()
        },
    }
