"""Dataset rows for X-VLA's HDF5 sets. Views and instruction are named by the meta file of each.

X-VLA decoded their images with OpenCV and took the result, BGR, for RGB. So the released weights
saw the standard decoding with red and blue exchanged, which is the true image where OpenCV had
encoded an RGB array. A set that a standard encoder wrote can say `"encoded_channel_order": "rgb"`
in its meta file to be seen in true colours.
"""

from __future__ import annotations

from collections.abc import Mapping

from data.rows.rlds import EVERY_CHANNEL, STATIC_EPSILON, XYZ
from data.spec import Arm, Columns, DatasetSpec, Gripper

Widths = Mapping[str, int]  # array -> its columns

AGILEX_SCALE = 50.0  # AIR-AGILEX: the reading times this is below 1 when closed


def _arm(
    pose_key: str,
    first: int,
    encoding: str,
    gripper: Gripper,
    *,
    width: int,
    clock_key: str | None = None,
) -> Arm:
    """An arm whose pose lies in one array, from column `first` on."""
    pose = (Columns(pose_key, first, first + width),)
    return Arm(pose=pose, pose_encoding=encoding, gripper=gripper, clock_key=clock_key)


def _gripper(
    key: str, column: int, closed: str, threshold: float | None, scale: float = 1.0
) -> Gripper:
    return Gripper(key=key, column=column, closed=closed, threshold=threshold, scale=scale)


def _row(
    name: str,
    domain_id: int,
    arms: tuple[Arm, ...],
    *,
    widths: Widths,
    rate_hz: float,
    window_s: float,
    index_margin: int,
    proprio: str = "measured",
    rotation_layout: str = "interleaved",
    augment: str = "jitter",
    delta_idx: tuple[int, ...] = (),
    mask_proprio_idx: tuple[int, ...] = (),
    index_step: int = 1,
    picture_offset: int = 0,
) -> DatasetSpec:
    """A row of X-VLA's table: values that all of its HDF5 sets share, and those of this set."""
    return DatasetSpec(
        name=name,
        storage="hdf5",
        storage_name=name,
        domain_id=domain_id,
        instruction_key=None,
        arms=arms,
        rotation_layout=rotation_layout,
        views=(),
        encoded_channel_order="bgr_swapped",
        proprio=proprio,
        rate_hz=rate_hz,
        window_s=window_s,
        index_margin=index_margin,
        delta_idx=delta_idx,
        mask_proprio_idx=mask_proprio_idx,
        static_epsilon=STATIC_EPSILON,
        augment=augment,
        index_step=index_step,
        picture_offset=picture_offset,
        widths=widths,
    )


def _euler(key: str, first: int, gripper: Gripper) -> Arm:
    return _arm(key, first, "xyz_euler_xyz", gripper, width=6)


def _rot6d(key: str, closed: tuple[str, float], encoding: str = "xyz_rot6d_as_recorded") -> Arm:
    """Ten columns: xyz, a 6-D rotation that is copied, the gripper."""
    return _arm(key, 0, encoding, _gripper(key, -1, *closed), width=9)


def _robomind(name: str, domain_id: int, arms: tuple[Arm, ...], widths: Widths) -> DatasetSpec:
    return _row(name, domain_id, arms, widths=widths, rate_hz=30.0, window_s=4.0, index_margin=30)


def _droid(name: str, domain_id: int) -> DatasetSpec:
    pose, gripper = "observation/cartesian_position", "observation/gripper_position"
    arms = (_euler(pose, 0, _gripper(gripper, -1, "high", None)),)
    widths = {pose: 6, gripper: 1}
    return _row(name, domain_id, arms, widths=widths, rate_hz=15.0, window_s=4.0, index_margin=30)


def _robotwin(name: str) -> DatasetSpec:
    arms = tuple(
        _arm(
            f"endpose/{side}_endpose",
            0,
            "xyz_quat_wxyz_as_xyzw",
            _gripper(f"endpose/{side}_gripper", -1, "low", None),  # recorded 1 = open
            width=7,
        )
        for side in ("left", "right")
    )
    both = [f"endpose/{side}_" for side in ("left", "right")]
    widths = {f"{arm}endpose": 7 for arm in both} | {f"{arm}gripper": 1 for arm in both}
    return _row(name, 6, arms, widths=widths, rate_hz=30.0, window_s=1.0, index_margin=10)


_ROBOMIND_POSES = "puppet/end_effector"
_ROBOMIND_JOINTS = "puppet/joint_position"
_ROBOMIND_ARM = _euler(_ROBOMIND_POSES, 0, _gripper(_ROBOMIND_JOINTS, -1, "high", None))

