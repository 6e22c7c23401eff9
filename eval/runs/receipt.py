"""The receipt of an evaluation: policies, rows, versions and how each episode ended.

`receipt` makes it from what was run, `read_receipt` reads one that anybody may have written. Its
form is receipt.schema.json; docs/receipts.md explains the fields.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from eval.files import OBJECT, FileError, Form, check, parse_json, read_bytes
from eval.tasks.spec import Episode, TaskSpec, row_values

from .binomial import success_interval
from .rollout import EpisodeResult
from .seal import SEAL, broken_link, links, seal_of, sealed
from .statistics import episodes_to_separate, mean_interval
from .traces import CallLog

SCHEMA = 5
RESULTS = "results.json"
FORM: Form = json.loads(Path(__file__).with_name("receipt.schema.json").read_text(encoding="utf-8"))
EPISODE_FORM: Form = FORM["$defs"]["episode"]


@dataclass(frozen=True)
class TaskRun:
    """Episodes and calls of one row of the task table.

    Attributes:
        spec: the row.
        plan: all episodes of the evaluation, those of other shards too.
        golden_frame: as `eval.runs.golden_frame.Verdict.to_dict` gives it.
        episodes: policy -> records, see `episode_record`.
        calls: policy -> calls; the scripted expert has none.
        stopping: how an early stop was decided, None where all of the plan was run.
        films: filmed episodes, as `eval.runs.evaluation` notes them.
        texts: task index as text -> instruction and its source, where the benchmark has several.
    """

    spec: TaskSpec
    plan: Sequence[Episode]
    golden_frame: Mapping[str, Any]
    episodes: Mapping[str, Sequence[dict[str, Any]]]
    calls: Mapping[str, CallLog]
    stopping: Mapping[str, Any] | None = None
    films: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
    """Returns what `episode_key` gives for the record of a planned episode."""
    return f"{episode.task_id}:{episode.init_state}:{episode.seed}"


def summary(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns successes of episode records, rate, its exact 95 % interval, and mean score."""
    successes = sum(episode["success"] for episode in episodes)
    steps = [episode["steps"] for episode in episodes if episode["success"]]
    at_end = [e["success_at_end"] for e in episodes if e["success_at_end"] is not None]
    return {
        "episodes": len(episodes),
        "successes": successes,
        "rate": successes / len(episodes) if episodes else None,
        "interval95": list(success_interval(successes, len(episodes))),
        "mean_steps_to_success": float(np.mean(steps)) if steps else None,
        "successes_at_end": sum(at_end) if at_end else None,
        "score": _mean_score(episodes),
        "simulator_errors": sum(episode["error"] is not None for episode in episodes),
    }


