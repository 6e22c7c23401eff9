"""An interrupted evaluation's journal: what survives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.runs.journal import Journal, JournalError
from eval.runs.traces import CallLog
from tests.eval.runs.test_receipt import records

IDENTITY = {"policies": {"a": "hash 1"}, "seed": 0, "views": ("agentview", "wrist")}


def record(index: int) -> dict[str, Any]:
    return records([True] * 3)[index]


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
    complete = path.read_bytes()
    path.write_bytes(complete[:-7])
    with Journal(path, IDENTITY) as journal:
        assert journal.episodes == {("a", "t"): [record(0)]}
        journal.add_episode("a", "t", record(1))
    assert path.read_bytes() == complete


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
    with pytest.raises(JournalError, match="--restart starts a new one"):
        Journal(path, IDENTITY)
    assert path.read_text() == content


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_line_is_refused(number: int, tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY) as journal:
        journal.add_episode("a", "t", record(0))
        journal.add_episode("a", "t", record(1))
    lines = path.read_text().splitlines(keepends=True)
    lines[number] = lines[number].replace("172", "9").replace("173", "9").replace("wrist", "side")
    for changed in (lines, lines[:1] + lines[2:] if number else [lines[1], lines[0], lines[2]]):
        path.write_text("".join(changed))
        with pytest.raises(JournalError, match="--restart starts a new one"):
            Journal(path, IDENTITY)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with Journal(path, IDENTITY), pytest.raises(JournalError, match="by another process"):
        Journal(path, IDENTITY)
    with Journal(path, IDENTITY):
        pass
