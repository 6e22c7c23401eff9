"""One evaluation in parts: the episodes of each shard, and one receipt of all parts."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any, Mapping, Sequence, TypeVar

from eval.files import differences

from .receipt import episode_key, evaluated, task_summaries
from .seal import SEAL, links, sealed
from .traces import CallLog

Item = TypeVar("Item")


# Fields of the config that may differ between the parts of one evaluation.
_OWN = ("shard", "num_workers", "seconds", "command", "merged_from")


class MergeError(RuntimeError):
    """Receipts that are not parts of one evaluation; the message says what does not fit."""


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Returns the part's items: neighbours, as each task needs its own simulator."""
        first = len(items) * (self.index - 1) // self.count
        return list(items[first : len(items) * self.index // self.count])


AUTO = "auto"
_FORMS = "I/N with 1 <= I <= N such as 1/4, auto (SLURM), or auto/N (SLURM, Kubernetes)"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Parses I/N, or takes the index from a scheduler: `auto`, `auto/N`.

    Args:
        text: value of --shard.
        environment: variables of the process. SLURM numbers the jobs of an array and the tasks of
            a step, and counts them; Kubernetes only numbers the pods of an indexed job, from 0.

    Raises:
        ValueError: another form, not 1 <= I <= N, or no scheduler says what is needed.
    """
    word, _, number = text.partition("/")
    if word == AUTO:
        index, count = _scheduled(text, environment)
        if number:
            counted = _number(text, "N", number)
            if count not in (None, counted):
                raise ValueError(f"--shard={text}: the scheduler started {count} of them")
            count = counted
        if count is None:
            raise ValueError(
                f"--shard={text}: Kubernetes says which pod this is (JOB_COMPLETION_INDEX={index}) "
                "and not of how many; write --shard=auto/N with the completions of the job"
            )
        text = f"{index + 1}/{count}"
        word, number = str(index + 1), str(count)
    if not (word.isdecimal() and number.isdecimal() and 1 <= int(word) <= int(number)):
        raise ValueError(f"--shard={text}: allowed is {_FORMS}")
    return Shard(int(word), int(number))


def _scheduled(text: str, environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Returns the index from 0 and the number of shards, None where nobody says it."""

    def value(name: str, absent: str = "0") -> int:
        return _number(text, name, environment.get(name, absent))

    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = value("SLURM_ARRAY_TASK_MIN"), value("SLURM_ARRAY_TASK_STEP", "1") or 1
        count = value("SLURM_ARRAY_TASK_COUNT")
        return (value("SLURM_ARRAY_TASK_ID") - first) // step, count or None
    if value("SLURM_NTASKS", "1") > 1 and "SLURM_PROCID" in environment:
        return value("SLURM_PROCID"), value("SLURM_NTASKS")
    if "JOB_COMPLETION_INDEX" in environment:
        return value("JOB_COMPLETION_INDEX"), None
    raise ValueError(
        f"--shard={text}: none of SLURM_ARRAY_TASK_ID, SLURM_PROCID with SLURM_NTASKS above 1 and "
        f"JOB_COMPLETION_INDEX is set, so no scheduler numbered this process; allowed is {_FORMS}"
    )


def _number(text: str, name: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"--shard={text}: {name} is {value!r}; allowed is 0 or more")
    return int(value)


def merge_receipts(receipts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the receipt that one machine alone would have written.

    Calls keep their order within a part; batch fill is over the workers of all parts. Films stay
    beside the receipts that name them.

    Args:
        receipts: of all shards of one evaluation, in any order; or of several evaluations that
            differ in their initial states alone.

    Raises:
        MergeError: a shard is missing or given twice, the parts are of different policies, rows,
            versions, seeds or renderers, or episodes are missing or double.
    """
    # The same receipt twice is one part: a merge may be repeated with more folders than before.
    receipts = list({receipt[SEAL]: receipt for receipt in receipts}.values())
    if len(receipts) > 1 and all(receipt["config"]["shard"] == [1, 1] for receipt in receipts):
        receipts.sort(key=_init_states)
        _check_disjoint(receipts)
        return _merged(receipts, _joined_plans(receipts))
    receipts.sort(key=lambda receipt: receipt["config"]["shard"])
    _check_shards(receipts)
    plans = {name: task["plan"] for name, task in receipts[0]["tasks"].items()}
    for other in receipts[1:]:
        _check_same(f"shards {_name(receipts[0])} and {_name(other)}", receipts[0], other)
    return _merged(receipts, plans)


def _merged(receipts: Sequence[dict[str, Any]], plans: Mapping[str, list[str]]) -> dict[str, Any]:
    """Returns the receipt of all parts, whose episodes are those of the plans."""
    first = receipts[0]
    config = {
        **first["config"],
        "shard": [1, 1],
        "num_workers": sum(r["config"]["num_workers"] for r in receipts),
        "seconds": max(r["config"]["seconds"] for r in receipts),
        "merged_from": [{**r["config"], SEAL: r[SEAL]} for r in receipts],
    }
    tasks = {name: _merge_task(name, receipts, config, plan) for name, plan in plans.items()}
    return sealed({**first, "config": config, "tasks": tasks})


def _merge_task(
    name: str, receipts: Sequence[dict[str, Any]], config: dict[str, Any], plan: list[str]
) -> dict[str, Any]:
    task = receipts[0]["tasks"][name]
    place = {key: k for k, key in enumerate(plan)}
    policies = {}
    for policy in task["policies"]:
        parts = [receipt["tasks"][name]["policies"][policy] for receipt in receipts]
        episodes = [episode for part in parts for episode in part["episodes"]]
        _check_episodes(f"{policy} on {name}", plan, episodes)
        episodes.sort(key=lambda episode: place[episode_key(episode)])
        policies[policy] = {
            **task_summaries(episodes, task["reference"]),
            "calls": _merge_calls(parts).summary(config["num_workers"]),
            "episodes": episodes,
            "chain": links(evaluated(receipts[0]["policies"][policy], task["row"]), episodes),
        }
    return {**task, "films": [], "plan": plan, "policies": policies}


def _check_disjoint(receipts: Sequence[dict[str, Any]]) -> None:
    """Checks that evaluations differ in their initial states, and in nothing else.

    Raises:
        MergeError: they differ in more, share episodes, or may have stopped early.
    """
    for one, other in itertools.combinations(receipts, 2):
        who = f"the evaluations of initial states {_span(one)} and {_span(other)}"
        _check_same(who, one, other, except_for="plan")
        for name, task in one["tasks"].items():
            shared = sorted({*task["plan"]} & {*other["tasks"][name]["plan"]}, key=_numbers)
            if shared:
                raise MergeError(
                    f"{who} share episodes of {name}: {_listed(shared)}; only those that share "
                    "none are joined, such as --init_states=0:25 and --init_states=25:50"
                )
    for receipt in receipts:
        if any(task["stopping"] for task in receipt["tasks"].values()):
            raise MergeError(
                f"the evaluation of initial states {_span(receipt)} ran with --stop_early, whose "
                "rule looks at all episodes so far; it cannot be joined with others"
            )


def _joined_plans(receipts: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the plan of each row in the order of one evaluation: by task, then by state."""
    plans = {}
    for name in receipts[0]["tasks"]:
        keys = [key for receipt in receipts for key in receipt["tasks"][name]["plan"]]
        tasks = list(dict.fromkeys(_numbers(key)[0] for key in keys))
        plans[name] = sorted(keys, key=lambda k: (tasks.index(_numbers(k)[0]), _numbers(k)[1:]))
    return plans


def _init_states(receipt: Mapping[str, Any]) -> list[int]:
    """Returns the initial states of an evaluation in order."""
    plans = (task["plan"] for task in receipt["tasks"].values())
    return sorted({_numbers(key)[1] for plan in plans for key in plan})


def _span(receipt: Mapping[str, Any]) -> str:
    """Returns the first and the last initial state of an evaluation: "30..54"."""
    states = _init_states(receipt)
    return f"{states[0]}..{states[-1]}" if states else "(none)"


def _numbers(key: str) -> list[int]:
    """Returns task index, initial state and seed of a planned episode."""
    return [int(number) for number in key.split(":")]


def _check_same(who: str, one: dict[str, Any], other: dict[str, Any], except_for: str = "") -> None:
    different = differences(_shared(one, except_for), _shared(other, except_for))
    if different:
        raise MergeError(f"{who} are of different evaluations: {'; '.join(different)}")


def _merge_calls(parts: Sequence[dict[str, Any]]) -> CallLog:
    log = CallLog()
    for part in parts:
        calls = part["calls"]
        log.extend(calls["batches"], calls["milliseconds"], calls["first"])
    return log


def _check_shards(receipts: Sequence[dict[str, Any]]) -> None:
    if not receipts:
        raise MergeError("nothing to merge")
    counts = sorted({receipt["config"]["shard"][1] for receipt in receipts})
    if len(counts) > 1:
        raise MergeError(f"shards of {counts} parts; all must be of one evaluation")
    there = Counter(receipt["config"]["shard"][0] for receipt in receipts)
    missing = [index for index in range(1, counts[0] + 1) if index not in there]
    double = [index for index, times in there.items() if times > 1]
    for problem, indices in (("missing", missing), ("there twice", double)):
        if indices:
            names = ", ".join(f"{index}/{counts[0]}" for index in indices)
            again = repeat_command(receipts[0], f"{indices[0]}/{counts[0]}")
            raise MergeError(f"shards {names} are {problem}; {indices[0]} is made by {again}")


def repeat_command(receipt: Mapping[str, Any], shard: str) -> str:
    """Returns the command of another shard of an evaluation, with a folder of its own."""
    own = ("--shard", "--out")
    kept = [word for word in receipt["config"]["command"] if word.partition("=")[0] not in own]
    folder = f"--out=SHARD_{shard.partition('/')[0]}"
    words = ["python", "-m", "scripts.evaluate", *kept, f"--shard={shard}", folder]
    return " ".join(map(shlex.quote, words))


def _check_episodes(who: str, plan: Sequence[str], episodes: Sequence[dict[str, Any]]) -> None:
    planned, there = set(plan), Counter(episode_key(episode) for episode in episodes)
    for problem, keys in (
        ("missing", [key for key in plan if key not in there]),
        ("there twice", [key for key, times in there.items() if times > 1]),
        ("not planned", [key for key in there if key not in planned]),
    ):
        if keys:
            raise MergeError(f"{who}: episodes {_listed(keys, f'are {problem} ')}")


def _listed(keys: Sequence[str], what: str = "") -> str:
    return f"(task:initial state:seed) {', '.join(keys[:10])} {what}({len(keys)} in all)"


def _shared(receipt: dict[str, Any], except_for: str) -> dict[str, Any]:
    """Returns the parts of a receipt that all parts of an evaluation have in common."""
    return {
        "schema": receipt["schema"],
        "policies": receipt["policies"],
        "versions": receipt["versions"],
        "renderer": receipt["renderer"],
        "git": receipt["git"],
        "config": {k: v for k, v in receipt["config"].items() if k not in _OWN},
        "tasks": {
            name: {
                key: task[key] for key in ("row", "plan", "reference", "texts") if key != except_for
            }
            for name, task in receipt["tasks"].items()
        },
    }


def _name(receipt: dict[str, Any]) -> str:
    return "{}/{}".format(*receipt["config"]["shard"])
