"""The dataset table: one row per source. To add a dataset, add a row (and a mixture, if wanted)."""

from __future__ import annotations

from data.poses import ACTION_WIDTH
from data.spec import Arm, DatasetSpec, Gripper

XYZ = (0, 1, 2)
EVERY_CHANNEL = tuple(range(ACTION_WIDTH))
STATIC_EPSILON = 1e-5  # m, and the same number for rotation and gripper, as X-VLA's reader


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
                pose_key="observation.cartesian_position",
                pose_columns=(0, 6),
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
    )


_ROWS = (
    DatasetSpec(
        name="bridge_dataset",
        storage="rlds",
        storage_name="bridge_dataset",
        domain_id=0,
        instruction_key="language_instruction",
        arms=(
            Arm(
                pose_key="observation.state",
                pose_columns=(0, 6),
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
    ),
    DatasetSpec(
        name="fractal20220817_data",
        storage="rlds",
        storage_name="fractal20220817_data",
        domain_id=1,
        instruction_key="observation.natural_language_instruction",
        arms=(
            Arm(
                pose_key="observation.base_pose_tool_reached",
                pose_columns=(0, 7),
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
    ),
    _droid("left", 13, "exterior_image_1_left"),
    _droid("right", 14, "exterior_image_2_left"),
    DatasetSpec(
        name="libero_demos",  # recorded by scripts/quickstart, written by data/writer.py
        storage="rlds",
        storage_name="libero_demos",
        domain_id=3,
        instruction_key="language_instruction",
        arms=(
            Arm(
                # the commanded chain: row 0 is the measured pose, later rows the last command
                pose_key="observation.command_pose",
                pose_columns=(0, 9),
                pose_encoding="xyz_rot6d",
                gripper=Gripper(
                    key="observation.command_pose", column=9, closed="high", threshold=0.0
                ),
            ),
        ),
        rotation_layout="contiguous",
        views=("observation.agentview", "observation.wrist"),
        encoded_channel_order="rgb",
        proprio="commanded",
        rate_hz=10.0,
        window_s=1.5,  # 30 anchors at the simulator's 20 Hz
        index_margin=3,  # the shortest window is 0.3 s
        delta_idx=(),
        mask_proprio_idx=(),
        static_epsilon=STATIC_EPSILON,
    ),
)

DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}


def dataset(name: str) -> DatasetSpec:
    """The row called `name`; a ValueError lists the rows there are."""
    if name not in DATASETS:
        raise ValueError(
            f"unknown dataset {name!r}; the table in data/datasets.py has {', '.join(DATASETS)}"
        )
    return DATASETS[name]
