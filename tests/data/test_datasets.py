import dataclasses

import pytest

from data.datasets import DATASETS, dataset
from data.mixtures import MIXTURES, check_mixture, mixture
from data.spec import STORAGES

# X-VLA's numbers: domain, rate (Hz), window (s), margin (frames)
ORIGINAL = {
    "bridge_dataset": (0, 5, 5, 10),
    "fractal20220817_data": (1, 3, 10, 6),
    "droid_left": (13, 15, 4, 30),
    "droid_right": (14, 15, 4, 30),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_rows_carry_the_numbers_of_the_original(name):
    row = DATASETS[name]
    assert (row.domain_id, row.rate_hz, row.window_s, row.index_margin) == ORIGINAL[name]


def test_layouts_and_polarities():
    assert {n for n, row in DATASETS.items() if row.rotation_layout == "contiguous"} == {
        "libero_demos"
    }
    assert DATASETS["bridge_dataset"].arms[0].gripper.closed == "low", "Bridge records 1 = open"
    assert DATASETS["fractal20220817_data"].delta_idx == (0, 1, 2)
    assert DATASETS["fractal20220817_data"].mask_proprio_idx == tuple(range(20))


def test_our_demonstrations_have_one_anchor_per_control_step_of_libero():
    assert 30 / DATASETS["libero_demos"].window_s == 20.0  # Hz


def test_keys_are_listed_once():
    row = DATASETS["libero_demos"]
    assert row.keys == (
        "observation.agentview",
        "observation.wrist",
        "language_instruction",
        "observation.command_pose",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage": "zip"}, "storage is 'zip', allowed is one of " + ", ".join(STORAGES)),
        ({"rotation_layout": "rows"}, "rotation_layout is 'rows'.*interleaved, contiguous"),
        ({"encoded_channel_order": "bgr"}, "encoded_channel_order is 'bgr'"),
        ({"arms": ()}, "arms is 0, allowed is 1 or 2"),
        ({"views": ()}, "at least one view"),
        ({"domain_id": -1}, "domain_id is -1"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"window_s": 0.0}, "window_s is 0.0"),
        ({"index_margin": 0}, "index_margin is 0"),
        ({"static_epsilon": -1.0}, "static_epsilon is -1.0"),
        ({"delta_idx": (20,)}, r"delta_idx is \(20,\), allowed is channels 0..19"),
        ({"mask_proprio_idx": (-1,)}, "mask_proprio_idx"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(change, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(dataset("bridge_dataset"), **change)
    assert "'bridge_dataset'" in str(error.value)


def test_a_bad_arm_is_an_error():
    row = dataset("bridge_dataset")
    arm = row.arms[0]
    for bad in (
        dataclasses.replace(arm, pose_encoding="xyz_rpy"),
        dataclasses.replace(arm, pose_columns=(0, 7)),
        dataclasses.replace(arm, gripper=dataclasses.replace(arm.gripper, closed="1")),
    ):
        with pytest.raises(ValueError, match="allowed is"):
            dataclasses.replace(row, arms=(bad,))


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=r"unknown dataset 'bridge'.*bridge_dataset"):
        dataset("bridge")
    with pytest.raises(ValueError, match=r"unknown mixture 'all'.*libero_demos"):
        mixture("all")
    with pytest.raises(ValueError, match="unknown dataset"):
        check_mixture((("bridge_dataset", 1.0), ("brigde", 1.0)))


def test_every_mixture_is_valid():
    assert all(mixture(name) == MIXTURES[name] for name in MIXTURES)


@pytest.mark.parametrize(
    "pairs",
    [
        (),
        (("droid_left", 0.0),),
        (("droid_left", float("nan")),),
        (("droid_left", 1.0), ("droid_left", 1.0)),
    ],
)
def test_bad_mixtures_are_errors(pairs):
    with pytest.raises(ValueError, match=r"weight|once"):
        check_mixture(pairs)
