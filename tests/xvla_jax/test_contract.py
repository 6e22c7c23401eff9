"""A policy and a task that speak different conventions must not meet."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from xvla_jax.contract import Contract, check_contract
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
