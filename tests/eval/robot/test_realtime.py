"""Chunks in overlap: which row of which chunk is carried out when, in numbers of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eval.robot.realtime import STRATEGIES, ChunkStream, Timing, ensembled
from eval.rotations import ROT6D_LAYOUTS, axis_angle_to_matrix, matrix_to_axis_angle

TIMING = Timing(
    horizon=4, stride=1, feedback_channels=9, rotation_layout="contiguous", arms=()
)  # fmt: skip


def stream(name: str, **changes: Any) -> ChunkStream:
    timing = Timing(**{**vars(TIMING), **changes})
    stream = ChunkStream(STRATEGIES[name], timing, relative_channels=())
    stream.reset(np.zeros(20))
    return stream


def chunk(first: float, rows: int = 10) -> np.ndarray:
    """Rows full of first, first + 1, ..."""
    return np.tile(first + np.arange(rows, dtype=np.float32)[:, None], (1, 20))


def taken(one: ChunkStream, count: int) -> list[float | None]:
    rows = [one.take() for _ in range(count)]
    return [None if row is None else float(row[0]) for row in rows]


def test_blocking_waits_and_leaves_nothing_out() -> None:
    one = stream("blocking")
    one.query({})
    one.answer(chunk(100))
    assert taken(one, 4) == [100, 101, 102, 103]
    assert one.wants_query
    one.query({})
    assert taken(one, 2) == [None, None]
    one.answer(chunk(200))
    assert taken(one, 5) == [200, 201, 202, 203, None]


def test_actions_that_were_carried_out_meanwhile_are_dropped() -> None:
    one = stream("switch")
    assert one.wants_query
    one.query({})
    assert taken(one, 3) == [None] * 3  # nothing to carry out, so nothing is dropped
    one.answer(chunk(100))
    assert taken(one, 4) == [100, 101, 102, 103]
    assert one.expected_delay == 0
    one.query({})
    assert not one.wants_query
    assert taken(one, 3) == [104, 105, 106]
    one.answer(chunk(200))
    assert one.expected_delay == 3
    assert taken(one, 1) == [203]


def test_a_pause_in_mid_query_moves_nothing() -> None:
    """Ten rows, asked after four, so six are left: four steps of holding do not count."""
    one = stream("switch")
    one.query({})
    one.answer(chunk(100))
    taken(one, 4)
    one.query({})
    assert taken(one, 10) == [104, 105, 106, 107, 108, 109, None, None, None, None]
    one.answer(chunk(200))
    assert one.expected_delay == 6
    assert taken(one, 2) == [206, 207]


def test_the_expected_delay_is_the_largest_of_the_last_ten() -> None:
    one = stream("switch", horizon=1, first_delay=5)
    assert one.expected_delay == 5
    one.query({})
    one.answer(chunk(0))
    expected = []
    for delay in (6, *[2] * 10):
        one.query({})
        taken(one, delay)
        one.answer(chunk(0))
        expected.append(one.expected_delay)
    assert expected == [6] * 10 + [2]


def test_the_prefix_is_what_is_left_of_the_last_chunk() -> None:
    one = stream("inpaint", first_delay=2)
    assert "prefix" not in one.query({"instruction": "push"})
    one.answer(chunk(100))
    for row in (one.take() for _ in range(4)):
        assert row is not None
        one.carried_out(row)
    asked = one.query({"instruction": "push"})
    assert asked["instruction"] == "push"
    assert asked["prefix"][:, 0].tolist() == [104, 105, 106, 107, 108, 109]
    assert asked["prefix_committed"] == 2
    assert asked["proprio"].tolist() == [103.0] * 9 + [0.0] * 11
    taken(one, 3)
    one.answer(chunk(104))
    assert taken(one, 1) == [107]
    taken(one, 3)
    assert one.query({})["prefix_committed"] == 3


def test_a_policy_that_knows_delays_is_sent_the_committed_rows_alone() -> None:
    one = stream("trained", first_delay=2)
    first = one.query({})
    assert first["prefix_mode"] == "trained"
    assert "prefix" not in first
    one.answer(chunk(100))
    taken(one, 4)
    asked = one.query({})
    assert asked["prefix"][:, 0].tolist() == [104, 105]
    assert (asked["prefix_committed"], asked["prefix_mode"]) == (2, "trained")
    with pytest.raises(ValueError, match="use a strategy without a prefix"):
        ChunkStream(STRATEGIES["trained"], TIMING, relative_channels=(0,))


def test_stride_counts_rows_in_the_prefix_and_actions_in_the_delay() -> None:
    one = stream("inpaint", stride=2, horizon=3, first_delay=1)
    one.query({})
    one.answer(chunk(100))
    assert taken(one, 3) == [100, 102, 104]
    asked = one.query({})
    assert asked["prefix"][:, 0].tolist() == [106, 107, 108, 109]
    assert asked["prefix_committed"] == 2
    assert taken(one, 1) == [106]
    one.answer(chunk(106))
    assert taken(one, 1) == [108]


def test_ensembling_weighs_the_oldest_most() -> None:
    rows = [np.zeros((20,), np.float32), np.ones((20,), np.float32), np.ones((20,), np.float32)]
    for row in rows:
        row[3:9] = ROT6D_LAYOUTS["contiguous"].from_matrix(np.eye(3))
    timing = Timing(**{**vars(TIMING), "arms": (0,), "decay": float(np.log(2))})
    mean = ensembled(rows, timing)
    np.testing.assert_allclose(mean[[0, 9]], 3 / 7, rtol=1e-6)  # weights 4/7, 2/7, 1/7
    np.testing.assert_allclose(mean[10:], 3 / 7, rtol=1e-6)


@pytest.mark.parametrize("layout", sorted(ROT6D_LAYOUTS))
def test_the_mean_of_rotations_is_a_rotation(layout: str) -> None:
    rows = []
    for angle in (0.0, 1.0):
        row = np.zeros(20, np.float32)
        row[3:9] = ROT6D_LAYOUTS[layout].from_matrix(axis_angle_to_matrix((0, 0, angle)))
        rows.append(row)
    timing = Timing(**{**vars(TIMING), "arms": (0,), "decay": 0.0, "rotation_layout": layout})
    matrix = ROT6D_LAYOUTS[layout].to_matrix(ensembled(rows, timing)[3:9])
    np.testing.assert_allclose(matrix_to_axis_angle(matrix), (0, 0, 0.5), atol=1e-6)
    opposite = rows[0].copy()
    opposite[3:9] *= -1
    np.testing.assert_array_equal(ensembled([rows[0], opposite], timing)[3:9], opposite[3:9])


def test_chunks_that_ended_no_longer_speak() -> None:
    one = stream("ensemble", horizon=1, decay=0.0, arms=(), feedback_channels=0)
    one.query({})
    one.answer(chunk(0, rows=3))
    one.query({})
    assert taken(one, 2) == [0, 1]
    one.answer(chunk(10, rows=4))
    assert taken(one, 3) == [(2 + 12) / 2, 13, None]


def test_a_failed_query_may_be_asked_again() -> None:
    one = stream("switch")
    one.query({})
    with pytest.raises(RuntimeError, match="pending already"):
        one.query({})
    one.abandon()
    assert one.wants_query
    with pytest.raises(RuntimeError, match="without a query"):
        one.answer(chunk(0))
    one.query({})
    one.answer(chunk(0))
    one.drop()
    assert taken(one, 1) == [None]
    assert one.wants_query


@pytest.mark.parametrize("rows", [np.zeros((10, 7)), np.full((10, 20), np.inf), np.zeros((3, 20))])
def test_a_chunk_that_cannot_be_carried_out(rows: np.ndarray) -> None:
    one = stream("switch")
    one.query({})
    with pytest.raises(ValueError, match="chunk"):
        one.answer(rows)


def test_nothing_goes_on_from_relative_channels() -> None:
    with pytest.raises(ValueError, match=r"channels \(0, 1, 2\) are relative"):
        ChunkStream(STRATEGIES["inpaint"], TIMING, relative_channels=(0, 1, 2))
    ChunkStream(STRATEGIES["switch"], TIMING, relative_channels=(0, 1, 2))
    with pytest.raises(ValueError, match="horizon 0"):
        Timing(**{**vars(TIMING), "horizon": 0})
