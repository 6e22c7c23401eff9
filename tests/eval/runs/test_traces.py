"""Traces of episodes, read back and drawn at their places; times of calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.client.episode import EpisodeClient
from eval.files import FileError
from eval.runs.rollout import MeteredPolicy
from eval.runs.traces import CallLog, Trace, load_trace, save_trace
from eval.simulators.host import SimulatorHost
from eval.tasks.table import TASKS, Episode
from tests.eval import fakes

GOOGLE = next(spec for spec in TASKS.values() if spec.client.xyz_base is not None)


def relative_episode(queries: int) -> tuple[Trace, list[np.ndarray]]:
    """An episode of a row with relative positions, and where the client was before each answer."""
    client, rng = EpisodeClient(GOOGLE.client), np.random.default_rng(0)
    client.reset()
    client.instruct("open the drawer")
    identity = np.array([0.0, 0, 0, 1, 0, 0, 0])
    raw = {
        **{view.source: np.zeros((8, 8, 3), np.uint8) for view in GOOGLE.client.views},
        "tcp_pose": np.array([0.4, 0.1, 0.9, 1, 0, 0, 0]),
        "base_pose": identity,
    }
    rows, chunks, asked_at, bases = [], [], [], []
    for _ in range(queries):
        client.request(raw)
        base = client.xyz_base
        assert base is not None
        bases.append(base)
        chunks.append(rng.normal(0, 0.01, (30, GOOGLE.client.action_width)).astype(np.float32))
        asked_at.append(len(rows))
        client.put(chunks[-1])
        while not client.needs_chunk:
            rows.append(client.take())
    trace = Trace(
        episode=Episode(0, 0, 0),
        success=False,
        rows=np.stack(rows),
        chunks=np.stack(chunks),
        asked_at=np.array(asked_at),
        path=np.zeros((2, 20), np.float32),
    )
    return trace, bases


def test_relative_answers_are_placed_where_the_client_put_them() -> None:
    trace, bases = relative_episode(3)
    placed = trace.placed()
    for chunk, moved, base in zip(trace.chunks, placed.chunks, bases, strict=True):
        np.testing.assert_allclose(moved[:, :3], chunk[:, :3] + base, atol=1e-6)
        np.testing.assert_array_equal(moved[:, 3:], chunk[:, 3:])
    np.testing.assert_array_equal(placed.path, trace.rows)


def test_an_answer_that_was_not_begun_has_no_place() -> None:
    trace, _ = relative_episode(2)
    cut = Trace(
        trace.episode,
        trace.success,
        trace.rows[: trace.asked_at[1]],
        trace.chunks,
        trace.asked_at,
        trace.path,
    )
    assert len(cut.placed().chunks) == 1


def test_a_trace_comes_back_from_its_file(tmp_path: Path) -> None:
    trace, _ = relative_episode(1)
    save_trace(tmp_path / "a.npz", trace)
    read = load_trace(tmp_path / "a.npz")
    assert (read.episode, read.success) == (trace.episode, trace.success)
    for name in ("rows", "chunks", "asked_at", "path"):
        np.testing.assert_array_equal(getattr(read, name), getattr(trace, name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": np.zeros((1, 30, 3), np.float32)}, r"chunks are \[1, 30, 3\]"),
        ({"chunks": np.zeros((1, 0, 20), np.float32)}, "of at least one row"),
        ({"asked_at": np.array([0, 1])}, "each chunk the step of its query"),
        ({"rows": np.full((30, 20), np.nan, np.float32)}, "rows is float32.*finite"),
        ({"path": np.array(["x"])}, "path is <U1"),
        ({"episode": np.arange(2)}, "an episode has 3 numbers"),
        ({"rows": None}, "rows is not a file in the archive"),
        ({"success": np.array([object()])}, "pickle"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    trace, _ = relative_episode(1)
    save_trace(tmp_path / "a.npz", trace)
    arrays = {**np.load(tmp_path / "a.npz"), **changes}
    np.savez(tmp_path / "b.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(FileError, match=rf"b\.npz: .*{words}"):
        load_trace(tmp_path / "b.npz")


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    trace, _ = relative_episode(1)
    save_trace(tmp_path / "a.npz", trace)
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (
        b"",
        b"x" * 99,
        content[: len(content) // 2],
        content[:300] + bytes(60) + content[360:],
    ):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(FileError, match=r"a\.npz"):
            load_trace(tmp_path / "a.npz")


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
