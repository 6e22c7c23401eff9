"""An interrupted evaluation's journal: what survives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.files import differences
from eval.runs.journal import Journal, JournalError
from eval.runs.rollout import CallLog, MeteredPolicy
from eval.simulators.host import SimulatorHost
from tests.eval import fakes

IDENTITY = {"policies": {"a": "hash 1"}, "seed": 0, "views": ("agentview", "wrist")}


def record(index: int) -> dict[str, object]:
    return {"init_state": index, "success": True}


def test_episodes_and_calls_come_back(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.add_episode("a", "t", record(0))
        journal.add_call("a", "t", 2, 12.345, True)
        journal.add_episode("b", "t", record(1))
    with Journal(path, IDENTITY) as journal:
        assert journal.episodes == {("a", "t"): [record(0)], ("b", "t"): [record(1)]}
        assert journal.calls == {("a", "t"): CallLog([2], [12.3], [True])}
        assert not journal.is_new
        journal.add_episode("a", "t", record(2))
        assert journal.episodes["a", "t"] == [record(0), record(2)]
    assert len(path.read_text().splitlines()) == 5


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.add_episode("a", "t", record(0))
        journal.add_episode("a", "t", record(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with Journal(path, IDENTITY) as journal:
        assert journal.episodes == {("a", "t"): [record(0)]}
        journal.add_episode("a", "t", record(1))
    assert path.read_bytes() == whole


def test_a_cut_first_line_is_a_new_start(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"identity": {"se')
    with Journal(path, IDENTITY) as journal:
        assert journal.episodes == {}
        assert journal.is_new
    assert json.loads(path.read_text())["identity"]["seed"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policies": {"a": "hash 2"}}, r"policies\.a: hash 1 against hash 2"),
        ({"seed": 5}, "seed: 0 against 5"),
        ({"views": ("wrist", "agentview")}, "views: .*against"),
        ({"renderer": "x"}, "renderer: nothing against x"),
    ],
)
def test_another_evaluation_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY):
        pass
    with pytest.raises(JournalError, match=words):
        Journal(path, {**IDENTITY, **change})


@pytest.mark.parametrize("content", ['{"identity": 1}\n{"a"\n', '{"episode": 1}\n'])
def test_damage_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(content)
    with pytest.raises(JournalError, match="--restart starts anew"):
        Journal(path, IDENTITY)
    assert path.read_text() == content


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY), pytest.raises(JournalError, match="by another process"):
        Journal(path, IDENTITY)
    with Journal(path, IDENTITY):
        pass


def test_differences_are_named_by_their_path() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == [
        "a.c: 2 against 3",
        "a.d: nothing against 4",
    ]


def test_calls_are_timed_and_counted() -> None:
    log = CallLog()
    metered = MeteredPolicy(fakes.SightPolicy(0.0), log.add)
    observation = (
        SimulatorHost(fakes.SPEC, fakes.FakeEnv).start(fakes.EPISODES[0]).observation or {}
    )
    for batch in (2, 4, 4, 4):
        chunks = metered.act([observation] * batch, seed=[0] * batch)
        assert chunks.shape == (batch, 30, 20)
    made = log.summary(num_workers=4)
    assert (made["calls"], made["observations"], made["batch_fill"]) == (4, 14, 0.875)
    assert made["batches"] == [2, 4, 4, 4]
    assert made["first"] == [True, True, False, False]
    assert made["latency_ms"]["p50"] == pytest.approx(sum(made["milliseconds"][2:]) / 2)
    assert CallLog().summary(4)["batch_fill"] is None


def test_a_first_call_that_compiles_is_not_in_the_percentiles() -> None:
    log = CallLog([1, 1, 1], [9000.0, 10.0, 20.0], [True, False, False])
    assert log.summary(1)["latency_ms"] == pytest.approx({"p50": 15.0, "p90": 19.0, "p99": 19.9})
