"""Shards merge into one evaluation, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eval.runs.evaluation import Task
from eval.runs.receipt import parse_receipt
from eval.runs.seal import sealed
from eval.runs.shards import MergeError, Shard, merge_receipts, parse_shard
from eval.tasks.spec import Episode
from tests.eval.evaluations import EXPERT, NOISE, SPEC, contestant, episodes, evaluate
from tests.eval.runs.test_receipt import SCHEMA_FILE

KEPT = ("summary", "by_task", "episodes_to_separate")
POLICIES = ("a", "b", "script")


def run(out: Path, **changes: Any) -> Any:
    return evaluate(out, contestant("a", NOISE), contestant("b", 0.0), EXPERT, **changes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Receipts of three machines with 1, 2 and 3 simulators."""
    out = tmp_path_factory.mktemp("parts")
    return [run(out / str(k), shard=Shard(k, 3), num_workers=k) for k in (1, 2, 3)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("whole"))


def test_shards_together_are_one_evaluation(parts: list[Any], alone: Any) -> None:
    merged = merge_receipts([parts[2], parts[0], parts[1]])
    jsonschema.validate(merged, json.loads(SCHEMA_FILE.read_text()))
    for policy in POLICIES:
        assert episodes(merged, policy) == episodes(alone, policy)
        ours, theirs = (r["tasks"]["quickstart"]["policies"][policy] for r in (merged, alone))
        assert {k: ours[k] for k in KEPT} == {k: theirs[k] for k in KEPT}
    calls = merged["tasks"]["quickstart"]["policies"]["b"]["calls"]
    assert calls["observations"] == 24
    assert merged["config"]["shard"] == [1, 1]
    assert merged["config"]["num_workers"] == 6


def test_missing_and_double_shards_are_named(parts: list[Any], alone: Any) -> None:
    with pytest.raises(MergeError, match=r"shards 2/3 are missing; 2 is made by .* --shard=2/3"):
        merge_receipts([parts[0], parts[2]])
    other = sealed({**parts[0], "renderer": "another machine"})
    with pytest.raises(MergeError, match="shards 1/3 are there twice"):
        merge_receipts([*parts, other])
    assert merge_receipts([*parts, parts[0]]) == merge_receipts(parts)
    with pytest.raises(MergeError, match=r"shards of \[1, 3\] parts"):
        merge_receipts([*parts, alone])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            ("policies", "a", "hash"),
            "ff",
            r"shards 1/3 and 2/3 .*policies\.a\.hash: ab12 against ff",
        ),
        (("versions", "simulator", "numpy"), "0", r"versions\.simulator\.numpy"),
        (("renderer",), "GPU", "renderer: fake renderer against GPU"),
        (("config", "seed"), 5, r"config\.seed: 0 against 5"),
        (("tasks", "quickstart", "row", "step_limit"), 9, r"row\.step_limit: 150 against 9"),
    ],
)
def test_shards_of_different_evaluations_are_refused_by_name(
    parts: list[Any], path: tuple[str, ...], value: Any, words: str
) -> None:
    with pytest.raises(MergeError, match=words):
        merge_receipts([parts[0], spoiled(parts[1], path, value), parts[2]])


def test_missing_and_double_episodes_are_named(parts: list[Any]) -> None:
    path = ("tasks", "quickstart", "policies", "b", "episodes")
    there = parts[1]["tasks"]["quickstart"]["policies"]["b"]["episodes"]
    for change, words in (
        (there[1:], r"b on quickstart: episodes .*3:34:76 are missing \(1 in all\)"),
        ([*there, there[0]], "3:34:76 are there twice"),
        ([*there, {**there[0], "init_state": 7}], "3:7:76 are not planned"),
    ):
        with pytest.raises(MergeError, match=words):
            merge_receipts([parts[0], spoiled(parts[1], path, change), parts[2]])


