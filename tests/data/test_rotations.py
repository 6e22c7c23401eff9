import numpy as np
import pytest

from data.faults import FaultError
from data.poses import (
    ROT6D_LAYOUTS,
    check_rotations,
    columns_from_axis_angle,
    columns_from_euler_xyz,
    columns_from_quat_xyzw,
    columns_to_rot6d_contiguous,
    columns_to_rot6d_interleaved,
)

# 90 degrees about z: R = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
QUARTER_TURN = {
    columns_from_quat_xyzw: [0, 0, 2, 2],  # any length
    columns_from_euler_xyz: [0, 0, np.pi / 2],
    columns_from_axis_angle: [0, 0, np.pi / 2],
}


@pytest.mark.parametrize("convert", QUARTER_TURN)
def test_quarter_turn_about_z_in_both_layouts(convert):
    columns = convert(QUARTER_TURN[convert])
    np.testing.assert_allclose(
        columns_to_rot6d_interleaved(columns), [0, -1, 1, 0, 0, 0], atol=1e-15
    )
    np.testing.assert_allclose(
        columns_to_rot6d_contiguous(columns), [0, 1, 0, -1, 0, 0], atol=1e-15
    )


def test_euler_example():
    columns = columns_from_euler_xyz([0.1, 0.2, 0.3])
    interleaved = [0.936293, -0.275096, 0.289629, 0.956425, -0.198669, 0.097843]
    contiguous = [0.936293, 0.289629, -0.198669, -0.275096, 0.956425, 0.097843]
    np.testing.assert_allclose(columns_to_rot6d_interleaved(columns), interleaved, atol=5e-7)
    np.testing.assert_allclose(columns_to_rot6d_contiguous(columns), contiguous, atol=5e-7)
    same = columns_from_quat_xyzw([0.034271, 0.106021, 0.143572, 0.983347])
    np.testing.assert_allclose(columns, same, atol=2e-6)


def test_golden_values_of_the_original(golden):
    z = golden("rotations.npz")
    for ours, theirs in (
        (columns_from_quat_xyzw(z["quat"]), z["quat_xyzw_to_6d"]),
        # w, x, y, z with w moved to the end
        (columns_from_quat_xyzw(np.roll(z["quat"], -1, axis=-1)), z["quat_wxyz_to_6d"]),
        (columns_from_euler_xyz(z["euler"]), z["euler_to_6d"]),
        (columns_from_quat_xyzw(z["sequence_quat"]), z["sequence_6d"]),
    ):
        np.testing.assert_allclose(columns_to_rot6d_interleaved(ours), theirs, atol=1e-12, rtol=0)


def test_axis_angle_without_rotation_and_at_half_a_turn():
    columns = columns_from_axis_angle([[0, 0, 0], [0, 0, np.pi], [np.pi, 0, 0]])
    expected = [[1, 0, 0, 1, 0, 0], [-1, 0, 0, -1, 0, 0], [1, 0, 0, -1, 0, 0]]
    np.testing.assert_allclose(columns_to_rot6d_interleaved(columns), expected, atol=1e-15)


def test_a_zero_quaternion_is_an_error():
    with pytest.raises(ValueError, match="length zero"):
        columns_from_quat_xyzw([[0, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("quat", [[0, 0, 0, 1e-30], [1e-320, 0, 0, 0]])
def test_a_quaternion_of_nearly_no_length_is_an_error(quat):
    with pytest.raises(FaultError, match="frame 0 has length zero") as error:
        columns_from_quat_xyzw([quat])
    assert error.value.kind == "zero_rotation"


@pytest.mark.parametrize("layout", ROT6D_LAYOUTS)
def test_rotations_are_tested_in_their_layout(layout):
    rng = np.random.default_rng(0)
    columns = columns_from_quat_xyzw(rng.normal(size=(50, 4)))
    (other,) = set(ROT6D_LAYOUTS) - {layout}
    good = ROT6D_LAYOUTS[layout](columns)
    for dtype in (np.float64, np.float32, np.float16):
        check_rotations(good.astype(dtype).astype(np.float64), (layout,))
    check_rotations(good[:0], (layout,))
    with pytest.raises(FaultError, match=f"frame 0.* it is one in layout {layout}"):
        check_rotations(good, (other,))
    good[7] *= 1.0011
    with pytest.raises(FaultError, match="the rotation of frame 7"):
        check_rotations(good, (layout,))
