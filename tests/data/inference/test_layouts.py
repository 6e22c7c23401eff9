"""Conventions planted in the layouts of HDF5 and RLDS: each is inferred or asked for."""

import dataclasses

import numpy as np
import pytest

from data.inference.questions import infer
from data.inference.recording import ACTION, STATE, joined_states
from data.inference.row_text import row_source
from data.poses.arms import Columns, Gripper, Pose
from data.poses.rotations import columns_from_quat_xyzw, matrices_of_columns
from tests.data.inference.layouts import (
    AGENT,
    EEF,
    EYE,
    FINGERS,
    FULL_STATE,
    HAND,
    HIGH,
    QPOS,
    QUAT,
    act,
    rlds,
    robomimic,
)
from tests.data.inference.planted import (
    DEGREES,
    OPEN,
    beside,
    both,
    carried_view,
    changed,
    in_blue,
    joint_recording,
    late,
    pose_recording,
    reversed_last,
    shots_of,
    with_action,
)
from tests.data.inference.test_row_text import row_of

ACT_TRUTH = {
    "state_key": QPOS,
    "kind": "joints",
    "channels": "0-5",
    "grippers": "5",
    "gripper_closed": "low",
    "unit": "rad",
    "targets": "action",
    "views": f"{HIGH},{HAND}",
    "channel_order": OPEN,  # no file of ACT says it
    "rate_hz": OPEN,
    "instruction": OPEN,
}
ROBOMIMIC_TRUTH = {
    "state_key": FULL_STATE,
    "kind": "poses",
    "arms": "1",
    "grippers": "7",
    "gripper_closed": "low",
    "position_unit": "m",
    "rotation": "quaternion xyzw",
    "views": f"{AGENT},{EYE}",
    "channel_order": "rgb",
    "rate_hz": "20",
    "instruction": OPEN,
}
RLDS_TRUTH = {
    "state_key": STATE,
    "kind": "poses",
    "arms": "1",
    "grippers": OPEN,  # no names, and a hand that holds something is at no end
    "position_unit": "m",
    "rotation": OPEN,
    "views": "observation.image,observation.hand",
    "channel_order": "rgb",
    "rate_hz": OPEN,
    "instruction": "recorded",
}


def with_arrays(recording, **functions):
    """The recording with functions applied to arrays, named by the last part of their keys."""
    arrays = {
        key: tuple(functions[name](rows.copy()) for rows in parts)
        if (name := key.split("/")[-1].split(".")[-1]) in functions
        else parts
        for key, parts in recording.arrays.items()
    }
    return dataclasses.replace(recording, arrays=arrays)


def swapped(rows):
    return rows[:, [1, 0, *range(2, rows.shape[1])]]


def of_state(function):
    """The plant that makes the action a function of the state."""
    return lambda recording: with_action(recording, function)


def of_both(function):
    return lambda recording: both(recording, function)


def of_action(function):
    return lambda recording: changed(recording, action=function)


def aloha(order=("left", "right"), cameras=("left", "right")):
    """Two arms of an ALOHA in 12 columns without names; `order` says how they really stand."""
    one, other = joint_recording(1), joint_recording(2)
    rng = np.random.default_rng(3)
    arms = dict(zip(order, (one, other), strict=True))
    recording = act(dataclasses.replace(one, arrays=beside(one, other)))
    shots = {HIGH: recording.shots[HIGH]}
    for camera in cameras:
        key = f"observations/images/cam_{camera}_wrist"
        shots[key] = shots_of(rng, arms[camera].arrays[STATE], carried_view)
    return dataclasses.replace(recording, shots=shots)


ALOHA = {
    "channels": "0-11",
    "grippers": "5,11",
    "gripper_closed": "low,low",
    "arm_order": "left_first",
    "views": f"{HIGH},observations/images/cam_left_wrist,observations/images/cam_right_wrist",
}
STATE_TARGET = {"targets": "state", "gripper_closed": ("low", OPEN), "grippers": ("5", OPEN)}

