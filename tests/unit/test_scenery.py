"""Heads behind and hair before the faces: ray-cast ellipsoids against closed forms, and who hides what."""

import math

import pytest
import torch

from nl3dmm.geometry.camera import project, rotation_from_euler, weak_perspective
from nl3dmm.geometry.lighting import white_light
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.ellipsoids import ellipsoid, view
from nl3dmm.synthetic.scenery import Surroundings, add_objects, backgrounds, pixel_grid
from nl3dmm.types import Camera

SIZE = 96
CENTRE = torch.tensor([[3.0, -5.0, 7.0]])
RADII = torch.tensor([[30.0, 50.0, 20.0]])


def turned_camera(yaw: float, scale: float = 0.7) -> Camera:
    angles = torch.tensor([[0.2], [yaw], [0.3]])
    return weak_perspective(
        rotation_from_euler(*angles), torch.tensor([[4.0, -3.0]]), torch.tensor([scale]), torch.full((1, 2), SIZE / 2)
    )


@pytest.mark.parametrize("yaw", [0.0, 0.8, 2.5])
def test_points_of_an_ellipsoid_are_on_it_and_project_to_their_pixels(yaw):
    camera, head = turned_camera(yaw), torch.tensor([[1.0, 2.0, 3.0]])
    drawn = ellipsoid(view(camera, head, SIZE), CENTRE, RADII)
    inside = drawn.cover[0, 0] == 1
    assert inside.sum() > 500
    points = drawn.points[0][:, inside].T
    on_sphere = (points - CENTRE) / RADII
    torch.testing.assert_close(on_sphere.square().sum(1), torch.ones(len(points)), atol=1e-4, rtol=0)
    pixels, _ = project(camera, (points + head)[None])
    torch.testing.assert_close(pixels[0], pixel_grid(SIZE)[:, inside].T, atol=1e-3, rtol=0)


def test_normals_of_an_ellipsoid_face_the_viewer_and_are_its_gradient():
    camera = turned_camera(0.8)
    drawn = ellipsoid(view(camera, torch.zeros(1, 3), SIZE), CENTRE, RADII)
    inside = drawn.cover[0, 0] == 1
    normals = drawn.normals[0][:, inside].T
    assert (normals[:, 2] >= 0).all()
    gradient = ((drawn.points[0][:, inside].T - CENTRE) / RADII.square()) @ camera.rotation[0].T
    torch.testing.assert_close(normals, torch.nn.functional.normalize(gradient, dim=1), atol=1e-4, rtol=0)


def test_the_cover_of_a_sphere_is_a_disc():
    radius, scale = 30.0, 0.7
    drawn = ellipsoid(view(turned_camera(0.4, scale), torch.zeros(1, 3), SIZE), CENTRE, torch.full((1, 3), radius))
    assert drawn.cover.sum() == pytest.approx(math.pi * (radius * scale) ** 2, rel=0.01)
    assert drawn.cover.aminmax() == (0, 1)


def test_a_near_head_is_larger_in_a_pinhole_camera():
    flat = turned_camera(0.0, 0.45)
    near = Camera(flat.rotation, flat.translation, flat.scale, torch.tensor([1 / 400]), flat.principal_point)
    covers = [ellipsoid(view(c, torch.tensor([[0.0, 0.0, 100.0]]), SIZE), CENTRE, RADII).cover for c in (flat, near)]
    depth = float((flat.rotation[0] @ torch.tensor([0.0, 0.0, 100.0]))[2])
    assert covers[1].sum() / covers[0].sum() == pytest.approx((1 / (1 - depth / 400)) ** 2, rel=0.02)


@pytest.mark.parametrize("encoding", ["srgb", "none"])
def test_heads_follow_the_light(encoding):
    """The same head in half the light is darker by the encoding's factor wherever it covers all of the background."""
    indices, camera = torch.arange(6), turned_camera(0.3)
    cameras = Camera(*(getattr(camera, name).expand(6, *getattr(camera, name).shape[1:]) for name in vars(camera)))
    skin, dark = torch.full((6, 3), 0.5), torch.zeros(6, 3, SIZE, SIZE)

    def lit(brightness: float) -> torch.Tensor:
        light = white_light(6, brightness)
        return Surroundings(cameras, light, SIZE, encoding, Draws(0, indices, 4)).behind(dark, skin)

    full, half = lit(0.8), lit(0.4)
    bright = (full > 0.2) & (full < 0.9)
    assert bright.float().mean() > 0.2
    expected = 0.5 * full if encoding == "none" else 0.5 ** (1 / 2.4) * (full + 0.055) - 0.055
    torch.testing.assert_close(half[bright], expected[bright], atol=1e-3, rtol=0)


def test_hair_falls_over_as_many_faces_as_wanted():
    indices = torch.arange(64)
    camera = turned_camera(0.0, 0.35)
    cameras = Camera(*(getattr(camera, name).expand(64, *getattr(camera, name).shape[1:]) for name in vars(camera)))
    picture = torch.zeros(64, 3, SIZE, SIZE)

    def hairy(probability: float) -> float:
        around = Surroundings(cameras, white_light(64), SIZE, "srgb", Draws(0, indices, 4))
        drawn, cover = around.before(picture, probability)
        assert (drawn[(cover == 0).expand_as(drawn)] == 0).all()
        return float((cover.amax((1, 2, 3)) > 0.5).float().mean())

    assert hairy(0.0) == 0
    assert hairy(0.5) == pytest.approx(0.5 * 0.88, abs=0.15)
    assert hairy(1.0) == pytest.approx(0.88, abs=0.1)


def test_objects_hide_what_they_cover():
    indices, camera = torch.arange(16), turned_camera(0.0)
    cameras = Camera(*(getattr(camera, name).expand(16, *getattr(camera, name).shape[1:]) for name in vars(camera)))
    picture = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    seen = view(cameras, torch.zeros(16, 3), SIZE)
    landmarks = torch.full((16, 68, 2), SIZE / 2)
    drawn, hidden = add_objects(picture, seen, landmarks, Draws(0, indices, 4), 1.0)
    assert hidden.flatten(1).any(1).all()
    free = ~hidden[:, None].expand_as(picture)
    assert drawn[free].equal(picture[free])
    assert not add_objects(picture, seen, landmarks, Draws(0, indices, 4), 0.0)[1].any()


def test_backgrounds_are_varied_and_in_range():
    pictures = backgrounds(Draws(0, torch.arange(32), 4), 48)
    assert pictures.equal(pictures.clamp(0, 1))
    contrast = pictures.flatten(1).std(1)
    assert contrast.min() < 0.1
    assert contrast.max() > 0.15
    saturation = (pictures.mean((2, 3)).amax(1) - pictures.mean((2, 3)).amin(1)).sort().values
    assert saturation[8] < 0.15 < saturation[-1]  # most are subdued, some are not
