"""Hand tables: chunks of five rows; what is carried out, and what the next query carries."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from eval.client.episode import EpisodeClient, ObservationError
from eval.tasks.profiles import ClientProfile, ProfileError, Slot
from eval.tasks.table import TASKS

PROFILE = TASKS["libero_spatial"].client
CHUNK = np.array([[10 * row + column for column in range(20)] for row in range(5)], np.float32)
RAW: dict[str, Any] = {
    "agentview": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "wrist": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    "ee_pos": np.array([1.0, 2.0, 3.0]),
    "ee_mat": np.eye(3),
}
FIRST = [1, 2, 3, 1, 0, 0, 0, 1, 0, 0, *[0] * 10]


def profile(**change: Any) -> ClientProfile:
    return dataclasses.replace(PROFILE, **{"executed": 5, "feedback": "executed", **change})


def asked(**change: Any) -> EpisodeClient:
    made = EpisodeClient(profile(**change))
    made.instruct("pick up")
    assert made.needs_chunk
    made.request(RAW)
    return made


def taken(made: EpisodeClient) -> list[list[float]]:
    rows = []
    while not made.needs_chunk:
        rows.append(made.take().tolist())
    return rows


@pytest.mark.parametrize(
    ("executed", "stride", "first_numbers"),
    [(5, 1, [0, 10, 20, 30, 40]), (2, 1, [0, 10]), (3, 2, [0, 20, 40]), (2, 3, [0, 30])],
)
def test_which_rows_are_carried_out(executed: int, stride: int, first_numbers: list[float]) -> None:
    made = asked(executed=executed, stride=stride)
    made.put(CHUNK)
    assert made.queued == executed
    assert [row[0] for row in taken(made)] == first_numbers
    assert made.needs_chunk


def test_the_first_query_is_what_door_two_says() -> None:
    made = EpisodeClient(profile())
    made.instruct("pick up")
    seen = made.request(RAW)
    assert seen["proprio"].tolist() == FIRST
    assert seen["proprio"].dtype == np.float32
    assert (seen["instruction"], seen["domain_id"]) == ("pick up", 3)
    np.testing.assert_array_equal(seen["images"][0], RAW["agentview"][::-1, ::-1])
    np.testing.assert_array_equal(seen["images"][1], RAW["wrist"])


@pytest.mark.parametrize(
    ("feedback", "channels", "proprio"),
    [
        ("none", 0, FIRST),
        ("executed", 2, [20, 21, *FIRST[2:]]),
        ("executed", 3, [20, 21, 22, *FIRST[3:]]),
        ("chunk_end", 3, [40, 41, 42, *FIRST[3:]]),
        ("measured", 0, [9, *FIRST[1:]]),
    ],
)
def test_later_queries(feedback: str, channels: int, proprio: list[float]) -> None:
    made = asked(executed=3, feedback=feedback, feedback_channels=channels)
    made.put(CHUNK)
    taken(made)
    moved = {**RAW, "ee_pos": np.array([9.0, 2.0, 3.0])}
    assert made.request(moved)["proprio"].tolist() == proprio


def test_a_commanded_pose_is_the_one_that_the_environment_got() -> None:
    made = asked(feedback="commanded_pose", executed=1)
    row = np.zeros((1, 20))
    row[0, :10] = [7, 8, 9, 0, 2, 0, -3, 0.5, 0, 1]  # a quarter turn about z, badly scaled
    made.put(row)
    taken(made)
    state = made.request({**RAW, "ee_pos": np.array([0.0, 0.0, 0.0])})["proprio"]
    np.testing.assert_allclose(state[:10], [7, 8, 9, 0, 1, 0, -1, 0, 0, 0], atol=1e-7)


def test_offsets_start_from_the_last_commanded_position() -> None:
    """Specification, golden value 9: every second row of 30, ten of them."""
    made = asked(
        feedback="none", executed=10, stride=2, xyz_base=Slot("ee_pos", 0, 3), xyz_base_frame=""
    )
    chunk = np.zeros((30, 20))
    chunk[:, 0] = np.arange(30) * 0.01
    made.reset()
    made.request({**RAW, "ee_pos": np.array([0.5, 0.0, 0.0])})
    made.put(chunk)
    np.testing.assert_allclose([row[0] for row in taken(made)], 0.5 + 0.02 * np.arange(10))
    made.request(RAW)
    made.put(chunk)
    assert made.take()[0] == pytest.approx(0.68)


def test_a_new_episode_forgets_the_last_unless_the_profile_keeps_it() -> None:
    for keeps, proprio in ((False, FIRST), (True, [40, 41, *FIRST[2:]])):
        made = asked(keeps_proprio=keeps, feedback="chunk_end", feedback_channels=2)
        made.put(CHUNK)
        made.take()
        made.reset()
        assert made.needs_chunk
        assert made.request(RAW)["proprio"].tolist() == proprio


@pytest.mark.parametrize(("clears", "left"), [(False, 4), (True, 0)])
def test_a_new_instruction(clears: bool, left: int) -> None:
    made = asked(clears_on_instruction=clears)
    made.put(CHUNK)
    made.take()
    made.instruct("pick up")
    assert made.queued == 4
    made.instruct("put down")
    assert made.queued == left


def test_what_is_no_chunk_is_refused_and_changes_nothing() -> None:
    made = asked(feedback="chunk_end")
    before = made.proprio
    with pytest.raises(ValueError, match="T at least 5"):
        made.put(CHUNK[:4])
    with pytest.raises(ValueError, match=r"must be \[T, 20\]"):
        made.put(CHUNK[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        made.put(CHUNK * np.nan)
    assert made.needs_chunk
    np.testing.assert_array_equal(made.proprio, before)
    made.put(CHUNK)
    with pytest.raises(ValueError, match="still to be done"):
        made.put(CHUNK)
    with pytest.raises(ValueError, match="still to be done"):
        made.request(RAW)


def test_order_of_calls() -> None:
    made = EpisodeClient(profile())
    with pytest.raises(IndexError):
        made.take()
    with pytest.raises(ValueError, match="before any request"):
        made.put(CHUNK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wrist": None}, "has no 'wrist'; it has agentview, ee_mat, ee_pos"),
        ({"wrist": np.zeros((2, 2, 3))}, r"'wrist' from 'wrist' is float64\[2, 2, 3\]"),
        ({"ee_pos": np.zeros(2)}, "'ee_pos' has 2 numbers; 0..2 are needed"),
        ({"ee_pos": np.full(3, np.nan)}, "'ee_pos' has a number that is not finite"),
    ],
)
def test_incomplete_observations_are_refused(change: dict[str, Any], message: str) -> None:
    raw = {k: v for k, v in {**RAW, **change}.items() if v is not None}
    with pytest.raises(ObservationError, match=message):
        EpisodeClient(profile()).request(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": "sometimes"}, "feedback is 'sometimes'; allowed are none, executed"),
        ({"rotation": "rows"}, "rotation is 'rows'; allowed are contiguous, interleaved"),
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"feedback_channels": 21}, r"feedback_channels 21 is not in 0\.\.20"),
    ],
)
def test_columns_have_known_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        profile(**change)
