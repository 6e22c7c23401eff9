"""VLABench, tracks 1 to 4. The benchmark's own files list the tasks of a track."""

from __future__ import annotations

import dataclasses

from eval.tasks.profiles import ActionForm, ArmState, ClientProfile, GripperRule, Slot, View, Wire
from eval.tasks.spec import PROGRESS, Reference, TaskSpec

# Where the robot stands in the world, metres.
_ROBOT = (0.0, -0.4, 0.78)

_STATE = ArmState(
    position=Slot("ee_state", 0, 3),
    rotation=Slot("ee_state", 3, 7),
    # A mistake of the released client: the training data had euler angles.
    rotation_form="quat_wxyz_as_xyzw",
    gripper=Slot("ee_state", 7, 8),
    gripper_form="raw",
    shift=_ROBOT,
)

_FAITHFUL = ClientProfile(
    domain_id=8,
    views=tuple(
        View(name, "rgb", index, name, flip_rows=False, flip_columns=False)
        for name, index in (("front_0", 0), ("front_2", 2), ("wrist", -1))
    ),
    rotation="interleaved",
    action_width=20,
    executed=30,
    stride=1,
    state=(_STATE,),
    feedback="measured",
    feedback_channels=0,
    action=ActionForm(
        arms=1,
        rotation_form="euler_xyz",
        gripper=GripperRule(0.5, False, False, closed=(0.0, 0.0), open=(0.04, 0.04)),
        dtype="float64",
        shift=_ROBOT,
    ),
    wire=Wire(10, "json_numpy", "float64", timeout_s=None),
    anchor_hz=30.0,
    proprio="measured",
    shift_in_place=True,
)

_STRICT = dataclasses.replace(
    _FAITHFUL,
    state=(dataclasses.replace(_STATE, rotation_form="quat_wxyz"),),
    shift_in_place=False,
)

# (suite, progress that the paper reports); the mean is the paper's 51.1.
_TRACKS = (
    ("track_1_in_distribution", 67.8),
    ("track_2_cross_category", 25.1),
    ("track_3_common_sense", 48.2),
    ("track_4_semantic_instruction", 63.1),
)


def _track(number: int, suite: str, published: float) -> tuple[TaskSpec, TaskSpec]:
    spec = TaskSpec(
        name=f"vlabench_track_{number}",
        benchmark="vlabench",
        suite=suite,
        task_ids=(),
        num_init_states=10,
        client=_FAITHFUL,
        step_limit=200,
        control_hz=30,  # of the training data
        fresh_env=True,
        image_size=480,
        score=PROGRESS,
        reference=(Reference(published, PROGRESS, "X-VLA paper, 10 episodes a task"),),
    )
    strict = dataclasses.replace(
        spec,
        name=spec.name + ":strict",
        client=_STRICT,
        reference=(),
        registered_limits=True,  # 100 steps for poker and paintings
    )
    return spec, strict


ROWS: tuple[TaskSpec, ...] = tuple(
    spec
    for number, (suite, published) in enumerate(_TRACKS, 1)
    for spec in _track(number, suite, published)
)
