"""Dataset rows for recordings in the form of their first publication, before any conversion.

Each row has the conventions of the same data in RLDS; only storage and keys differ.
"""

from __future__ import annotations

import dataclasses

from data.rows.rlds import RLDS_ROWS
from data.spec import Arm, Columns, Gripper

_RLDS = {row.name: row for row in RLDS_ROWS}

RAW_ROWS = (
    dataclasses.replace(
        _RLDS["calvin_rlds"],
        name="calvin_published",
        storage="calvin",
        storage_name="training",
        instruction_key=None,
        arms=(
            Arm(
                pose=(Columns("robot_obs", 0, 6),),
                pose_encoding="xyz_euler_xyz",
                # recorded -1 = closed
                gripper=Gripper(key="robot_obs", column=-1, closed="low", threshold=0.0),
            ),
        ),
        views=("rgb_static", "rgb_gripper"),
        widths={"robot_obs": 15},
    ),
    dataclasses.replace(
        _RLDS["bridge_dataset"],
        name="bridge_raw",
        storage="bridge_raw",
        storage_name="raw",
        instruction_key=None,
        arms=(
            Arm(
                pose=(Columns("full_state", 0, 6),),
                pose_encoding="xyz_euler_xyz",
                # recorded 1 = open
                gripper=Gripper(key="actions", column=-1, closed="low", threshold=None),
            ),
        ),
        views=("image_0",),
        widths={"full_state": 7, "actions": 7},
    ),
)
