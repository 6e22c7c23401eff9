"""Hand tables: chunks of five rows, three numbers each."""

from __future__ import annotations

import numpy as np
import pytest

from eval.chunking import ChunkExecutor

CHUNK = np.array([[10 * row + column for column in range(3)] for row in range(5)], np.float32)


def executor(*, executed: int = 5, stride: int = 1, feedback: int = 2) -> ChunkExecutor:
    made = ChunkExecutor(executed=executed, stride=stride, feedback_channels=feedback)
    made.reset([1.0, 2.0, 3.0])
    return made


def taken(made: ChunkExecutor) -> list[list[float]]:
    rows = []
    while not made.needs_chunk:
        rows.append(made.take().tolist())
    return rows


@pytest.mark.parametrize(
    ("executed", "stride", "first_numbers"),
    [(5, 1, [0, 10, 20, 30, 40]), (2, 1, [0, 10]), (3, 2, [0, 20, 40]), (2, 3, [0, 30])],
)
def test_which_rows_are_carried_out(executed: int, stride: int, first_numbers: list[float]) -> None:
    made = executor(executed=executed, stride=stride)
    assert made.needs_chunk
    made.put(CHUNK)
    assert [row[0] for row in taken(made)] == first_numbers
    assert made.needs_chunk


def test_the_first_query_has_the_measured_proprio() -> None:
    assert executor().proprio.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("feedback", "proprio"), [(0, [1, 2, 3]), (2, [20, 21, 3]), (3, [20, 21, 22])]
)
def test_later_queries_have_the_last_executed_row(feedback: int, proprio: list[float]) -> None:
    made = executor(executed=3, feedback=feedback)
    made.put(CHUNK)
    taken(made)
    assert made.proprio.tolist() == proprio


def test_a_new_episode_forgets_the_last() -> None:
    made = executor()
    made.put(CHUNK)
    made.take()
    made.reset([7.0, 8.0, 9.0])
    assert made.needs_chunk
    assert made.proprio.tolist() == [7, 8, 9]


def test_what_is_no_chunk_is_refused() -> None:
    made = executor()
    with pytest.raises(ValueError, match="T at least 5"):
        made.put(CHUNK[:4])
    with pytest.raises(ValueError, match=r"must be \[T, 3\]"):
        made.put(CHUNK[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        made.put(CHUNK * np.nan)
    made.put(CHUNK)
    with pytest.raises(ValueError, match="still to be done"):
        made.put(CHUNK)


def test_taking_from_an_empty_queue_is_an_error() -> None:
    with pytest.raises(IndexError):
        executor().take()


def test_the_callers_array_is_not_touched() -> None:
    measured = np.array([1.0, 2.0, 3.0], np.float32)
    made = ChunkExecutor(executed=1, stride=1, feedback_channels=3)
    made.reset(measured)
    made.put(CHUNK)
    made.take()
    assert measured.tolist() == [1, 2, 3]
