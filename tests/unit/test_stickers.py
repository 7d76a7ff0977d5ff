"""Places, sizes and blend modes of stickers."""

import math

import numpy as np
import pytest
import torch
from face_model_files import gnm_arrays, write_sparse_landmarks

from nl3dmm.assets.gnm import import_gnm
from nl3dmm.assets.places import PLACES, place_uv
from nl3dmm.editing import fine_surface
from nl3dmm.errors import ConfigError, ShapeError
from nl3dmm.stickers import Sticker, star, sticker_layer, sticker_plane, surface_point


@pytest.fixture(params=["dense", "coarse", "other topology"])
def any_template(request, template, small_template, tmp_path):
    if request.param == "other topology":
        write_sparse_landmarks(tmp_path / "head_sparse_68.txt")
        np.savez_compressed(tmp_path / "gnm_head.npz", **gnm_arrays())
        return import_gnm(tmp_path / "gnm_head.npz", (48, 56), any_size=True)
    return template if request.param == "dense" else small_template


def position(template, uv: tuple[float, float]) -> torch.Tensor:
    corners, weights = surface_point(template, uv)
    return weights @ template.vertices[corners]


def disc(side: int = 200) -> torch.Tensor:
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    inside = (axis[:, None] ** 2 + axis**2 < 1).float()
    return torch.cat([torch.ones(3, side, side), inside[None]])


def test_places_are_where_their_names_say(any_template):
    points = {name: position(any_template, place_uv(any_template, name)) for name in PLACES}
    marks = any_template.landmarks(any_template.vertices[None])[0]
    mouth, eyes, brows = marks[48:68, 1].mean(), marks[36:48, 1].mean(), marks[17:27, 1].mean()
    eye_distance = marks[45, 0] - marks[36, 0]
    for name in ("cheek", "temple", "jaw"):
        left, right = points[f"left_{name}"], points[f"right_{name}"]
        assert left[0] > 0.25 * eye_distance  # the subject's left is +x
        torch.testing.assert_close(right * torch.tensor([-1.0, 1, 1]), left, atol=2.0, rtol=0)
    for name in ("forehead", "nose", "nose_bridge", "upper_lip", "chin"):
        assert abs(float(points[name][0])) < 1.5
    assert points["forehead"][1] > brows + 8
    assert mouth < points["left_cheek"][1] < eyes
    assert points["left_jaw"][1] < points["left_cheek"][1] < points["left_temple"][1]
    assert points["chin"][1] < mouth < points["upper_lip"][1] < points["nose"][1] < points["nose_bridge"][1]
    assert (points["nose"] - marks[30]).norm() < 8


def test_unknown_places_are_named(small_template):
    with pytest.raises(ConfigError, match=r"at: got 'left_ear'; expected \(u, v\) or one of forehead, .*left_cheek"):
        place_uv(small_template, "left_ear")


@pytest.mark.parametrize("at", [(1.2, 0.5), (-0.1, 0.5), (0.5, 0.999), (math.nan, 0.5)])
def test_points_off_the_map_are_refused(small_template, at):
    with pytest.raises(ConfigError, match=r"at: got .*; expected u, v in \[0, 1\] on the face's UV map"):
        surface_point(small_template, at)


def test_surface_points_are_where_the_uv_says(template):
    generator = torch.Generator().manual_seed(0)
    for u, v in (0.1 + 0.8 * torch.rand(20, 2, generator=generator)).tolist():
        corners, weights = surface_point(template, (u, v))
        torch.testing.assert_close(weights @ template.uv[corners], torch.tensor([u, v]), atol=1e-5, rtol=0)
        assert weights.min() >= -1e-5


@pytest.mark.parametrize("place", ["left_cheek", "right_jaw", "forehead", "left_temple"])
def test_a_disc_has_its_area_on_the_surface(template, place):
    """Area in mm^2 summed over the triangles of a finer mesh than the one laid flat."""
    sticker = Sticker(disc(), place, size_mm=30)
    plane = sticker_plane(template, template.vertices[None], sticker)
    surface = fine_surface(template)
    values = torch.cat([template.vertices, plane.nan_to_num(1e5)], 1)
    points, coordinates = surface.to_uv_map(values[None])[0].permute(1, 2, 0).split([3, 2], -1)
    corner, right, below = points[:-1, :-1], points[:-1, 1:], points[1:, :-1]
    areas = torch.linalg.cross(right - corner, below - corner).norm(dim=-1)
    area = areas[coordinates[:-1, :-1].norm(dim=-1) < 15].sum()
    assert float(area) == pytest.approx(math.pi * 15**2, rel=0.03)


