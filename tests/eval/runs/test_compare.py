"""Pairs are the same episodes or there is no comparison."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eval.runs.compare import (
    Comparison,
    PairingError,
    against_control,
    best_policies,
    compare_all,
    compare_runs,
    count_pairs,
    holm,
    only_policy,
    protocol_differences,
    total,
)
from tests.eval.runs.test_receipt import made

A = made(a=[True] * 9 + [False] * 3)
B = made(b=[True] * 4 + [False] * 6 + [True, False])


def changed(receipt: Any, index: int, **values: Any) -> Any:
    copy = json.loads(json.dumps(receipt))
    ((_, entry),) = copy["tasks"]["quickstart"]["policies"].items()
    entry["episodes"][index].update(values)
    return copy


def test_counts_test_and_difference() -> None:
    comparison = compare_runs(A, "a", B, "b")["quickstart"]
    assert comparison == Comparison(both=4, only_first=5, only_second=1, neither=2)
    assert comparison.pairs == 12
    assert comparison.p_value == pytest.approx(2 * (1 + 6) / 64)
    difference, low, high = comparison.difference
    assert difference == pytest.approx(4 / 12)
    assert low < difference < high


def test_order_does_not_matter() -> None:
    other = json.loads(json.dumps(B))
    other["tasks"]["quickstart"]["policies"]["b"]["episodes"].reverse()
    assert compare_runs(A, "a", other, "b") == compare_runs(A, "a", B, "b")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(B, 0, seed=5), r"2 episodes .* of one side only, such as 3:30:172, 3:30:5"),
        (changed(B, 3, state_hash="ff"), r"1 episodes began in different states, such as 3:33:175"),
        ({**B, "tasks": {"libero_goal": {}}}, "no task in common: quickstart and libero_goal"),
    ],
)
def test_other_episodes_are_refused(other: Any, words: str) -> None:
    with pytest.raises(PairingError, match=words):
        compare_runs(A, "a", other, "b")


def test_an_episode_that_never_began_counts_as_failed() -> None:
    crashed = changed(B, 0, success=False, state_hash="", error="died")
    assert compare_runs(A, "a", crashed, "b")["quickstart"].only_first == 6


def test_the_policy_may_go_unnamed_where_there_is_one() -> None:
    assert only_policy(A, "") == "a"
    assert only_policy(A, "a") == "a"
    two = made(a=[True], c=[False])
    for receipt, name in ((two, ""), (A, "z")):
        with pytest.raises(PairingError, match="name one of them"):
            only_policy(receipt, name)


def test_what_else_differs_is_named() -> None:
    assert protocol_differences(A, B) == []
    other = json.loads(json.dumps(B))
    other["versions"]["simulator"]["mujoco"] = "3.1.0"
    other["tasks"]["quickstart"]["row"]["client"]["executed"] = 20
    assert protocol_differences(A, other) == [
        "versions.simulator.mujoco: 3.17.0 against 3.1.0",
        "quickstart.client.executed: 30 against 20",
    ]


def overriding(receipt: Any, column: str, used: int) -> Any:
    copy = json.loads(json.dumps(receipt))
    copy["tasks"]["quickstart"]["row"]["overrides"] = [{"column": column, "own": 30, "used": used}]
    return copy


def test_runs_in_which_a_command_changed_a_column_are_not_paired_unasked() -> None:
    other = overriding(B, "executed", 20)
    for first, second in ((A, other), (overriding(A, "executed", 10), other)):
        with pytest.raises(PairingError, match=r"--executed=20, so .* --across=executed compares"):
            compare_runs(first, "a", second, "b")
        with pytest.raises(PairingError, match="--across=executed"):
            compare_runs(first, "a", second, "b", across=["steps"])
        with pytest.raises(PairingError, match="--across=executed"):
            compare_all({"a": (first, "a"), "b": (second, "b")})
        paired = compare_runs(first, "a", second, "b", across=["executed"])
        assert paired == compare_runs(A, "a", B, "b")
        (pair,) = compare_all({"a": (first, "a"), "b": (second, "b")}, across=["executed"])
        assert pair.counts == paired["quickstart"]
    same = overriding(A, "executed", 20)
    assert compare_runs(same, "a", other, "b") == compare_runs(A, "a", B, "b")
    assert protocol_differences(A, other) == [
        "quickstart.overrides: nothing against [{'column': 'executed', 'own': 30, 'used': 20}]"
    ]


def disturbed(receipt: Any, name: str, successes: list[bool], same_state: bool) -> None:
    """Adds a disturbed row of the same episodes to a receipt."""
    task = json.loads(json.dumps(receipt["tasks"]["quickstart"]))
    task["row"] |= {"control": "quickstart", "disturbance": {"same_state": same_state}}
    for entry in task["policies"].values():
        for episode, success in zip(entry["episodes"], successes, strict=True):
            episode["success"] = success
    receipt["tasks"][name] = task


def test_changed_rows_are_paired_with_their_control_arm() -> None:
    receipt = json.loads(json.dumps(A))
    assert against_control(receipt) == []
    disturbed(receipt, "quickstart:camera2", [True] * 2 + [False] * 10, same_state=True)
    disturbed(receipt, "quickstart:place1", [True] * 10 + [False] * 2, same_state=False)
    for name in "quickstart:camera2", "quickstart:place1":
        receipt["tasks"][name]["policies"]["a"]["episodes"][4]["state_hash"] = "ff"
    camera, place = against_control(receipt)
    assert (camera.row, camera.control, camera.policy) == ("quickstart:camera2", "quickstart", "a")
    assert camera.counts == Comparison(both=2, only_first=0, only_second=7, neither=3)
    assert place.counts == Comparison(both=9, only_first=1, only_second=0, neither=2)
    # the place is meant to change the state, the camera is not
    assert (camera.apart, place.apart) == (1, 0)
    assert camera.adjusted == pytest.approx(2 * camera.counts.p_value)
    assert place.adjusted == 1.0


def test_pairs_add_up() -> None:
    one = count_pairs([(True, True), (True, False), (False, False)])
    assert total([one, one, count_pairs([(False, True)])]) == Comparison(2, 2, 1, 2)


def test_holm() -> None:
    # the smallest of four times 4, the next times 3, and never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_several_policies_are_corrected_for_the_number_of_comparisons() -> None:
    def run(solved: int) -> Any:
        return made(a=[True] * solved + [False] * (12 - solved))

    sides = {"good": (run(12), "a"), "same": (run(11), "a"), "bad": (run(5), "a")}
    pairs = compare_all(sides)
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("good", "same"),
        ("good", "bad"),
        ("same", "bad"),
    ]
    # 7 pairs of one kind: 2 / 2^7; 6: 2 / 2^6; 1: 1
    assert [pair.counts.p_value for pair in pairs] == pytest.approx([1.0, 2 / 128, 2 / 64])
    assert [pair.adjusted for pair in pairs] == pytest.approx([1.0, 6 / 128, 4 / 64])
    assert [pair.better for pair in pairs] == ["", "good", ""]
    assert best_policies(sides, pairs) == ["good", "same"]
