import numpy as np
import pytest
import torch

from nl3dmm.assets import embedded_template
from nl3dmm.synthetic.layers import (
    FaceSurface,
    draw_hairs,
    draw_lines,
    draw_polygon,
    draw_spots,
    smooth_curve,
    smooth_step,
)


@pytest.fixture(scope="module")
def surface() -> FaceSurface:
    return FaceSurface(embedded_template((64, 80)))


def centroid(layer: torch.Tensor, surface: FaceSurface) -> np.ndarray:
    """Mean sheet position (mm) of a drawing."""
    weight = np.repeat(np.repeat(layer.numpy(), surface.oversampling, 0), surface.oversampling, 1)[..., None]
    return (surface.sheet * weight).sum((0, 1)) / weight.sum()


def test_unwrapping_keeps_height_and_has_the_midline_at_zero(surface):
    points = np.array([[0.0, 5.0, 110.0], [30.0, -20.0, 100.0], [-30.0, -20.0, 100.0]])
    sheet = surface.unwrap(points)
    assert np.allclose(sheet[:, 1], points[:, 1])
    assert sheet[0, 0] == pytest.approx(0)
    assert sheet[1, 0] == pytest.approx(-sheet[2, 0])
    assert 20 < sheet[1, 0] < 40


@pytest.mark.parametrize("target", [(30.0, 20.0), (-25.0, -20.0)])
def test_drawings_land_where_they_were_put(surface, target):
    rng = np.random.default_rng(0)
    centre = np.array([target])
    spot = surface.pull(draw_spots(surface, rng, centre, np.array([4.0]), np.array([1.0]), 0.3))
    square = surface.pull(draw_polygon(surface, centre + 4.0 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]), 0.3))
    line = surface.pull(draw_lines(surface, [centre + np.array([[-4.0, 0], [4.0, 0]])], 1.0, 0.3))
    hairs = surface.pull(draw_hairs(surface, rng, centre.repeat(40, 0), rng.uniform(-4, 4, 40), np.full(40, 3.0)))
    for layer in (spot, square, line, hairs):
        assert 0 <= float(layer.min()) <= float(layer.max()) <= 1.0001
        assert np.abs(centroid(layer, surface) - target).max() < 2.5
    mirrored = surface.pull(draw_lines(surface, [centre + np.array([[-4.0, 0], [4.0, 0]])], 1.0, 0.3), mirrored=True)
    assert np.abs(centroid(mirrored, surface) - (-target[0], target[1])).max() < 2.5


def test_thin_lines_are_averaged_not_lost(surface):
    """A line much thinner than a texel covers the same share of the face wherever it lies within the texel."""
    totals = [
        float(surface.pull(draw_lines(surface, [np.array([[25.0, y], [45.0, y]])], 0.25, 0.15)).sum())
        for y in np.linspace(-20.0, -14.0, 9)
    ]
    assert min(totals) > 0.5 * max(totals) > 0


def test_noise_is_normalised_and_scales(surface):
    fine, coarse = (surface.noise(np.random.default_rng(1), size) for size in (4.0, 40.0))
    for noise in (fine, coarse):
        assert abs(float(noise.mean())) < 1e-3
        assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    fine_step, coarse_step = (np.abs(np.diff(noise, axis=1)).mean() for noise in (fine, coarse))
    assert fine_step > 3 * coarse_step


def test_averaging_a_constant_keeps_it(surface):
    assert torch.equal(surface.average(np.full(surface.sheet.shape[:2], 0.25)), torch.full((64, 80), 0.25))


def test_smooth_curve_passes_through_its_points():
    points = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    assert np.allclose(smooth_curve(points, 5)[::2], points)
    assert np.allclose(smooth_curve(points, 6, closed=True)[::2], points)


def test_smooth_step_is_a_soft_edge():
    assert np.allclose(smooth_step(np.array([-20.0, 0.0, 20.0])), [0, 0.5, 1], atol=1e-6)
