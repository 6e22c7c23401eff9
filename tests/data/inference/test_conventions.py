"""Planted conventions: each is inferred or left open; none is silently wrong."""

import dataclasses

import numpy as np
import pytest

from data.inference.questions import infer
from data.inference.recording import ACTION, STATE, Shots
from tests.data.inference.planted import (
    DEGREES,
    MAIN,
    NAMES,
    OPEN,
    POSE_NAMES,
    POSE_TRUTH,
    RATE_HZ,
    TRUTH,
    WRIST,
    beside,
    both,
    carried_view,
    changed,
    in_blue,
    joint_recording,
    late,
    pose_recording,
    renamed,
    reversed_last,
    shots_of,
    static_view,
    with_action,
)

OR_OPEN = ("low", OPEN)


def _columns(*places):
    return lambda rows: rows[:, list(places)]


def _beside(rows, *more):
    return np.column_stack([rows, *more])


def _cameras(recording, **views):
    """The recording with its cameras under other keys, in the order of `views`."""
    shots = {f"observation.images.{name}": recording.shots[key] for name, key in views.items()}
    return dataclasses.replace(recording, shots=shots)


def _rotated(function, width, names=()):
    """Poses whose quaternion is replaced by `function` of its matrix; columns without names."""
    from data.poses.rotations import columns_from_quat_xyzw, matrices_of_columns

    def change(rows):
        turns = matrices_of_columns(columns_from_quat_xyzw(rows[:, 3:7]))
        return _beside(rows[:, :3], function(turns).reshape(len(rows), width), rows[:, 7:])

    return renamed(both(pose_recording(), change), names)


def _euler(turns):
    """Angles about fixed x, y, z."""
    return np.stack(
        [
            np.arctan2(turns[:, 2, 1], turns[:, 2, 2]),
            -np.arcsin(turns[:, 2, 0]),
            np.arctan2(turns[:, 1, 0], turns[:, 0, 0]),
        ],
        axis=1,
    )


EULER_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
VECTOR_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
SIX_NAMES = ("x", "y", "z", *(f"rot6d_{i}" for i in range(6)), "gripper")
CLOSED_HIGH = {"gripper_closed": "high"}


def _two_arms(names=("left", "right"), cameras=("left", "right")):
    """Two arms side by side, with a wrist camera each, named so."""
    one, other = joint_recording(1), joint_recording(2)
    rng = np.random.default_rng(3)
    columns = tuple(f"{side}_{name}" for side in names for name in NAMES) if names else ()
    shots = {MAIN: one.shots[MAIN]}
    for camera, arm in zip(cameras, (one, other), strict=True):
        key = f"observation.images.{camera}_wrist"
        shots[key] = shots_of(rng, arm.arrays[STATE], carried_view)
    recording = dataclasses.replace(
        one, arrays=beside(one, other), shots=dict(sorted(shots.items()))
    )
    return renamed(recording, columns)


ARMS = {
    "channels": "0-11",
    "grippers": "5,11",
    "gripper_closed": "low,low",
    "arm_order": "left_first",
    "views": f"{MAIN},observation.images.left_wrist,observation.images.right_wrist",
}


def _clock(hertz):
    recording = joint_recording()
    clocks = tuple(clock * RATE_HZ / hertz for clock in recording.clocks)
    return dataclasses.replace(recording, clocks=clocks)


def _beyond(rows):
    """-100..100, of which two joints reach the ends."""
    low, high = rows[:, :5].min(), rows[:, :5].max()
    rows[:, :5] = np.clip(200 * (rows[:, :5] - low) / (high - low) - 100, -100, 100) * 1.3
    rows[:, :5] = rows[:, :5].clip(-100, 100)
    return rows


def _swap_wrist_names(rows):
    return rows[:, [1, 0, 2, 3, 4, 5]]