def test_sides_keep_the_pictures_aspect(template):
    sticker = Sticker(torch.ones(4, 50, 100), "left_cheek", size_mm=40)
    assert sticker.sides_mm == (20, 40)
    axis = torch.linspace(-30, 30, 601)
    along = torch.stack([axis, torch.zeros_like(axis)], -1)[None, None]
    for points, length in ((along, 40), (along.flip(-1), 20)):
        alpha = sticker_layer(sticker, sticker.picture, points).alpha[0, 0, 0]
        assert float(alpha.mean() * 60) == pytest.approx(length, rel=0.02)


def test_up_is_up_and_rotation_is_counter_clockwise_for_the_viewer(template):
    """On the forehead, which faces the viewer: +x is image right, +y is up."""
    vertices = template.vertices
    centre = position(template, place_uv(template, "forehead"))

    def coordinates(rotation: float, offset: tuple[float, float]) -> torch.Tensor:
        plane = sticker_plane(template, vertices[None], Sticker(disc(), "forehead", 40, rotation))
        target = centre + torch.tensor([*offset, 0.0])
        distance = (vertices[:, :2] - target[:2]).norm(dim=1) + 1e3 * plane.isnan().any(1) + 1e3 * (vertices[:, 2] < 50)
        return plane[int(distance.argmin())]

    above = coordinates(0, (0, 12))
    assert above[1] > 9
    assert abs(float(above[0])) < 2.5
    right = coordinates(0, (12, 0))
    assert right[0] > 9
    # a sticker turned counter-clockwise by 90 degrees has its right edge where up was
    turned = coordinates(90, (0, 12))
    torch.testing.assert_close(turned, torch.stack([above[1], -above[0]]), atol=0.1, rtol=0)


def test_blend_modes_are_what_their_names_say():
    colour, alpha, albedo = 0.6, 0.25, 0.5
    picture = torch.full((4, 32, 32), alpha)
    linear = picture.clone()
    linear[:3] = colour * alpha
    expected = {
        "normal": albedo * (1 - alpha) + colour * alpha,
        "multiply": albedo * (1 - alpha) + albedo * colour * alpha,
        "screen": albedo * (1 - alpha) + (1 - (1 - albedo) * (1 - colour)) * alpha,
    }
    points = torch.zeros(1, 1, 1, 2)
    for blend, value in expected.items():
        layer = sticker_layer(Sticker(picture, "nose", blend=blend), linear, points)
        torch.testing.assert_close(layer.on(torch.full((1, 3, 1, 1), albedo)), torch.full((1, 3, 1, 1), value))
        far = sticker_layer(Sticker(picture, "nose", blend=blend), linear, points + torch.nan)
        assert (far.keep == 1).all()
        assert (far.paint == 0).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size_mm": 0}, ConfigError, "size_mm: got 0"),
        ({"size_mm": math.nan}, ConfigError, "size_mm: got nan"),
        ({"rotation": math.inf}, ConfigError, "rotation: got inf"),
        ({"blend": "burn"}, ConfigError, "blend: got 'burn'; expected one of"),
        ({"picture": torch.ones(3, 32, 32)}, ShapeError, r"sticker: got shape \(3, 32, 32\); expected finite RGBA"),
        ({"picture": torch.full((4, 32, 32), math.nan)}, ShapeError, "expected finite RGBA"),
    ],
)
def test_wrong_stickers_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        Sticker(**{"picture": torch.ones(4, 32, 32), "at": "nose"} | changes)


def test_stickers_larger_than_the_face_are_refused(small_template):
    sticker = Sticker(disc(), "nose", size_mm=300)
    with pytest.raises(ConfigError, match=r"size_mm: got 300; expected at most 1\d\d, the width of this face"):
        sticker_plane(small_template, small_template.vertices[None], sticker)


def test_the_star_is_a_star():
    alpha = star(200)[3]
    assert star().shape == (4, 256, 256)
    torch.testing.assert_close(alpha, alpha.flip(1), atol=1e-3, rtol=0)
    rows = (alpha.mean(1) > 0).nonzero()[:, 0]
    assert alpha[rows[0], 95:105].max() > 0  # a point at the top, two at the bottom
    assert alpha[-30, 100] == 0
    turn = torch.arange(360) * math.pi / 180
    ring = torch.stack([(100 + 70 * turn.sin()).long(), (100 - 70 * turn.cos()).long()])
    on_ring = alpha[ring[1], ring[0]] > 0.5
    assert int((on_ring & ~on_ring.roll(1)).sum()) == 5
