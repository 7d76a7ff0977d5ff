"""Spherical-harmonics light: constants, order, white, Lambert; the sRGB curve."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from nl3dmm.geometry.lighting import (
    SH_CONSTANTS,
    decode_srgb,
    directional_light,
    encode_srgb,
    light_albedo,
    sh_basis,
    shade,
    white_light,
)


def unit_normals(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, 3, dtype=torch.float64), dim=-1)


def sphere_quadrature() -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials up to degree 15 over the sphere exactly."""
    z, weight = np.polynomial.legendre.leggauss(8)
    phi = np.arange(16) * 2 * np.pi / 16
    radius = np.sqrt(1 - z**2)[:, None]
    grid = np.stack([radius * np.cos(phi), radius * np.sin(phi), np.broadcast_to(z[:, None], (8, 16))], -1)
    weights = np.repeat(weight, 16) * 2 * np.pi / 16
    return torch.from_numpy(grid.reshape(-1, 3)), torch.from_numpy(weights)


def test_constants_are_those_of_the_conventions():
    expected = [1 / 4, 3 / 4, 15 / 4, 5 / 16, 15 / 16]
    assert pytest.approx([math.sqrt(value / math.pi) for value in expected], rel=1e-15) == SH_CONSTANTS
    assert pytest.approx([0.282095, 0.488603, 1.092548, 0.315392, 0.546274], abs=1e-6) == SH_CONSTANTS


def test_order_of_the_basis():
    x, y, z = 0.36, 0.48, 0.8
    polynomials = [1, y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
    constants = [0.282095, *[0.488603] * 3, *[1.092548] * 2, 0.315392, 1.092548, 0.546274]
    expected = torch.tensor([c * p for c, p in zip(constants, polynomials, strict=True)])
    torch.testing.assert_close(sh_basis(torch.tensor([x, y, z])), expected, atol=1e-6, rtol=0)


def test_basis_is_orthonormal_on_the_sphere():
    directions, weights = sphere_quadrature()
    basis = sh_basis(directions)
    torch.testing.assert_close(basis.T @ (weights[:, None] * basis), torch.eye(9, dtype=torch.float64))


def test_white_light_shades_every_normal_with_its_brightness():
    normals = unit_normals(2, 5).float()
    torch.testing.assert_close(shade(normals, white_light(2)), torch.ones(2, 5, 3))
    torch.testing.assert_close(shade(normals, white_light(2, 0.3)), torch.full((2, 5, 3), 0.3))


def test_white_light_on_white_albedo_is_one():
    ones = torch.ones(1, 5, 3)
    shading = shade(unit_normals(1, 5).float(), white_light(1))
    for encoding in ("none", "srgb"):
        torch.testing.assert_close(light_albedo(ones, shading, encoding), ones)


def test_shading_is_linear_per_colour_channel_and_not_clamped():
    normals = torch.tensor([[[0.0, 0, 1], [0, 0, -1]]])
    coefficients = torch.zeros(1, 3, 9)
    coefficients[0, 1, 2] = 2.0
    expected = torch.tensor([[0, 2 * SH_CONSTANTS[1], 0], [0, -2 * SH_CONSTANTS[1], 0]])
    torch.testing.assert_close(shade(normals, coefficients)[0], expected)


@pytest.mark.parametrize("points", [0, 1, 6])
def test_shading_is_basis_times_coefficients(points):
    normals, coefficients = unit_normals(2, points), torch.randn(2, 3, 9, dtype=torch.float64)
    expected = torch.einsum("bpk,bck->bpc", sh_basis(normals), coefficients)
    torch.testing.assert_close(shade(normals, coefficients), expected)


def test_directional_light_is_the_projection_of_the_clamped_cosine():
    direction, intensity = unit_normals(1), torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64)
    coefficients = directional_light(direction, intensity)
    facing = shade(direction[:, None], coefficients)[0, 0]
    torch.testing.assert_close(facing, 1.0625 * intensity[0])
    # Against the integral of max(cos, 0) times the basis, on a fine sphere around the light.
    z, weight = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(200))
    zonal = torch.stack([torch.zeros_like(z), torch.zeros_like(z), z], -1)
    axis = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    integral = (2 * math.pi * weight * z.clamp_min(0)) @ sh_basis(zonal)
    made = directional_light(axis, torch.ones(1, 3, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(made[[0, 2, 6]], integral[[0, 2, 6]], atol=1e-4, rtol=0)
    assert made[[1, 3, 4, 5, 7, 8]].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("srgb", "linear"), [(0.0, 0.0), (0.02, 0.02 / 12.92), (0.5, 0.21404114), (188 / 255, 0.50288646), (1.0, 1.0)]
)
def test_srgb_known_values(srgb, linear):
    torch.testing.assert_close(decode_srgb(torch.tensor(srgb)), torch.tensor(linear), atol=1e-6, rtol=0)
    torch.testing.assert_close(encode_srgb(torch.tensor(linear)), torch.tensor(srgb), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=100)
@given(st.floats(-0.5, 4))
def test_srgb_round_trip(value):
    # The standard's two pieces miss each other by 3e-8 at the joint.
    there = decode_srgb(torch.tensor(value, dtype=torch.float64))
    assert float(encode_srgb(there)) == pytest.approx(value, abs=1e-6)


def test_encodings_light_in_the_space_they_name():
    albedo, shading = torch.full((4,), 0.5), torch.tensor([0.0, 0.5, 1.0, 2.0])
    torch.testing.assert_close(light_albedo(albedo, shading, "none"), 0.5 * shading)
    linear = decode_srgb(light_albedo(albedo, shading, "srgb"))
    torch.testing.assert_close(linear, 0.21404114 * shading, atol=1e-6, rtol=1e-5)


def test_srgb_gradients_are_finite_at_zero_and_below():
    values = torch.tensor([-1.0, 0.0, 1e-12, 0.0031308, 1.0, 8.0], requires_grad=True)
    for function in (encode_srgb, decode_srgb):
        (gradient,) = torch.autograd.grad(function(values).sum(), values)
        assert gradient.isfinite().all()
        assert (gradient > 0).all()


def test_gradcheck():
    normals = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    assert gradcheck(shade, (normals, coefficients))
    direction, intensity = unit_normals(2).requires_grad_(), torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(directional_light, (direction, intensity))
    colour = torch.tensor([-0.2, 0.001, 0.02, 0.3, 1.4], dtype=torch.float64, requires_grad=True)
    shading = torch.tensor([0.5, 0.9, 0.3, 1.2, 0.7], dtype=torch.float64, requires_grad=True)
    assert gradcheck(decode_srgb, colour)
    assert gradcheck(encode_srgb, colour)
    for encoding in ("none", "srgb"):
        assert gradcheck(lambda a, s, encoding=encoding: light_albedo(a, s, encoding), (colour, shading))


def test_one_shading_lights_several_albedos():
    albedos, shading = torch.rand(2, 3, 3, 4, 4), torch.rand(2, 1, 3, 4, 4)
    for encoding in ("none", "srgb"):
        lit = light_albedo(albedos, shading, encoding)
        torch.testing.assert_close(lit[:, 1], light_albedo(albedos[:, 1], shading[:, 0], encoding))