# planted in the arm of joints before it takes a layout, which has no names of columns
JOINTS = {
    "nothing": (lambda recording: recording, {}),
    "gripper reversed": (of_both(reversed_last), {"gripper_closed": "high"}),
    "degrees": (of_both(lambda r: r * DEGREES), {"unit": "deg"}),
    "within 90, of either unit": (of_both(lambda r: r * 70), {"unit": OPEN}),
    "one joint in degrees": (of_both(lambda r: r * [1, 1, 1, 1, 150, 1]), {"unit": OPEN}),
    "encoder counts": (of_both(lambda r: r * 1500), {"unit": OPEN}),
    "gripper in the middle": (of_both(lambda r: r[:, [0, 1, 5, 2, 3, 4]]), {"grippers": OPEN}),
    "no gripper": (of_both(lambda r: r[:, :5]), {"channels": "0-4", "grippers": OPEN}),
    "action = state": (of_state(np.copy), STATE_TARGET),
    "action = next state": (
        of_state(lambda r: np.concatenate([r[1:], r[-1:]])),
        STATE_TARGET,
    ),
    "action late by one": (of_state(lambda r: late(r, 1)), STATE_TARGET),
    "action late by four": (of_action(lambda r: late(r, 4)), {"targets": "state"}),
    "action is a step": (of_state(lambda r: np.diff(r, axis=0, append=r[-1:])), STATE_TARGET),
    "action in degrees": (of_action(lambda r: r * 180 / np.pi), {"targets": "state"}),
    "channels swapped in the action": (of_action(swapped), {"targets": OPEN}),
    "an action with a base": (
        of_action(lambda r: np.column_stack([r, r[:, :2]])),
        {"channels": OPEN},
    ),
}
ACT = {
    "BGR": (lambda: in_blue(act()), {}),
    "cameras swapped": (
        lambda: dataclasses.replace(
            act(), shots={HIGH: act().shots[HAND], HAND: act().shots[HIGH]}
        ),
        {"views": OPEN},
    ),
    "qpos under another name": (
        lambda: dataclasses.replace(
            act(), arrays={"obs/q": act().arrays[QPOS], ACTION: act().arrays[ACTION]}, states=()
        ),
        {"state_key": OPEN},
    ),
    "a free body in qpos": (
        lambda: act(dataclasses.replace(pose_recording(), names={})),
        {"kind": "poses", "arms": "1", "rotation": OPEN, "position_unit": "m", "grippers": OPEN},
    ),
    "a rate in an attribute": (
        lambda: dataclasses.replace(act(), rate_hz=50.0),
        {"rate_hz": "50"},
    ),
    "two arms": (aloha, ALOHA),
    "two arms, right first": (
        lambda: aloha(("right", "left")),
        {**ALOHA, "arm_order": "right_first", "grippers": ("5,11", "11,5")},
    ),
    "two arms without wrist cameras": (
        lambda: aloha(cameras=()),
        {**ALOHA, "arm_order": OPEN, "views": HIGH},
    ),
}


def rotated(function, width):
    """The hand of RLDS with its quaternion replaced by a function of its matrix."""

    def change(rows):
        turns = matrices_of_columns(columns_from_quat_xyzw(rows[:, 3:7]))
        return np.column_stack(
            [rows[:, :3], function(turns).reshape(len(rows), width), rows[:, 7:]]
        )

    return rlds(both(pose_recording(), change))


def euler(turns):
    return np.stack(
        [
            np.arctan2(turns[:, 2, 1], turns[:, 2, 2]),
            -np.arcsin(turns[:, 2, 0]),
            np.arctan2(turns[:, 1, 0], turns[:, 0, 0]),
        ],
        axis=1,
    )


