"""The encoder's free 2 x 4 matrix and the weak-perspective camera nearest to it."""

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.camera import MATRIX_LOGITS, camera_from_matrix, project, rotation_from_euler

SIZE = (40, 60)  # height, width
FRONTAL = torch.eye(2, 3, dtype=torch.float64)


def from_matrix(matrix: torch.Tensor, mean_scale: float = 0.5):
    """``matrix`` in units of ``mean_scale``."""
    rows = (matrix - FRONTAL).flatten(1)
    return camera_from_matrix(torch.cat([rows, rows.new_zeros(len(rows), 2)], 1), SIZE, mean_scale)


def some_rotations(batch: int = 5) -> torch.Tensor:
    return rotation_from_euler(*(torch.rand(3, batch, dtype=torch.float64) * 2 - 1))


def test_zeros_are_a_frontal_centred_face():
    camera = camera_from_matrix(torch.zeros(2, MATRIX_LOGITS), SIZE, 0.5)
    assert camera.rotation.equal(torch.eye(3).expand(2, 3, 3))
    assert camera.scale.tolist() == [0.5, 0.5]
    assert camera.translation.tolist() == [[0, 0]] * 2
    assert camera.inverse_distance.tolist() == [0, 0]
    assert camera.principal_point.tolist() == [[30, 20]] * 2


def test_translation_is_in_half_image_sizes():
    camera = camera_from_matrix(torch.tensor([[0.0] * 6 + [0.5, -0.25]]), SIZE, 0.5)
    assert camera.translation.tolist() == [[15, -5]]


def test_scaled_rotations_come_back_and_project_as_the_matrix_does():
    rotation, scale = some_rotations(), torch.rand(5, dtype=torch.float64) + 0.5
    matrix = scale[:, None, None] * rotation[:, :2]
    camera = from_matrix(matrix)
    torch.testing.assert_close(camera.rotation, rotation)
    torch.testing.assert_close(camera.scale, 0.5 * scale)
    points = torch.randn(5, 7, 3, dtype=torch.float64) * 50
    x, y = (0.5 * matrix @ points.mT).unbind(1)
    torch.testing.assert_close(project(camera, points)[0], torch.stack([30 + x, 20 - y], -1))


def test_any_matrix_gives_the_nearest_scaled_rotation():
    matrix = some_rotations()[:, :2] + 0.4 * torch.randn(5, 2, 3, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    camera = from_matrix(matrix, mean_scale=1.0)
    torch.testing.assert_close(camera.rotation[:, :2], u @ v)
    torch.testing.assert_close(camera.scale, s.mean(1))
    torch.testing.assert_close(camera.rotation @ camera.rotation.mT, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(camera.rotation), torch.ones(5, dtype=torch.float64))

    def distance(rotation, scale):
        return (scale[:, None, None] * rotation[:, :2] - matrix).square().sum((1, 2))

    best = distance(camera.rotation, camera.scale)
    for _ in range(20):
        turned = rotation_from_euler(*(0.05 * torch.randn(3, 5, dtype=torch.float64))) @ camera.rotation
        assert (distance(turned, camera.scale * (1 + 0.05 * torch.randn(5))) > best).all()


def test_rows_are_treated_alike():
    """Swapping the rows of a sheared matrix swaps those of its rotation; Gram-Schmidt would keep the first."""
    matrix = torch.tensor([[[1.0, 0.3, 0.1], [0.0, 0.8, 0.2]]], dtype=torch.float64)
    forward, swapped = from_matrix(matrix), from_matrix(matrix.flip(1))
    torch.testing.assert_close(forward.rotation[:, :2].flip(1), swapped.rotation[:, :2])
    torch.testing.assert_close(forward.scale, swapped.scale)


@pytest.mark.parametrize("rows", [[[0.0, 0, 0], [0, 0, 0]], [[1.0, 0, 0], [1, 0, 0]], [[0.0, 0, 0], [0, 1, 0]]])
def test_matrices_of_no_direction_stay_finite(rows):
    matrix = torch.tensor([rows], dtype=torch.float64, requires_grad=True)
    camera = from_matrix(matrix)
    assert camera.rotation.isfinite().all()
    assert camera.scale.isfinite().all()
    (camera.rotation.sum() + camera.scale.sum()).backward()
    assert matrix.grad.isfinite().all()


def test_gradients():
    logits = (0.3 * torch.randn(3, MATRIX_LOGITS, dtype=torch.float64)).requires_grad_(True)

    def outputs(values):
        camera = camera_from_matrix(values, SIZE, 0.5)
        return camera.rotation, camera.scale, camera.translation

    assert gradcheck(outputs, (logits,))