_SIMULATED = (
    _row(
        "Calvin",
        2,
        # recorded -1 = closed
        (_euler("proprio", 0, _gripper("proprio", -1, "low", 0.0)),),
        widths={"proprio": 7},
        rate_hz=30.0,
        window_s=1.0,
        index_margin=20,
    ),
    _row(
        "libero",
        3,
        (_rot6d("abs_action_6d", ("high", 0.0), "xyz_rot6d"),),
        widths={"abs_action_6d": 10},
        rate_hz=30.0,  # nominal: the simulator runs at 20 Hz
        window_s=1.0,
        index_margin=10,
        proprio="commanded",
        rotation_layout="contiguous",
        augment="none",
        picture_offset=1,  # row i is the goal of command i, image i + 1 was taken after it
    ),
    _robotwin("robotwin2_abs_ee"),
    _robotwin("robotwin2_clean"),
    _row(
        "robocasa-human",
        7,
        (
            Arm(
                pose=(
                    Columns("action_dict/abs_pos", 0, 3),
                    Columns("action_dict/abs_rot_6d", 0, 6),
                ),
                pose_encoding="xyz_rot6d_as_recorded",  # probably first two *rows* of the matrix
                gripper=_gripper("action_dict/gripper", -1, "high", 0.0),
            ),
        ),
        widths={
            "action_dict/abs_pos": 3,
            "action_dict/abs_rot_6d": 6,
            "action_dict/gripper": 1,
        },
        rate_hz=30.0,
        window_s=1.0,
        index_margin=30,
        proprio="commanded",
    ),
    _row(
        "VLABench",
        8,
        (_euler("proprio", 0, _gripper("proprio", -1, "high", None)),),
        widths={"proprio": 7},
        rate_hz=30.0,
        window_s=1.0,
        index_margin=15,
    ),
)

_ONE_ARM = (
    _row(
        "Bridge",
        0,
        # recorded 1 = open
        (_euler("proprio", 0, _gripper("action", -1, "low", None)),),
        widths={"proprio": 7, "action": 7},
        rate_hz=5.0,
        window_s=5.0,
        index_margin=10,
    ),
    _row(
        "RT1",
        1,
        (
            _arm(
                "eef_quat_orientation",
                0,
                "xyz_quat_xyzw",
                _gripper("gripper", -1, "high", None),
                width=7,
            ),
        ),
        widths={"eef_quat_orientation": 7, "gripper": 1},
        rate_hz=3.0,
        window_s=10.0,
        index_margin=6,
        # as the released weights; X-VLA's present reader emits absolute positions
        proprio="zero",
        delta_idx=XYZ,
        mask_proprio_idx=EVERY_CHANNEL,
    ),
    _row(
        "widowx-air",
        4,
        (_rot6d("abs_action_6d", ("low", 0.5)),),
        widths={"abs_action_6d": 10},
        rate_hz=5.0,
        window_s=5.0,
        index_margin=15,
        proprio="commanded",
    ),
    # seven joints, or six, and the gripper
    _robomind("robomind-franka", 11, (_ROBOMIND_ARM,), {_ROBOMIND_POSES: 6, _ROBOMIND_JOINTS: 8}),
    _robomind("robomind-ur", 12, (_ROBOMIND_ARM,), {_ROBOMIND_POSES: 6, _ROBOMIND_JOINTS: 7}),
    _droid("Droid-Left", 13),
    _droid("Droid-Right", 14),
    _row(
        "AIRBOT",
        18,
        (_rot6d("eef_6d", ("low", 0.5)),),
        widths={"eef_6d": 10},
        rate_hz=10.0,
        window_s=3.0,
        index_margin=10,
    ),
)

_TWO_ARMS = (
    _row(
        "AIR-AGILEX-HQ",
        5,
        tuple(
            _arm(
                "observations/eef_6d",
                first,
                "xyz_rot6d",
                _gripper("observations/eef_6d", first + 9, "low", 1.0, AGILEX_SCALE),
                width=9,
                clock_key=f"observations/eef_{side}_time",
            )
            for first, side in ((0, "left"), (10, "right"))
        ),
        widths={"observations/eef_6d": 20},
        rate_hz=30.0,  # about; each arm has its own clock
        window_s=2.0,
        index_margin=60,
    ),
    _row(
        "AIR-AGILEX",
        10,
        tuple(
            _arm(
                "observations/eef_quaternion",
                first,
                "xyz_quat_xyzw",
                _gripper("observations/eef_quaternion", first + 7, "low", 1.0, AGILEX_SCALE),
                width=7,
            )
            for first in (0, 8)
        ),
        widths={"observations/eef_quaternion": 16},
        rate_hz=30.0,
        window_s=2.0,
        index_margin=30,
        index_step=2,
    ),
    _robomind(
        "robomind-agilex",
        16,
        tuple(
            _euler(key, 0, _gripper(key, -1, "high", 2.5))
            for key in ("puppet/end_effector_left", "puppet/end_effector_right")
        ),
        {"puppet/end_effector_left": 7, "puppet/end_effector_right": 7},
    ),
    _robomind(
        "robomind-franka-dual",
        17,
        tuple(
            _euler(_ROBOMIND_POSES, first, _gripper(_ROBOMIND_JOINTS, column, "high", None))
            for first, column in ((0, 7), (6, -1))
        ),
        {_ROBOMIND_POSES: 12, _ROBOMIND_JOINTS: 16},
    ),
)

HDF5_ROWS = (*_SIMULATED, *_ONE_ARM, *_TWO_ARMS)
