"""Shape losses: known values, minima, per-sample shapes, who gets the gradient."""

import torch
from torch.autograd import gradcheck

from nl3dmm.losses.shape import (
    landmark_distance,
    laplacian_smoothness,
    residual_magnitude,
    residual_soft_symmetry,
)

FULL = torch.ones(5, 6, dtype=torch.bool)


def some_map(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 5, 6, dtype=torch.float64)


def test_landmark_distance_is_the_mean_over_points():
    target = torch.zeros(2, 2, 2)
    landmarks = torch.tensor([[[3.0, 4], [0, 0]], [[0, 0], [0, 0]]])
    torch.testing.assert_close(landmark_distance(landmarks, target), torch.tensor([2.5, 0]), atol=2e-4, rtol=0)


def test_landmark_distance_within_the_tolerance_is_none():
    landmarks = torch.tensor([[[3.0, 4], [0, 0]], [[3, 4], [0, 0]]])
    distance = landmark_distance(landmarks, torch.zeros(2, 2, 2), torch.tensor([2.0, 6.0]))
    torch.testing.assert_close(distance, torch.tensor([1.5, 0]), atol=2e-4, rtol=0)


def test_landmark_distance_has_a_finite_gradient_at_its_minimum():
    landmarks = torch.zeros(1, 68, 2, requires_grad=True)
    landmark_distance(landmarks, torch.zeros(1, 68, 2)).sum().backward()
    assert landmarks.grad.eq(0).all()


def test_a_linear_map_is_perfectly_smooth():
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    ramp = torch.stack([rows, 2 * columns - rows, torch.ones(5, 6)])[None]
    torch.testing.assert_close(laplacian_smoothness(ramp, FULL), torch.zeros(1), atol=1e-9, rtol=0)


def test_laplacian_of_a_parabola_is_known():
    _, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    parabola = torch.stack([torch.zeros(5, 6), torch.zeros(5, 6), columns**2])[None]
    # centre - mean of four neighbours = c^2 - (2 c^2 + (c - 1)^2 + (c + 1)^2) / 4 = -1 / 2
    torch.testing.assert_close(laplacian_smoothness(parabola, FULL), torch.tensor([0.25]))


def test_smoothness_looks_only_where_all_four_neighbours_are_inside():
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1:4, 1:4] = True  # one texel, (2, 2), has all its neighbours
    spike, far = torch.zeros(1, 3, 5, 6), torch.zeros(1, 3, 5, 6)
    spike[0, 0, 2, 2], far[0, 0, 1, 1], far[0, 0, 0, 5] = 2.0, 9.0, 9.0
    assert laplacian_smoothness(spike, mask).tolist() == [4.0]
    assert laplacian_smoothness(far, mask).tolist() == [0.0]


def test_residual_magnitude_is_the_l1_mean():
    residual, mask = torch.zeros(2, 3, 5, 6), FULL.clone()
    residual[0], residual[1, 1] = -0.5, 3.0
    assert residual_magnitude(residual, mask).tolist() == [0.5, 1.0]


def test_soft_symmetry_compares_hidden_depth_with_the_mirrored_side():
    residual, hidden = torch.zeros(2, 3, 2, 4), torch.zeros(2, 2, 4, dtype=torch.bool)
    residual[0, 2, 0] = torch.tensor([1.0, 0, 0, 5])
    residual[0, :2] = 100 * torch.rand(2, 2, 4)  # x and y are free
    hidden[0, 0, 0] = True
    assert residual_soft_symmetry(residual, hidden).tolist() == [4.0, 0.0]
    symmetric = residual + residual.flip(-1)
    assert residual_soft_symmetry(symmetric, torch.ones_like(hidden)).tolist() == [0.0, 0.0]


def test_soft_symmetry_holds_the_visible_side_fixed():
    residual = torch.zeros(1, 3, 2, 4)
    residual[0, 2, 0] = torch.tensor([1.0, 0, 0, 5])
    residual.requires_grad_()
    hidden = torch.zeros(1, 2, 4, dtype=torch.bool)
    hidden[0, 0, 0] = True
    residual_soft_symmetry(residual, hidden).sum().backward()
    expected = torch.zeros(1, 3, 2, 4)
    expected[0, 2, 0, 0] = -1
    assert residual.grad.equal(expected)


def test_empty_masks_give_zero_and_finite_gradients():
    uv_map, empty = torch.zeros(2, 3, 5, 6, requires_grad=True), torch.zeros(5, 6, dtype=torch.bool)
    terms = [
        laplacian_smoothness(uv_map, empty),
        residual_magnitude(uv_map, empty),
        residual_soft_symmetry(uv_map, empty.expand(2, -1, -1)),
    ]
    for term in terms:
        assert term.tolist() == [0, 0]
    sum(term.sum() for term in terms).backward()
    assert uv_map.grad.eq(0).all()


def test_gradcheck():
    mask = torch.rand(5, 6) > 0.1
    uv_map = some_map().requires_grad_()
    assert gradcheck(lambda a: laplacian_smoothness(a, mask), uv_map)
    assert gradcheck(lambda a: residual_magnitude(a, mask), uv_map)
    points = [torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert gradcheck(landmark_distance, points)
    # The mirrored side is a constant: hide one half only, and let only that half vary.
    hidden = torch.zeros(2, 5, 6, dtype=torch.bool)
    hidden[..., :3] = True
    seen = some_map()[..., 3:]
    half = seen.flip(-1).detach() + some_map()[..., :3]
    assert gradcheck(lambda h: residual_soft_symmetry(torch.cat([h, seen], -1), hidden), half.requires_grad_())
