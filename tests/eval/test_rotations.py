"""Worked examples that one can check by eye, and round trips."""

from __future__ import annotations

import numpy as np
import pytest

from eval import rotations as r

QUARTER_ABOUT_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
# Fixed-axes turns of 0.1, 0.2 and 0.3 rad about x, y and z.
EULER = (0.1, 0.2, 0.3)
EULER_MATRIX = np.array(
    [
        [0.936293, -0.275096, 0.218351],
        [0.289629, 0.956425, -0.036957],
        [-0.198669, 0.097843, 0.975170],
    ]
)
EULER_QUAT = np.array([0.034271, 0.106021, 0.143572, 0.983347])


def random_matrices(n: int) -> np.ndarray:
    quats = np.random.default_rng(0).normal(size=(n, 4))
    return r.quat_xyzw_to_matrix(quats)


def test_six_numbers_of_a_quarter_turn_about_z() -> None:
    np.testing.assert_array_equal(
        r.matrix_to_rot6d_interleaved(QUARTER_ABOUT_Z), [0, -1, 1, 0, 0, 0]
    )
    np.testing.assert_array_equal(
        r.matrix_to_rot6d_contiguous(QUARTER_ABOUT_Z), [0, 1, 0, -1, 0, 0]
    )
    np.testing.assert_allclose(r.rot6d_interleaved_to_matrix([0, -1, 1, 0, 0, 0]), QUARTER_ABOUT_Z)
    np.testing.assert_allclose(r.rot6d_contiguous_to_matrix([0, 1, 0, -1, 0, 0]), QUARTER_ABOUT_Z)


def test_quarter_turn_in_every_other_form() -> None:
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        r.quat_xyzw_to_matrix([0, 0, half, half]), QUARTER_ABOUT_Z, atol=1e-15
    )
    np.testing.assert_allclose(r.matrix_to_quat_xyzw(QUARTER_ABOUT_Z), [0, 0, half, half])
    np.testing.assert_allclose(r.matrix_to_axis_angle(QUARTER_ABOUT_Z), [0, 0, np.pi / 2])
    np.testing.assert_allclose(
        r.axis_angle_to_matrix([0, 0, np.pi / 2]), QUARTER_ABOUT_Z, atol=1e-15
    )
    np.testing.assert_allclose(r.matrix_to_euler_xyz(QUARTER_ABOUT_Z), [0, 0, np.pi / 2])


def test_worked_euler_example() -> None:
    matrix = r.euler_xyz_to_matrix(EULER)
    np.testing.assert_allclose(matrix, EULER_MATRIX, atol=5e-7)
    np.testing.assert_allclose(r.matrix_to_euler_xyz(matrix), EULER, atol=1e-12)
    np.testing.assert_allclose(r.matrix_to_quat_xyzw(matrix), EULER_QUAT, atol=5e-7)
    np.testing.assert_allclose(
        r.matrix_to_rot6d_interleaved(matrix),
        [0.936293, -0.275096, 0.289629, 0.956425, -0.198669, 0.097843],
        atol=5e-7,
    )
    np.testing.assert_allclose(
        r.matrix_to_rot6d_contiguous(matrix),
        [0.936293, 0.289629, -0.198669, -0.275096, 0.956425, 0.097843],
        atol=5e-7,
    )


def test_the_wrong_layout_turns_the_hand_by_84_degrees() -> None:
    wrong = r.rot6d_contiguous_to_matrix(r.matrix_to_rot6d_interleaved(EULER_MATRIX))
    angle = np.linalg.norm(r.matrix_to_axis_angle(EULER_MATRIX.T @ wrong))
    assert np.degrees(angle) == pytest.approx(84.18, abs=0.01)


@pytest.mark.parametrize("layout", sorted(r.ROT6D_LAYOUTS))
def test_layouts_invert_themselves(layout: str) -> None:
    matrices = random_matrices(50)
    form = r.ROT6D_LAYOUTS[layout]
    np.testing.assert_allclose(form.to_matrix(form.from_matrix(matrices)), matrices, atol=1e-12)


def test_six_numbers_need_not_be_orthonormal() -> None:
    # The first vector keeps its direction, the second gives up what it has along the first.
    np.testing.assert_allclose(
        r.rot6d_contiguous_to_matrix([2, 0, 0, 5, 3, 0]), np.eye(3), atol=1e-15
    )


@pytest.mark.parametrize("zeros", [[0.0] * 6, [1, 0, 0, 2, 0, 0]])
def test_six_numbers_without_a_rotation_are_refused(zeros: list[float]) -> None:
    with pytest.raises(ValueError, match="no rotation"):
        r.rot6d_contiguous_to_matrix(zeros)


def test_quaternions_have_positive_w_and_every_branch_inverts() -> None:
    matrices = np.concatenate((random_matrices(200), np.diag([1.0, -1.0, -1.0])[None]))
    quats = r.matrix_to_quat_xyzw(matrices)
    assert (quats[:, 3] >= 0).all()
    assert {int(np.argmax(np.abs(q))) for q in quats} == {0, 1, 2, 3}
    np.testing.assert_allclose(r.quat_xyzw_to_matrix(quats), matrices, atol=1e-12)


def test_quaternion_orders() -> None:
    np.testing.assert_array_equal(r.quat_wxyz_to_xyzw([1, 2, 3, 4]), [2, 3, 4, 1])
    np.testing.assert_array_equal(r.quat_xyzw_to_wxyz([2, 3, 4, 1]), [1, 2, 3, 4])


def test_axis_angles_stay_within_half_a_turn() -> None:
    turned = r.matrix_to_axis_angle(r.axis_angle_to_matrix([0, 0, 1.5 * np.pi]))
    np.testing.assert_allclose(turned, [0, 0, -0.5 * np.pi])
    vectors = np.random.default_rng(1).uniform(-1.5, 1.5, (50, 3))
    np.testing.assert_allclose(
        r.matrix_to_axis_angle(r.axis_angle_to_matrix(vectors)), vectors, atol=1e-12
    )
    half_turn = np.linalg.norm(r.matrix_to_axis_angle(np.diag([1.0, -1.0, -1.0])))
    assert half_turn == pytest.approx(np.pi)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7])
def test_tiny_turns_do_not_divide_by_zero(angle: float) -> None:
    vector = r.matrix_to_axis_angle(r.axis_angle_to_matrix([angle, 0, 0]))
    np.testing.assert_allclose(vector, [angle, 0, 0], atol=1e-15)