# what was planted -> the recording, the choices that must be OPEN or differ from the truth
JOINTS = {
    "nothing": (joint_recording, {}),
    "gripper reversed": (lambda: both(joint_recording(), reversed_last), CLOSED_HIGH),
    "degrees": (lambda: both(joint_recording(), lambda r: r * DEGREES), {"unit": "deg"}),
    "-100..100": (lambda: both(joint_recording(), _beyond), {"unit": "-100..100"}),
    "within 90, of either unit": (
        lambda: both(joint_recording(), lambda r: r * 70),
        {"unit": OPEN},
    ),
    "shares of -1..1": (
        lambda: both(joint_recording(), lambda r: (r / 1.1).clip(-1, 1)),
        {"unit": OPEN},
    ),
    "one joint in degrees": (
        lambda: both(joint_recording(), lambda r: r * [1, 1, 1, 1, 150, 1]),
        {"unit": OPEN},
    ),
    "encoder counts": (lambda: both(joint_recording(), lambda r: r * 1500), {"unit": OPEN}),
    "no names": (lambda: renamed(joint_recording(), ()), {"kind": OPEN}),
    "names of motors": (
        lambda: renamed(joint_recording(), tuple(f"motor_{i}" for i in range(6))),
        {"kind": OPEN},
    ),
    "action = state": (
        lambda: with_action(joint_recording(), np.copy),
        {"targets": "state", "gripper_closed": OR_OPEN},
    ),
    "action = next state": (
        lambda: with_action(joint_recording(), lambda r: np.concatenate([r[1:], r[-1:]])),
        {"targets": "state", "gripper_closed": OR_OPEN},
    ),
    "action = state, late by one": (
        lambda: with_action(joint_recording(), lambda r: late(r, 1)),
        {"targets": "state", "gripper_closed": OR_OPEN},
    ),
    "action late by four": (
        lambda: changed(joint_recording(), action=lambda r: late(r, 4)),
        {"targets": "state"},
    ),
    "action is a step": (
        lambda: with_action(joint_recording(), lambda r: np.diff(r, axis=0, append=r[-1:])),
        {"targets": "state", "gripper_closed": OR_OPEN},
    ),
    "action in degrees": (
        lambda: changed(joint_recording(), action=lambda r: r * 180 / np.pi),
        {"targets": "state"},
    ),
    "two joints exchanged in the action": (
        lambda: changed(joint_recording(), action=_swap_wrist_names),
        {"targets": OPEN},
    ),
    "extra channels": (
        lambda: dataclasses.replace(
            changed(joint_recording(), state=lambda r: _beside(r, 9 * r[:, :2], r[:, 2])),
            names={STATE: (*NAMES, "elbow.vel", "wrist.torque", "current"), ACTION: NAMES},
        ),
        {},
    ),
    "an extra channel of unknown kind": (
        lambda: renamed(both(joint_recording(), lambda r: _beside(r, r[:, 0])), (*NAMES, "lamp")),
        {"kind": OPEN},
    ),
    "gripper first": (
        lambda: renamed(
            both(joint_recording(), _columns(5, 0, 1, 2, 3, 4)), (NAMES[5], *NAMES[:5])
        ),
        {"grippers": "0"},
    ),
    "no gripper": (
        lambda: renamed(both(joint_recording(), _columns(0, 1, 2, 3, 4)), NAMES[:5]),
        {"channels": "0-4", "grippers": "none", "gripper_closed": None},
    ),
    "29.97 Hz": (lambda: _clock(29.97), {"rate_hz": OPEN}),
    "half the rate": (lambda: _clock(15.0), {"rate_hz": OPEN}),
    "wrist camera first": (lambda: _cameras(joint_recording(), wrist=WRIST, front=MAIN), {}),
    "cameras swapped": (
        lambda: _cameras(joint_recording(), front=WRIST, wrist=MAIN),
        {"views": OPEN},
    ),
    "cameras without a name": (
        lambda: _cameras(joint_recording(), cam_b=WRIST, cam_a=MAIN),
        {"views": "observation.images.cam_a,observation.images.cam_b"},
    ),
    "two cameras that stand": (
        lambda: _cameras(joint_recording(), cam_a=MAIN, cam_b=MAIN),
        {"views": OPEN},
    ),
    "BGR": (lambda: in_blue(joint_recording()), {"channel_order": OPEN}),
    "grey images": (
        lambda: dataclasses.replace(
            joint_recording(),
            shots={
                k: tuple(Shots(np.repeat(s.images[..., :1], 3, axis=-1), s.frames) for s in parts)
                for k, parts in joint_recording().shots.items()
            },
        ),
        {"channel_order": OPEN},
    ),
    "no text": (
        lambda: dataclasses.replace(joint_recording(), texts=("",) * 16),
        {"instruction": OPEN},
    ),
    "state under another key": (
        lambda: dataclasses.replace(
            joint_recording(), arrays={"q": joint_recording().arrays[STATE]}, names={"q": NAMES}
        ),
        {"state_key": OPEN},
    ),
    "two arms": (_two_arms, ARMS),
    "two arms, right first": (
        lambda: _two_arms(("right", "left"), ("right", "left")),
        {**ARMS, "arm_order": "right_first", "grippers": "11,5"},
    ),
    "two arms swapped": (lambda: _two_arms(("right", "left")), {**ARMS, "arm_order": OPEN}),
    "few episodes": (
        lambda: dataclasses.replace(
            joint_recording(),
            arrays={k: v[:4] for k, v in joint_recording().arrays.items()},
            clocks=joint_recording().clocks[:4],
            texts=joint_recording().texts[:4],
        ),
        {"gripper_closed": OPEN},
    ),
}  # fmt: skip

