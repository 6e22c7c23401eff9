"""Rows against policies, data and observations that do not fit them; grippers; silence."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from data.rows.contracts import contracts_of
from data.rows.table import dataset
from eval.client.episode import EpisodeClient, ObservationError
from eval.tasks.profiles import GripperRule, ProfileError
from eval.tasks.table import TASKS, task_contract, task_spec
from xvla_jax.contract import Contract, check_contract
from xvla_jax.errors import ContractError


def contract(name: str, **change: Any) -> Contract:
    return Contract(**{"action_space": "ee6d", **task_contract(task_spec(name)), **change})


def test_a_policy_of_another_benchmark_names_all_that_differs() -> None:
    taught = contract("google_vm_coke", domain_id=3)
    with pytest.raises(ContractError) as refused:
        check_contract({3: taught}, contract("libero_spatial"), who="libero_spatial")
    for field in ("rotation_layout", "anchor_hz", "views", "proprio", "relative_channels"):
        assert f"{field}: checkpoint" in str(refused.value)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("widowx_spoon", "bridge_dataset"),
        ("google_vm_coke", "fractal20220817_data"),
        ("calvin_abc_d", "calvin_rlds"),
        ("agibot", "AGIBOT-challenge"),
    ],
)
def test_rows_fit_the_data_that_teach_them(row: str, name: str) -> None:
    (taught,) = contracts_of([dataset(name)], num_actions=30)
    trained = Contract(action_space="ee6d", **taught)
    check_contract({trained.domain_id: trained}, contract(row), who=row)


def test_the_observed_pose_of_libero_is_not_the_controllers() -> None:
    raw = {
        "agentview": np.zeros((2, 2, 3), np.uint8),
        "wrist": np.zeros((2, 2, 3), np.uint8),
        "robot0_eef_pos": np.zeros(3),
        "robot0_eef_quat": np.array([0, 0, 0, 1.0]),
    }
    with pytest.raises(ObservationError, match=r"no 'ee_pos'; it has .*robot0_eef_quat"):
        EpisodeClient(TASKS["libero_spatial"].client).request(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5; a probability between 0 and 1"),
        ({"closed": (1.0,), "open": (1.0,)}, "closed .* and open .* must differ"),
        ({"closed": (0.0, 0.0)}, "closed .* and open .* must differ in value"),
    ],
)
def test_a_gripper_that_cannot_distinguish_closed_from_open(
    change: dict[str, Any], message: str
) -> None:
    rule = GripperRule(0.5, False, False, closed=(1.0,), open=(-1.0,))
    with pytest.raises(ProfileError, match=message):
        dataclasses.replace(rule, **change)


def test_a_policy_without_an_answer_never_becomes_an_action_of_zeros() -> None:
    client = EpisodeClient(TASKS["google_vm_coke"].client)
    pose = np.array([0.5, 0, 0, 1, 0, 0, 0], np.float32)
    raw = {
        "image": np.zeros((2, 2, 3), np.uint8),
        "tcp_pose": pose,
        "base_pose": pose * [0, 1, 1, 1, 1, 1, 1],
    }
    client.request(raw)
    base = client.xyz_base
    with pytest.raises(IndexError):  # the request failed: nothing was put
        client.act()
    assert client.needs_chunk
    np.testing.assert_array_equal(client.xyz_base, base)
    assert not client.request(raw)["proprio"].any()
