"""Dataset rows as action contracts."""

import dataclasses

import pytest

from data.contracts import actions_of, contracts_of, view_names
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


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_has_one(name: str) -> None:
    row = dataset(name)
    (contract,) = contracts_of([row], num_actions=30)
    assert contract["domain_id"] == row.domain_id
    assert len(contract["views"]) == len(row.views)


@pytest.mark.parametrize(
    ("name", "layout", "channels"),
    [
        ("libero_demos", "contiguous", 10),
        ("AGIBOT", "interleaved", 20),
        ("agiworld-on-site-pack-joints", "none", 16),
        ("lift2", "none", 17),
    ],
)
def test_actions_are_counted_by_arms_or_joints(name: str, layout: str, channels: int) -> None:
    row = dataset(name)
    assert actions_of(row) == {
        "rotation_layout": layout,
        "channels": channels,
        "relative_channels": row.delta_idx,
    }
    assert row.width == (channels if layout == "none" else 20)


def test_views_are_named_without_their_folders_where_that_tells_them_apart() -> None:
    assert view_names(("observation/third_image", "a.wrist")) == ("third_image", "wrist")
    same = ("observation/head_camera/rgb", "observation/left_camera/rgb")
    assert view_names(same) == same


def test_rows_of_one_domain_must_agree() -> None:
    row = dataset("libero_demos")
    other = dataclasses.replace(row, name="other", rotation_layout="interleaved", window_s=3.0)
    with pytest.raises(
        ValueError, match=r"share domain 3, but differ in anchor_hz, rotation_layout"
    ):
        contracts_of([row, other], num_actions=30)
