"""CALVIN ABC->D: chains of five subtasks, one chain for each initial state."""

from __future__ import annotations

import dataclasses

from eval.tasks.profiles import ActionForm, ArmState, ClientProfile, GripperRule, Slot, View, Wire
from eval.tasks.spec import CHAIN_LENGTH, Reference, TaskSpec

_STATE = ArmState(
    position=Slot("robot_obs", 0, 3),
    rotation=Slot("robot_obs", 3, 6),
    rotation_form="euler_xyz",
    gripper=Slot("robot_obs", 14, 15),
    # Inverted in the released client; the model does not see it.
    gripper_form="above_zero",
)
_GRIPPER = GripperRule(0.8, closed_at_threshold=True, float32=False, closed=(-1.0,), open=(1.0,))

_FAITHFUL = ClientProfile(
    domain_id=2,
    views=(
        View("rgb_static", "rgb_static", None, "static", flip_rows=False, flip_columns=False),
        View("rgb_gripper", "rgb_gripper", None, "gripper", flip_rows=False, flip_columns=False),
    ),
    rotation="interleaved",
    action_width=20,
    executed=20,
    stride=1,
    state=(_STATE,),
    feedback="executed",
    feedback_channels=10,
    action=ActionForm(arms=1, rotation_form="quat_xyzw", gripper=_GRIPPER, dtype="float64"),
    wire=Wire(10, "json_list", "float64", timeout_s=10.0),
    anchor_hz=30.0,
    proprio="measured",
)

_STRICT = dataclasses.replace(
    _FAITHFUL,
    state=(dataclasses.replace(_STATE, gripper_form="below_zero"),),
    action=dataclasses.replace(
        _FAITHFUL.action,
        gripper=dataclasses.replace(_GRIPPER, threshold=0.5, closed_at_threshold=False),
    ),
    clears_on_instruction=True,
)

_ABC_D = TaskSpec(
    name="calvin_abc_d",
    benchmark="calvin",
    suite="ABC_D",
    task_ids=(0,),
    num_init_states=1000,
    client=_FAITHFUL,
    step_limit=720,
    control_hz=30,
    fresh_env=False,
    score=CHAIN_LENGTH,
    reference=(
        Reference(4.43, CHAIN_LENGTH, "X-VLA paper, 1000 chains"),
        Reference(4.30, CHAIN_LENGTH, "independent rerun of the weights"),
    ),
)

ROWS: tuple[TaskSpec, ...] = (
    _ABC_D,
    dataclasses.replace(
        _ABC_D, name="calvin_abc_d:strict", client=_STRICT, step_limit=360, reference=()
    ),
)
