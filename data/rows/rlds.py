"""Dataset rows for RLDS: Open X-Embodiment sets, and what this repository records itself."""

from __future__ import annotations

from data.poses import ACTION_WIDTH
from data.spec import Arm, Columns, DatasetSpec, Gripper

XYZ = (0, 1, 2)
EVERY_CHANNEL = tuple(range(ACTION_WIDTH))
STATIC_EPSILON = 1e-5  # m, and the same number for rotation and gripper, as X-VLA's reader

# the commanded chain: row 0 is the measured pose, later rows the last command
COMMANDED_ARM = Arm(
    pose=(Columns("observation.command_pose", 0, 9),),
    pose_encoding="xyz_rot6d",
    gripper=Gripper(key="observation.command_pose", column=9, closed="high", threshold=0.0),
)


def _droid(side: str, domain_id: int, exterior_camera: str) -> DatasetSpec:
    """DROID is read once per exterior camera; the rows differ in camera and domain."""
    return DatasetSpec(
        name=f"droid_{side}",
        storage="rlds",
        storage_name="droid",
        domain_id=domain_id,
        instruction_key="language_instruction",
        arms=(
            Arm(
                pose=(Columns("observation.cartesian_position", 0, 6),),
                pose_encoding="xyz_euler_xyz",
                gripper=Gripper(
                    key="observation.gripper_position", column=-1, closed="high", threshold=None
                ),
            ),
        ),
        rotation_layout="interleaved",
        views=(f"observation.{exterior_camera}", "observation.wrist_image_left"),
        encoded_channel_order="rgb",
        proprio="measured",
        rate_hz=15.0,
        window_s=4.0,
        index_margin=30,
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=STATIC_EPSILON,
        augment="jitter",
        widths={"observation.cartesian_position": 6, "observation.gripper_position": 1},
        empty_text="leave_out",  # a large part of the episodes was never labelled
    )


def _commanded_libero(
    name: str, storage_name: str, *, rate_hz: float, index_margin: int
) -> DatasetSpec:
    """LIBERO under absolute control, in the form that data/writing/recorded.py gives it."""
    return DatasetSpec(
        name=name,
        storage="rlds",
        storage_name=storage_name,
        domain_id=3,
        instruction_key="language_instruction",
        arms=(COMMANDED_ARM,),
        rotation_layout="contiguous",
        views=("observation.agentview", "observation.wrist"),
        encoded_channel_order="rgb",
        proprio="commanded",
        rate_hz=rate_hz,
        window_s=1.5,  # 30 anchors at the simulator's 20 Hz
        index_margin=index_margin,
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=STATIC_EPSILON,
        augment="none",
        widths={"observation.command_pose": 10},
    )


RLDS_ROWS = (
    DatasetSpec(
        name="bridge_dataset",
        storage="rlds",
        storage_name="bridge_dataset",
        domain_id=0,
        instruction_key="language_instruction",
        arms=(
            Arm(
                pose=(Columns("observation.state", 0, 6),),
                pose_encoding="xyz_euler_xyz",
                # recorded 1 = open
                gripper=Gripper(key="action", column=-1, closed="low", threshold=None),
            ),
        ),
        rotation_layout="interleaved",
        views=("observation.image_0",),
        encoded_channel_order="rgb",
        proprio="measured",
        rate_hz=5.0,
        window_s=5.0,
        index_margin=10,
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=STATIC_EPSILON,
        augment="jitter",
        widths={"observation.state": 7, "action": 7},
        empty_text="leave_out",  # where episode_metadata.has_language is false
    ),
    DatasetSpec(
        name="fractal20220817_data",
        storage="rlds",
        storage_name="fractal20220817_data",
        domain_id=1,
        instruction_key="observation.natural_language_instruction",
        arms=(
            Arm(
                pose=(Columns("observation.base_pose_tool_reached", 0, 7),),
                pose_encoding="xyz_quat_xyzw",
                gripper=Gripper(
                    key="observation.gripper_closed", column=-1, closed="high", threshold=None
                ),
            ),
        ),
        rotation_layout="interleaved",
        views=("observation.image",),
        encoded_channel_order="rgb",
        proprio="zero",
        rate_hz=3.0,
        window_s=10.0,
        index_margin=6,
        # the released Google Robot weights act relative to the start and never see the pose
        delta_idx=XYZ,
        mask_proprio_idx=EVERY_CHANNEL,
        static_epsilon=STATIC_EPSILON,
        augment="jitter",
        widths={"observation.base_pose_tool_reached": 7, "observation.gripper_closed": 1},
    ),
    _droid("left", 13, "exterior_image_1_left"),
    _droid("right", 14, "exterior_image_2_left"),
    DatasetSpec(
        name="calvin_rlds",
        storage="rlds",
        storage_name="calvin",
        domain_id=2,
        instruction_key="language_instruction",
        arms=(
            Arm(
                pose=(Columns("observation.robot_obs", 0, 6),),
                pose_encoding="xyz_euler_xyz",
                # recorded -1 = closed
                gripper=Gripper(
                    key="observation.robot_obs", column=-1, closed="low", threshold=0.0
                ),
            ),
        ),
        rotation_layout="interleaved",
        views=("observation.rgb_static", "observation.rgb_gripper"),
        encoded_channel_order="rgb",
        proprio="measured",
        rate_hz=30.0,
        window_s=1.0,
        index_margin=20,
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=STATIC_EPSILON,
        augment="jitter",
        widths={"observation.robot_obs": 15},
    ),
    # LIBERO's own demonstrations, replayed under absolute commands at the full control rate. The
    # sets of that name with relative actions cannot serve.
    _commanded_libero("libero_rlds", "libero", rate_hz=20.0, index_margin=10),
    # recorded by scripts/quickstart.py; the shortest window is 0.3 s
    _commanded_libero("libero_demos", "libero_demos", rate_hz=10.0, index_margin=3),
)