ROBOMIMIC = {
    "nothing": (robomimic, {}),
    "gripper reversed": (
        lambda: with_arrays(robomimic(), robot0_gripper_qpos=lambda r: r[:, ::-1]),
        {"gripper_closed": "high"},
    ),
    "millimetres": (
        lambda: with_arrays(robomimic(), robot0_eef_pos=lambda r: 1000 * r),
        {"position_unit": "mm"},
    ),
    "wxyz under robosuite's key": (
        lambda: with_arrays(robomimic(), robot0_eef_quat=lambda r: r[:, [3, 0, 1, 2]]),
        {"rotation": OPEN},
    ),
    "another environment than robosuite": (lambda: robomimic(names=()), {"rotation": OPEN}),
    "wxyz of another environment": (
        lambda: with_arrays(robomimic(names=()), robot0_eef_quat=lambda r: r[:, [3, 0, 1, 2]]),
        {"rotation": OPEN},
    ),
    "joints beside poses": (
        lambda: dataclasses.replace(robomimic(), states=(QPOS, FULL_STATE)),
        {},
    ),
    "joints and poses": (
        lambda: dataclasses.replace(
            robomimic(),
            arrays={**robomimic().arrays, "obs/robot0_joint_pos": act().arrays[QPOS]},
            states=(f"obs/robot0_joint_pos+{FINGERS}", FULL_STATE),
        ),
        {"state_key": OPEN},
    ),
    "BGR": (lambda: in_blue(robomimic()), {"channel_order": OPEN}),
}
RLDS = {
    "nothing": (rlds, {}),
    "wxyz": (
        lambda: rlds(both(pose_recording(), lambda r: r[:, [0, 1, 2, 6, 3, 4, 5, 7]])),
        {},
    ),
    "millimetres": (
        lambda: rlds(both(pose_recording(), lambda r: r * ([1000] * 3 + [1] * 5))),
        {"position_unit": "mm"},
    ),
    "centimetres": (
        lambda: rlds(both(pose_recording(), lambda r: r * ([100] * 3 + [1] * 5))),
        {"position_unit": OPEN},
    ),
    "6-D by rows": (
        lambda: rotated(lambda m: m[:, :, :2], 6),
        {"rotation": "rot6d interleaved"},
    ),
    "6-D by columns": (lambda: rotated(lambda m: m[:, :, :2].swapaxes(-1, -2), 6), {}),
    "angles": (lambda: rotated(euler, 3), {"kind": OPEN}),
    "joints without names": (
        lambda: rlds(joint_recording()),
        {"kind": OPEN},
    ),
    "BGR": (lambda: in_blue(rlds()), {"channel_order": OPEN}),
    "no text": (
        lambda: dataclasses.replace(rlds(), texts=("",) * 16),
        {"instruction": OPEN},
    ),
    "a clock of 29.97 Hz": (
        lambda: dataclasses.replace(rlds(), clocks=(np.arange(150) / 29.97,) * 16),
        {},
    ),
    "a clock of 30 Hz": (
        lambda: dataclasses.replace(rlds(), clocks=(np.arange(150) / 30,) * 16),
        {"rate_hz": "30"},
    ),
    "a clock in milliseconds": (
        lambda: dataclasses.replace(rlds(), clocks=(np.arange(150) / 0.03,) * 16),
        {},
    ),
}
RLDS_JOINTS_TRUTH = {
    **{
        key: ACT_TRUTH[key] for key in ("channels", "grippers", "gripper_closed", "unit", "targets")
    },
    **{key: RLDS_TRUTH[key] for key in ("state_key", "views", "channel_order", "rate_hz")},
    "instruction": "recorded",
    "kind": "joints",  # answered: no name of RLDS says it
}


def planted(layout, plant):
    return lambda: layout(plant(joint_recording()))


ACT_JOINTS = {name: (planted(act, plant), truth) for name, (plant, truth) in JOINTS.items()}
RLDS_JOINTS = {name: (planted(rlds, plant), truth) for name, (plant, truth) in JOINTS.items()}
CASES = [
    pytest.param(make, answers, truth | changes, id=f"{layout}: {name}")
    for layout, answers, truth, table in (
        ("act", {}, ACT_TRUTH, ACT_JOINTS | ACT),
        ("robomimic", {}, ROBOMIMIC_TRUTH, ROBOMIMIC),
        ("rlds", {}, RLDS_TRUTH, RLDS),
        ("rlds joints", {"kind": "joints"}, RLDS_JOINTS_TRUTH, RLDS_JOINTS),
    )
    for name, (make, changes) in table.items()
]


