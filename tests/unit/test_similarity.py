"""The best similarity: it undoes any, is never a mirror image, and carries other points along."""

import pytest
import torch

from nl3dmm.geometry.camera import rotation_from_euler
from nl3dmm.geometry.similarity import Similarity, similarity, similarity_aligned


@pytest.fixture
def moved():
    """Points, a similarity, and where it takes them; float64."""
    points = torch.randn(3, 20, 3, dtype=torch.float64)
    turn = rotation_from_euler(*torch.randn(3, 3, dtype=torch.float64))
    known = Similarity(torch.tensor([0.1, 2.0, 30.0]).double(), turn, torch.randn(3, 3, dtype=torch.float64))
    return points, known, known.apply(points)


def test_finds_what_was_done(moved):
    points, known, target = moved
    found = similarity(points, target)
    for name in ("scale", "rotation", "translation"):
        torch.testing.assert_close(getattr(found, name), getattr(known, name))
    others = torch.randn(3, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(found.apply(others), known.apply(others))


def test_applying_is_scale_times_rotation_plus_translation(moved):
    points, known, target = moved
    expected = known.scale[1] * known.rotation[1] @ points[1, 4] + known.translation[1]
    torch.testing.assert_close(target[1, 4], expected)


def test_mirror_images_stay_mirror_images(moved):
    points, _, target = moved
    found = similarity(points * torch.tensor([-1, 1, 1]), target)
    torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(3, dtype=torch.float64))


def test_aligned_points_have_a_gradient(moved):
    points, _, target = moved
    noisy = (target + 0.1 * torch.randn_like(target))[:1, :6]
    leaf = points[:1, :6].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: similarity_aligned(p, noisy), leaf)