def _mean_score(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the mean score and its 95 % interval, or None where no episode has a score."""
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
    """Returns the summary of all episodes, that of each task, and `episodes_to_separate`.

    That is how many episodes each of two policies needs, one with the measured and one with the
    reference rate, before a test at a level of 5 % separates them with 80 % power. It is None where
    the rates are equal, or the reference is another score.
    """
    total = summary(episodes)
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for episode in episodes:
        by_task.setdefault(str(episode["task_id"]), []).append(episode)
    made = {
        "summary": total,
        "by_task": {
            task_id: {"task": _instruction(group), **summary(group)}
            for task_id, group in sorted(by_task.items(), key=lambda item: int(item[0]))
        },
        "episodes_to_separate": None,
    }
    published = None if reference is None else reference["rate"]
    if published is not None and total["rate"] is not None:
        made["episodes_to_separate"] = episodes_to_separate(total["rate"], published)
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
    """Returns an evaluation as plain values.

    Args:
        tasks: what was run, row by row.
        policies: name -> kind, source, hash of the parameters and contract.
        config: how it was run: shard [i, n], seed, num_workers, seconds, command and options.
        versions: "simulator" and "policy" process -> distribution -> version.
        renderer: OpenGL renderer of the simulators.
        git: revision of the checkout and whether it had changes, None outside of git.
    """
    made = {
        "schema": SCHEMA,
        "config": dict(config),
        "policies": {name: dict(identity) for name, identity in policies.items()},
        "versions": {process: dict(packages) for process, packages in versions.items()},
        "renderer": renderer,
        "git": None if git is None else dict(git),
        "tasks": {run.spec.name: _task(run, policies, config["num_workers"]) for run in tasks},
    }
    # Through JSON, so that a receipt equals itself read back: tuples are lists there.
    return sealed(json.loads(json.dumps(made)))


def read_receipt(path: Path) -> dict[str, Any]:
    """Reads a receipt, or the one in a folder.

    Raises:
        FileError: the file is not there, is no receipt, or one of another schema.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        content = read_bytes(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read as a receipt: {error}") from None
    return parse_receipt(content, str(path))


def parse_receipt(content: bytes, where: str) -> dict[str, Any]:
    """Parses a receipt; `where` names it in messages.

    Raises:
        FileError: it is no receipt, or one of another schema.
    """
    value = parse_json(content, OBJECT, where)
    # Before the form, as that of another version would name many fields and miss the point.
    if value.get("schema") != SCHEMA:
        raise FileError(
            f"{where} has receipt schema {value.get('schema')}; this version reads {SCHEMA}. "
            "Evaluate again, or read it with the version that wrote it"
        )
    check(value, FORM, where)
    for name, task in value["tasks"].items():
        if set(task["policies"]) != set(value["policies"]):
            raise FileError(
                f"{where}: tasks.{name}.policies has {', '.join(task['policies'])}; allowed are "
                f"those of policies, {', '.join(value['policies'])}"
            )
    _check_hashes(value, where)
    for name, task in value["tasks"].items():
        for policy, entry in task["policies"].items():
            entry_place = f"{where}: tasks.{name}.policies.{policy}"
            problem = wrong_text(task["texts"], entry["episodes"])
            if problem:
                raise FileError(f"{entry_place}: {problem}; evaluate again")
            _derive(entry, task["reference"], value["config"]["num_workers"], entry_place)
    return value


def evaluated(identity: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the chain of a policy's episodes begins with: the policy, and the row."""
    return {"policy": identity, "row": row}


def _check_hashes(value: Mapping[str, Any], where: str) -> None:
    """Refuses a receipt that was changed after it was written, and names the first episode."""
    for name, task in value["tasks"].items():
        for policy, entry in task["policies"].items():
            begun = evaluated(value["policies"][policy], task["row"])
            place = broken_link(begun, entry["episodes"], entry["chain"])
            if place is not None:
                raise FileError(
                    f"{where}: tasks.{name}.policies.{policy}.episodes.{place} does not fit its "
                    "link in chain: episodes, policy or row were changed after the evaluation; "
                    "take the file as it was written, or evaluate again"
                )
    if value[SEAL] != seal_of(value):
        raise FileError(
            f"{where}: seal is {value[SEAL]}; allowed is {seal_of(value)}, that of the content: it "
            "was changed after the evaluation; take the file as it was written, or evaluate again"
        )


def _derive(entry: dict[str, Any], reference: Any, num_workers: int, where: str) -> None:
    """Replaces stored summaries, so that they agree with the episodes and calls beside them."""
    calls = entry["calls"]
    if len({len(calls[key]) for key in ("batches", "milliseconds", "first")}) > 1:
        raise FileError(
            f"{where}.calls has lists of different lengths; allowed is an entry for each call"
        )
    log = CallLog(calls["batches"], calls["milliseconds"], calls["first"])
    entry.update(task_summaries(entry["episodes"], reference), calls=log.summary(num_workers))


def wrong_text(
    texts: Mapping[str, Mapping[str, Any]], episodes: Sequence[Mapping[str, Any]]
) -> str:
    """Returns how the text of an episode differs from the one of its source, "" where none does."""
    for episode in episodes:
        source = texts.get(str(episode["task_id"]))
        if source is not None and episode["task"] not in ("", source["text"]):
            return (
                f"episode {episode_key(episode)} was given the text {episode['task']!r}; that of "
                f"its {source['source']} ({source['file']}) is {source['text']!r}"
            )
    return ""


def _instruction(episodes: Sequence[Mapping[str, Any]]) -> str:
    """Returns the instruction that the policy got; an episode that never began has none."""
    return next((episode["task"] for episode in episodes if episode["task"]), "")


def _published(spec: TaskSpec) -> dict[str, Any] | None:
    """Returns the row's first published result, with its rate in [0, 1] where it is a rate."""
    if not spec.reference:
        return None
    first = spec.reference[0]
    return {
        "value": first.value,
        "unit": first.unit,
        "source": first.source,
        "rate": first.rate,
    }


def _task(
    run: TaskRun, policies: Mapping[str, Mapping[str, Any]], num_workers: int
) -> dict[str, Any]:
    reference, row = _published(run.spec), row_values(run.spec)
    return {
        "row": row,
        "reference": reference,
        "golden_frame": dict(run.golden_frame),
        "stopping": None if run.stopping is None else dict(run.stopping),
        "films": [dict(film) for film in run.films],
        "texts": {task_id: dict(source) for task_id, source in run.texts.items()},
        "plan": [plan_key(episode) for episode in run.plan],
        "policies": {
            name: {
                **task_summaries(episodes, reference),
                "calls": run.calls.get(name, CallLog()).summary(num_workers),
                "episodes": list(episodes),
                "chain": links(evaluated(policies[name], row), episodes),
            }
            for name, episodes in run.episodes.items()
        },
    }
