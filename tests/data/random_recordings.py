"""Random recordings that fit a dataset row: moving arms, turning hands, switching grippers."""

import numpy as np

ROTATION_START = {
    "xyz_euler_xyz": 3,
    "xyz_axis_angle": 3,
    "xyz_quat_xyzw": 4,
    "xyz_quat_wxyz_as_xyzw": 4,
    "xyz_rot6d": 6,
}


def widths(spec):
    """Columns that each array of a row must have at least."""
    found = {}
    for columns in [*spec.joints, *(c for arm in spec.arms for c in arm.pose)]:
        found[columns.key] = max(found.get(columns.key, 1), columns.end)
    for arm in spec.arms:
        key, column = arm.gripper.key, arm.gripper.column
        # one column more where the last one is the gripper, so that it is none of the pose
        found[key] = max(found.get(key, 0) + (column == -1), column + 1, 1)
        if arm.clock_key is not None:
            found[arm.clock_key] = 1
    return found


def recording(spec, frames, seed):
    """Arrays float32[T, columns] by key, with stretches in which nothing moves."""
    rng = np.random.default_rng(seed)
    still = rng.random(frames) < 0.3
    raw = {}
    for key, width in widths(spec).items():
        rows = rng.normal(0, 0.5, width) + np.cumsum(rng.normal(0, 0.02, (frames, width)), axis=0)
        for frame in range(1, frames):
            if still[frame]:
                rows[frame] = rows[frame - 1]
        raw[key] = rows.astype(np.float32)
    for arm in spec.arms:
        gripper = arm.gripper
        centre = (0.5 if gripper.threshold is None else gripper.threshold) / gripper.scale
        readings = centre + rng.choice((-0.4, 0.4), frames) / gripper.scale
        readings[still] = readings[0]
        raw[gripper.key][:, gripper.column] = readings
        if arm.clock_key is not None:
            jitter = np.cumsum(rng.uniform(0.5, 1.5, frames)) / spec.rate_hz
            raw[arm.clock_key] = 37.0 + jitter  # float64: clocks are read as they are
    return raw
