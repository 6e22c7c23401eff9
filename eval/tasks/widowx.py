"""SimplerEnv's four WidowX tasks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from eval.tasks.profiles import ActionForm, ArmState, ClientProfile, GripperRule, Slot, View, Wire
from eval.tasks.spec import SUCCESS, Reference, Scenario, TaskSpec

_NUM_EPISODES = 24

_PHOTOS = "{SIMPLER_DIR}/ManiSkill2_real2sim/data/real_inpainting/"
# SimplerEnv's prepackaged configuration of these tasks, but for the control mode.
_MADE: dict[str, Any] = {
    "robot": "widowx",
    "control_freq": 5,
    "sim_freq": 500,
    "control_mode": "arm_pd_ee_target_base_pose_gripper_pd_joint_pos",
    "scene_name": "bridge_table_1_v1",
    "camera_cfgs": {"add_segmentation": True},
    "rgb_overlay_path": _PHOTOS + "bridge_real_eval_1.png",
    "rgb_overlay_cameras": ("3rd_view_camera",),
}
# The authors' fork gives the sink the camera of BridgeData and the joints and height of the table.
_SINK = {
    **_MADE,
    "robot": "widowx_bridge_dataset_camera_setup",
    "scene_name": "bridge_table_1_v2",
    "rgb_overlay_path": _PHOTOS + "bridge_sink.png",
}
_AT_TABLE = (0.147, 0.028, 0.0, 0.0, 0.0, 1.0)
_AT_SINK = (0.127, 0.06, 0.0, 0.0, 0.0, 1.0)

_STATE = ArmState(
    position=Slot("tcp_pose", 0, 3),
    rotation=None,
    rotation_form="identity",
    gripper=None,
    gripper_form="zero",
    relative_to="base_pose",
)


def _client(threshold: float, *, closed_at_threshold: bool) -> ClientProfile:
    return ClientProfile(
        domain_id=0,
        views=(
            View("image_0", "image", None, "3rd_view_camera", flip_rows=False, flip_columns=False),
        ),
        rotation="interleaved",
        action_width=20,
        executed=30,
        stride=1,
        state=(_STATE,),
        feedback="executed",
        feedback_channels=10,
        action=ActionForm(
            arms=1,
            rotation_form="euler_xyz",
            gripper=GripperRule(threshold, closed_at_threshold, True, (-1.0,), (1.0,)),
            dtype="float64",
            # Orientations of Bridge are relative to a hand that points down.
            euler_offset=(0.0, math.pi / 2, 0.0),
        ),
        wire=Wire(10, "json_numpy", "float32", timeout_s=20.0),
        anchor_hz=6.0,
        proprio="measured",
    )


def _faithful(
    name: str,
    task: str,
    env: str,
    *,
    threshold: float,
    limits: tuple[int, int],
    rate: float,
    made: dict[str, Any] = _MADE,
    robot: tuple[float, ...] = _AT_TABLE,
) -> tuple[TaskSpec, TaskSpec]:
    """Returns the row as released and the strict one.

    Args:
        name: of the row.
        task: SimplerEnv's name of the task.
        env: registered environment.
        threshold: of the gripper, as released.
        limits: steps as released and registered.
        rate: published success.
        made: arguments of the environment.
        robot: x, y (m) and quaternion wxyz of its base.
    """
    spec = TaskSpec(
        name=name,
        benchmark="simpler",
        suite=task,
        task_ids=(0,),
        num_init_states=_NUM_EPISODES,
        client=_client(threshold, closed_at_threshold=True),
        step_limit=limits[0],
        control_hz=5,
        fresh_env=True,
        reference=(Reference(rate, SUCCESS, "X-VLA paper, best rollout of 24 episodes"),),
        scenarios=(
            Scenario(
                task,
                env,
                tuple(made.items()),
                (robot,),
                tuple(("episode_id", k) for k in range(_NUM_EPISODES)),
            ),
        ),
    )
    strict = dataclasses.replace(
        spec,
        name=name + ":strict",
        client=_client(0.5, closed_at_threshold=False),
        step_limit=limits[1],
        reference=(),
    )
    return spec, strict


ROWS: tuple[TaskSpec, ...] = (
    *_faithful(
        "widowx_spoon",
        "widowx_spoon_on_towel",
        "PutSpoonOnTableClothInScene-v0",
        threshold=0.7,
        limits=(1200, 60),
        rate=100.0,
    ),
    *_faithful(
        "widowx_carrot",
        "widowx_carrot_on_plate",
        "PutCarrotOnPlateInScene-v0",
        threshold=0.95,
        limits=(1200, 60),
        rate=91.7,
    ),
    *_faithful(
        "widowx_blocks",
        "widowx_stack_cube",
        "StackGreenCubeOnYellowCubeBakedTexInScene-v0",
        threshold=0.91,
        limits=(1200, 60),
        rate=95.8,
    ),
    *_faithful(
        "widowx_eggplant",
        "widowx_put_eggplant_in_basket",
        "PutEggplantInBasketScene-v0",
        threshold=0.8,
        limits=(1200, 120),
        rate=95.8,
        made=_SINK,
        robot=_AT_SINK,
    ),
)
