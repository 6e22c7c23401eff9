"""One evaluation on several machines: the episodes of each shard, and one receipt of all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Sequence, TypeVar

from eval.files import differences

from .receipt import episode_key, task_summaries
from .traces import CallLog

Item = TypeVar("Item")


# Fields of the config that may differ between the machines of one evaluation.
_OWN = ("shard", "num_workers", "seconds", "command")


class MergeError(RuntimeError):
    """Receipts that are not the shards of one evaluation; the message says what does not fit."""


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Returns the part's items: neighbours, as each task needs its own simulator."""
        first = len(items) * (self.index - 1) // self.count
        return list(items[first : len(items) * self.index // self.count])


def parse_shard(text: str) -> Shard:
    """Parses I/N.

    Raises:
        ValueError: another form, or not 1 <= I <= N.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard={text}: I/N with 1 <= I <= N is expected, such as 1/4")
    return Shard(int(index), int(count))


def merge_receipts(receipts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the receipt that one machine alone would have written.

    Calls keep their order within a shard; batch fill is over the workers of all shards.

    Args:
        receipts: of all shards of one evaluation, in any order.

    Raises:
        MergeError: a shard is missing or given twice, or the shards are of different policies,
            rows, versions, seeds or renderers, or episodes are missing or double.
    """
    receipts = sorted(receipts, key=lambda receipt: receipt["config"]["shard"])
    _check_shards(receipts)
    first = receipts[0]
    for other in receipts[1:]:
        different = differences(_shared(first), _shared(other))
        if different:
            raise MergeError(
                f"shards {_name(first)} and {_name(other)} are of different evaluations: "
                f"{'; '.join(different)}"
            )
    config = {
        **first["config"],
        "shard": [1, 1],
        "num_workers": sum(r["config"]["num_workers"] for r in receipts),
        "seconds": max(r["config"]["seconds"] for r in receipts),
        "merged_from": [r["config"] for r in receipts],
    }
    tasks = {name: _merge_task(name, receipts, config) for name in first["tasks"]}
    return {**first, "config": config, "tasks": tasks}


def _merge_task(
    name: str, receipts: Sequence[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    task = receipts[0]["tasks"][name]
    policies = {}
    for policy in task["policies"]:
        parts = [receipt["tasks"][name]["policies"][policy] for receipt in receipts]
        episodes = [episode for part in parts for episode in part["episodes"]]
        _check_episodes(f"{policy} on {name}", task["plan"], episodes)
        policies[policy] = {
            **task_summaries(episodes, task["reference"]),
            "calls": _merge_calls(parts).summary(config["num_workers"]),
            "episodes": episodes,
        }
    return {**task, "policies": policies}


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
            raise MergeError(f"shards {names} are {problem}")


def _check_episodes(who: str, plan: Sequence[str], episodes: Sequence[dict[str, Any]]) -> None:
    planned, there = set(plan), Counter(episode_key(episode) for episode in episodes)
    for problem, keys in (
        ("missing", [key for key in plan if key not in there]),
        ("there twice", [key for key, times in there.items() if times > 1]),
        ("not planned", [key for key in there if key not in planned]),
    ):
        if keys:
            raise MergeError(
                f"{who}: episodes (task:initial state:seed) {', '.join(keys[:10])} are {problem}"
                f" ({len(keys)} in all)"
            )


def _shared(receipt: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts of a receipt that all shards of an evaluation have in common."""
    return {
        "schema": receipt["schema"],
        "policies": receipt["policies"],
        "versions": receipt["versions"],
        "renderer": receipt["renderer"],
        "git": receipt["git"],
        "config": {k: v for k, v in receipt["config"].items() if k not in _OWN},
        "tasks": {
            name: {key: task[key] for key in ("row", "plan", "reference")}
            for name, task in receipt["tasks"].items()
        },
    }


def _name(receipt: dict[str, Any]) -> str:
    return "{}/{}".format(*receipt["config"]["shard"])