POSES = {
    "nothing": (pose_recording, {}),
    "millimetres": (
        lambda: both(pose_recording(), lambda r: r * ([1000] * 3 + [1] * 5)),
        {"position_unit": "mm"},
    ),
    "centimetres": (
        lambda: both(pose_recording(), lambda r: r * ([100] * 3 + [1] * 5)),
        {"position_unit": OPEN},
    ),
    "wxyz, named so": (
        lambda: renamed(
            both(pose_recording(), _columns(0, 1, 2, 6, 3, 4, 5, 7)),
            ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper"),
        ),
        {"rotation": "quaternion wxyz"},
    ),
    "wxyz, named xyzw": (
        lambda: both(pose_recording(), _columns(0, 1, 2, 6, 3, 4, 5, 7)),
        {"rotation": OPEN},
    ),
    "wxyz without names": (
        lambda: renamed(both(pose_recording(), _columns(0, 1, 2, 6, 3, 4, 5, 7)), ()),
        {"grippers": OPEN, "rotation": OPEN},
    ),
    "6-D by rows": (
        lambda: _rotated(lambda m: m[:, :, :2], 6, SIX_NAMES),
        {"grippers": "9", "rotation": "rot6d interleaved"},
    ),
    "6-D by rows, without names": (
        lambda: _rotated(lambda m: m[:, :, :2], 6),
        {"grippers": OPEN, "rotation": "rot6d interleaved"},
    ),
    "6-D by columns": (
        lambda: _rotated(lambda m: m[:, :, :2].swapaxes(-1, -2), 6, SIX_NAMES),
        {"grippers": "9", "rotation": OPEN},
    ),
    "6-D of two rows of the matrix": (
        lambda: _rotated(lambda m: m[:, :2], 6, SIX_NAMES),
        {"grippers": "9", "rotation": OPEN},
    ),
    "roll, pitch, yaw": (
        lambda: _rotated(_euler, 3, EULER_NAMES),
        {"grippers": "6", "rotation": "euler xyz"},
    ),
    "angles in degrees": (
        lambda: _rotated(lambda m: np.rad2deg(_euler(m)), 3, EULER_NAMES),
        {"grippers": "6", "rotation": OPEN},
    ),
    "rx, ry, rz that are angles": (
        lambda: _rotated(_euler, 3, VECTOR_NAMES),
        {"grippers": "6", "rotation": OPEN},
    ),
    "seven columns without names": (lambda: _rotated(_euler, 3), {"kind": OPEN}),
    "gripper reversed": (lambda: both(pose_recording(), reversed_last), CLOSED_HIGH),
}  # fmt: skip

CASES = [
    *(pytest.param(make, TRUTH | truth, id=name) for name, (make, truth) in JOINTS.items()),
    *(
        pytest.param(make, POSE_TRUTH | truth, id=f"poses: {name}")
        for name, (make, truth) in POSES.items()
    ),
]


@pytest.mark.parametrize(("make", "truth"), CASES)
def test_a_planted_convention_is_inferred_or_asked_for(make, truth):
    choices = infer(make())
    open_ones = {name for name, value in truth.items() if value == OPEN}
    # behind an open choice the questions that need it are not asked
    asked = {name: value for name, value in truth.items() if name in choices}
    assert set(choices) <= set(truth) | {"arm_order"}
    assert {n: c.value for n, c in choices.items() if n in open_ones} == dict.fromkeys(
        open_ones, OPEN
    )
    wrong = {
        name: choices[name].value
        for name, value in asked.items()
        if choices[name].value not in (value if isinstance(value, tuple) else (value,))
    }
    assert wrong == {}
    assert open_ones or set(choices) >= {n for n, value in truth.items() if value is not None}


def test_at_least_24_conventions_are_planted():
    assert len(JOINTS) + len(POSES) - 2 >= 24


def test_every_choice_has_evidence():
    for choice in infer(joint_recording()).values():
        assert choice.evidence
        assert choice.allowed


def test_an_answer_wins_and_is_noted():
    choices = infer(joint_recording(), {"gripper_closed": "high"})
    assert (choices["gripper_closed"].value, choices["gripper_closed"].certainty) == (
        "high",
        "answered",
    )


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"colour": "rgb"}, "no question is named colour; there are state_key, kind"),
        ({"channel_order": "grb"}, "channel_order is 'grb', allowed is one of rgb, bgr_swapped"),
        ({"gripper_closed": "left"}, "gripper_closed is 'left', allowed is one of low, high"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        infer(joint_recording(), answers)


def test_what_is_open_is_asked():
    asked = []

    def ask(question, choice):
        asked.append((question.name, choice.allowed))
        return "bgr_swapped"

    choices = infer(in_blue(joint_recording()), ask=ask)
    assert asked == [("channel_order", ("rgb", "bgr_swapped"))]
    assert choices["channel_order"].value == "bgr_swapped"


def test_camera_of_a_moving_hand_differs_from_one_that_stands():
    rng = np.random.default_rng(0)
    rows = joint_recording().arrays[STATE]
    recording = dataclasses.replace(
        joint_recording(),
        shots={"a": shots_of(rng, rows, carried_view), "b": shots_of(rng, rows, static_view)},
    )
    assert infer(recording)["views"].value == "b,a"


def test_poses_have_the_columns_that_are_named():
    assert infer(pose_recording())["arms"].evidence == (
        "arm: position (0, 1, 2), quaternion (3, 4, 5, 6)"
    )
    assert len(POSE_NAMES) == 8
