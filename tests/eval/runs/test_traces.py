"""Traces of episodes: what is kept, and answers that are offsets brought to their places."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eval.client.episode import EpisodeClient
from eval.runs.rollout import Trace, load_trace, save_trace
from eval.tasks.table import TASKS, Episode

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
    found = load_trace(tmp_path / "a.npz")
    assert (found.episode, found.success) == (trace.episode, trace.success)
    for name in ("rows", "chunks", "asked_at", "path"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trace, name))