@pytest.mark.parametrize(("make", "answers", "truth"), CASES)
def test_a_planted_convention_is_inferred_or_asked_for(make, answers, truth):
    recording = make()
    choices = infer(recording, answers)
    assert set(choices) <= set(truth) | {"arm_order"}
    wrong = {
        name: choice.value
        for name, choice in choices.items()
        if choice.value not in (t if isinstance(t := truth.get(name), tuple) else (t,))
    }
    assert wrong == {}
    text = row_source(recording, choices, command="python", domain="desk")
    assert any(choice.is_open for choice in choices.values()), "these formats leave something open"
    with pytest.raises(ValueError, match="is not filled in, allowed is") as refused:
        row_of(text)
    assert "\n" not in str(refused.value)


def test_at_least_24_conventions_are_planted_in_each_of_hdf5_and_rlds():
    assert len(ACT_JOINTS) + len(ACT) + len(ROBOMIMIC) - 2 >= 24
    assert len(RLDS_JOINTS) + len(RLDS) - 2 >= 24


ANSWERS = {"channel_order": "rgb", "rate_hz": "50", "instruction": "sweep the crumbs"}


def test_an_answered_row_of_act():
    row = row_of(row_source(act(), infer(act(), ANSWERS), command="python", domain="desk"))
    assert (row.storage, row.joints, row.actions) == (
        "hdf5",
        (Columns(QPOS, 0, 6),),
        (Columns(ACTION, 0, 6, lag=1),),
    )
    assert (row.rate_hz, row.window_s, row.fixed_instruction) == (50.0, 0.6, "sweep the crumbs")
    assert [c.low for c in row.channels] == ["", "", "", "", "", "closed"]


def test_an_answered_row_of_robomimic_has_the_arrays_of_its_parts():
    recording = robomimic()
    choices = infer(recording, {"instruction": "lift the cube"})
    row = row_of(row_source(recording, choices, command="python", domain="desk"))
    (arm,) = row.arms
    assert isinstance(arm.pose, Pose)
    assert arm.pose.position.columns == (Columns(EEF, 0, 3),)
    assert arm.pose.rotation.columns == (Columns(QUAT, 0, 4),)
    assert isinstance(arm.gripper, Gripper)
    assert (arm.gripper.key, arm.gripper.column, arm.gripper.open_at) == (FINGERS, 0, 0.04)
    assert dict(row.widths) == {EEF: 3, QUAT: 4, FINGERS: 2}


def test_columns_without_names_are_named_by_an_answer():
    recording = rotated(euler, 3)
    answers = {
        **ANSWERS,
        "kind": "poses",
        "arms": "x,y,z,roll,pitch,yaw,gripper",
        "gripper_closed": "low",
    }
    row = row_of(row_source(recording, infer(recording, answers), command="python", domain="desk"))
    (arm,) = row.arms
    assert isinstance(arm.pose, Pose)
    assert (arm.pose.rotation.kind, arm.pose.rotation.order) == ("euler", "xyz")
    assert isinstance(arm.gripper, Gripper)
    assert arm.gripper.column == 6


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("x,y,z", "arms is 'x,y,z', allowed is a text: names of the 7 columns"),
        ("x,y,-,roll,pitch,yaw,gripper", "allowed are names of the 7 columns of observation.state"),
    ],
)
def test_names_that_give_no_pose_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        infer(rotated(euler, 3), {"kind": "poses", "arms": answer})


def test_a_rate_is_a_number():
    with pytest.raises(ValueError, match="rate_hz is 'fast', allowed is a text: frames a second"):
        infer(act(), {"rate_hz": "fast"})


def test_arrays_that_lie_side_by_side_are_candidates():
    widths = {
        "obs/object": 10,
        "obs/robot0_eef_pos": 3,
        "obs/robot0_eef_quat": 4,
        "obs/robot0_gripper_qpos": 2,
        "obs/robot0_joint_pos": 7,
        "obs/robot0_joint_vel": 7,
    }
    assert joined_states(widths) == ("obs/robot0_joint_pos+obs/robot0_gripper_qpos", FULL_STATE)
    droid = {"observation.cartesian_position": 6, "observation.gripper_position": 1}
    assert joined_states(droid) == ("observation.cartesian_position+observation.gripper_position",)
