"""A policy and a task that speak different conventions must not meet."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from xvla_jax.contract import UNKNOWN, Channel, Contract, check_contract
from xvla_jax.errors import ContractError

_LIBERO = Contract(
    domain_id=3,
    action_space="ee6d",
    rotation_layout="contiguous",
    anchor_hz=20.0,
    views=("agentview", "wrist"),
    proprio="commanded",
)


def test_equal_contracts_pass() -> None:
    check_contract({3: _LIBERO}, dataclasses.replace(_LIBERO), who="libero_spatial")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action_space", "joint"),
        ("rotation_layout", "interleaved"),
        ("anchor_hz", 10.0),
        ("views", ("wrist", "agentview")),
        ("proprio", "measured"),
        ("relative_channels", (0, 1)),
    ],
)
def test_a_difference_is_named_with_both_values(field: str, value: Any) -> None:
    wanted = dataclasses.replace(_LIBERO, **{field: value})
    with pytest.raises(ContractError) as caught:
        check_contract({3: _LIBERO}, wanted, who="libero_spatial")
    text = str(caught.value)
    assert f"{field}: checkpoint {getattr(_LIBERO, field)!r}, libero_spatial {value!r}" in text
    assert text.count("checkpoint") == 1, "no other field differs"


def test_all_differences_are_in_one_error() -> None:
    wanted = dataclasses.replace(_LIBERO, anchor_hz=10.0, proprio="zero")
    with pytest.raises(ContractError, match=r"anchor_hz: .*; proprio: "):
        check_contract({3: _LIBERO}, wanted, who="x")


def test_a_domain_without_training_is_refused() -> None:
    with pytest.raises(ContractError, match=r"calvin needs domain 2; .* trained for \[3, 7\]"):
        check_contract(
            {7: _LIBERO, 3: _LIBERO}, dataclasses.replace(_LIBERO, domain_id=2), who="calvin"
        )


def test_a_contract_survives_json() -> None:
    contract = dataclasses.replace(_LIBERO, relative_channels=(0, 1))
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    joints = dataclasses.replace(_JOINTS, channels=(Channel("pan", "deg"), Channel("grip")))
    assert Contract.from_dict(json.loads(json.dumps(joints.to_dict()))) == joints


_JOINTS = Contract(3, "auto", "none", 20.0, ("front",), "measured")


def test_channels_of_poses_follow_from_the_action_space_and_those_of_joints_are_stated() -> None:
    channels = _LIBERO.channels
    assert [(c.name, c.unit) for c in channels[:3]] == [(f"left {a}", "m") for a in "xyz"]
    assert {c.unit for c in channels[3:9]} == {"rotation-6D"}
    assert (channels[19].name, channels[19].low, channels[19].high) == (
        "right gripper", "open", "closed"
    )  # fmt: skip
    assert _JOINTS.channels == ()
    old = {k: v for k, v in _JOINTS.to_dict().items() if k != "channels"}
    assert Contract.from_dict(old).channels == ()
    (pan,) = dataclasses.replace(_JOINTS, channels=({"name": "pan"},)).channels
    assert pan == Channel("pan", UNKNOWN)
    for odd in ([3], [{"name": 3}], [{"name": "pan", "colour": "red"}], 7):
        with pytest.raises(TypeError):
            Contract.from_dict({**_JOINTS.to_dict(), "channels": odd})


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ((Channel("pan", "deg"), Channel("grip", low="closed", high="open")),
         r"channel 1: checkpoint .*low='open'.*, robot .*low='closed'"),
        ((Channel("pan", "rad"), Channel("grip", low="open", high="closed")),
         r"channel 0: checkpoint .*unit='deg'.*, robot .*unit='rad'"),
        ((Channel("pan", "deg"),), "channels: checkpoint has 2, robot 1"),
    ],
)  # fmt: skip
def test_channels_that_differ_are_named(theirs: Any, message: str) -> None:
    ours = (Channel("pan", "deg"), Channel("grip", low="open", high="closed"))
    found = {3: dataclasses.replace(_JOINTS, channels=ours)}
    check_contract(found, _JOINTS, who="robot")
    with pytest.raises(ContractError, match=message):
        check_contract(found, dataclasses.replace(_JOINTS, channels=theirs), who="robot")
