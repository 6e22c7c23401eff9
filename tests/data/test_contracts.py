"""Dataset rows as action contracts."""

import dataclasses

import pytest

from data.contracts import contracts_of
from data.datasets import DATASETS, dataset


def test_libero_demonstrations() -> None:
    (contract,) = contracts_of([dataset("libero_demos")], num_actions=30)
    assert contract == {
        "domain_id": 3,
        "rotation_layout": "contiguous",
        "anchor_hz": 20.0,
        "views": ("agentview", "wrist"),
        "proprio": "commanded",
        "relative_channels": (),
    }


def test_google_robot_is_relative_and_sees_no_pose() -> None:
    (contract,) = contracts_of([dataset("fractal20220817_data")], num_actions=30)
    assert contract["relative_channels"] == (0, 1, 2)
    assert contract["proprio"] == "zero"


def test_every_row_has_one() -> None:
    contracts = contracts_of(list(DATASETS.values()), num_actions=30)
    assert sorted(c["domain_id"] for c in contracts) == sorted(
        {row.domain_id for row in DATASETS.values()}
    )


def test_rows_of_one_domain_must_agree() -> None:
    row = dataset("libero_demos")
    other = dataclasses.replace(row, name="other", rotation_layout="interleaved", window_s=3.0)
    with pytest.raises(
        ValueError, match=r"share domain 3, but differ in anchor_hz, rotation_layout"
    ):
        contracts_of([row, other], num_actions=30)