def part_of(out: Path, states: range, **changes: Any) -> Any:
    """The receipt of two tasks and some of their initial states."""
    plan = [Episode(task, state, 42 + state) for task in (3, 1) for state in states]
    contestants = contestant("a", NOISE), contestant("b", 0.0)
    return evaluate(out, *contestants, task=Task(SPEC, plan), **changes)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Receipts of initial state 32 with films, of 30 and 31, of all these, and of 33."""
    out = tmp_path_factory.mktemp("halves")
    filmed = part_of(out / "films", range(32, 33), film="a")
    others = (range(30, 32), range(30, 33), range(33, 34))
    return [filmed, *(part_of(out / str(k), states) for k, states in enumerate(others))]


def test_evaluations_of_other_initial_states_are_joined(halves: list[Any]) -> None:
    *parts, together, more = halves
    joined = merge_receipts(parts)
    assert joined == parse_receipt(json.dumps(joined).encode(), "joined")
    ours, theirs = (receipt["tasks"]["quickstart"] for receipt in (joined, together))
    assert ours["plan"] == theirs["plan"]
    for policy in ("a", "b"):
        assert episodes(joined, policy) == episodes(together, policy)
        mine, other = (task["policies"][policy] for task in (ours, theirs))
        assert {k: mine[k] for k in KEPT} == {k: other[k] for k in KEPT}
        assert mine["calls"]["observations"] == other["calls"]["observations"]
    seals = [part["seal"] for part in joined["config"]["merged_from"]]
    assert seals == [parts[1]["seal"], parts[0]["seal"]]
    # films stay beside the receipts that name them
    assert parts[0]["tasks"]["quickstart"]["films"]
    assert ours["films"] == []
    # a receipt may be named twice, and a joined one is joined with more
    assert merge_receipts([*parts, parts[0]]) == joined
    grown = merge_receipts([joined, more])["tasks"]["quickstart"]["plan"]
    assert grown == [f"{task}:{state}:{42 + state}" for task in (3, 1) for state in range(30, 34)]


def test_evaluations_that_share_episodes_are_refused_by_name(halves: list[Any]) -> None:
    words = (
        r"initial states 30\.\.31 and 30\.\.32 share episodes of quickstart: \(task:initial "
        r"state:seed\) 1:30:72, 1:31:73, .* \(4 in all\)"
    )
    with pytest.raises(MergeError, match=words):
        merge_receipts(halves[1:3])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("policies", "a", "hash"), "ff", r"30\.\.31 and 32\.\.32 are of .*hash: ff against ab12"),
        (("config", "seed"), 5, r"config\.seed: 5 against 0"),
        (("tasks", "quickstart", "row", "step_limit"), 9, r"row\.step_limit: 9 against 150"),
        (("tasks", "quickstart", "stopping"), {"decided": True}, r"30\.\.31 .*--stop_early"),
        (("tasks", "quickstart", "plan"), ["3:30:72", "3:99:1"], "3:99:1 are missing"),
    ],
)
def test_other_evaluations_are_not_joined(
    halves: list[Any], path: tuple[str, ...], value: Any, words: str
) -> None:
    with pytest.raises(MergeError, match=words):
        merge_receipts([halves[0], spoiled(halves[1], path, value)])


def spoiled(receipt: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(receipt))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return sealed(copy)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12, 20])
def test_shards_share_everything_once(count: int) -> None:
    shares = [Shard(index, count).share(range(12)) for index in range(1, count + 1)]
    assert [item for share in shares for item in share] == list(range(12))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", ""])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= I <= N"):
        parse_shard(text, {})
    assert parse_shard("2/4", {}) == Shard(2, 4)


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
}
STEP = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5"}
POD = {"JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("auto", ARRAY, Shard(3, 4)),
        ("auto/4", ARRAY, Shard(3, 4)),
        ("auto", STEP, Shard(6, 8)),
        ("auto/3", POD, Shard(1, 3)),
        ("1/2", ARRAY, Shard(1, 2)),
    ],
)
def test_the_scheduler_says_which_shard(
    text: str, environment: dict[str, str], shard: Shard
) -> None:
    assert parse_shard(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("auto", {}, "none of SLURM_ARRAY_TASK_ID.*JOB_COMPLETION_INDEX is set"),
        ("auto", POD, r"JOB_COMPLETION_INDEX=0.*--shard=auto/N"),
        ("auto/5", ARRAY, "the scheduler started 4"),
        ("auto/0", POD, "1 <= I <= N"),
        ("auto/x", POD, "N is 'x'; allowed is 0 or more"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "?"}, "SLURM_ARRAY_TASK_ID is '?'"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "--shard=3/2: allowed is I/N"),
    ],
)
def test_a_scheduler_that_does_not_say_it_is_refused(
    text: str, environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        parse_shard(text, environment)
