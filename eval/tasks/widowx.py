"""SimplerEnv's four WidowX tasks."""

from __future__ import annotations

import dataclasses
import math

from eval.tasks.profiles import ActionForm, ArmState, ClientProfile, GripperRule, Slot, View, Wire
from eval.tasks.spec import SUCCESS, Reference, Scenario, TaskSpec

_NUM_EPISODES = 24

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
    name: str, env: str, threshold: float, limits: tuple[int, int], rate: float
) -> tuple[TaskSpec, TaskSpec]:
    """Returns the row as released and the strict one; `limits` are the steps of each."""
    spec = TaskSpec(
        name=name,
        benchmark="simpler",
        suite=env,
        task_ids=(0,),
        num_init_states=_NUM_EPISODES,
        client=_client(threshold, closed_at_threshold=True),
        step_limit=limits[0],
        control_hz=5,
        fresh_env=True,
        reference=(Reference(rate, SUCCESS, "X-VLA paper, best rollout of 24 episodes"),),
        scenarios=(
            Scenario(env, env, (), (), tuple(("episode_id", k) for k in range(_NUM_EPISODES))),
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
    *_faithful("widowx_spoon", "widowx_spoon_on_towel", 0.7, (1200, 60), 100.0),
    *_faithful("widowx_carrot", "widowx_carrot_on_plate", 0.95, (1200, 60), 91.7),
    *_faithful("widowx_blocks", "widowx_stack_cube", 0.91, (1200, 60), 95.8),
    *_faithful("widowx_eggplant", "widowx_put_eggplant_in_basket", 0.8, (1200, 120), 95.8),
)
