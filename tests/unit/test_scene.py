"""Pictures of meshes: colours, masks, light, encodings, several textures at once, gradients."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.geometry.lighting import SH_CONSTANTS, encode_srgb, white_light
from nl3dmm.render.scene import Surface, composite, render_geometry, render_textures
from nl3dmm.types import Camera

SIZE = (12, 16)


def camera_for(batch: int, scale: float, yaw: float = 0.0, dtype: torch.dtype = torch.float32) -> Camera:
    zero = torch.zeros(batch, dtype=dtype)
    rotation = rotation_from_euler(zero, zero + yaw, zero)
    centre = torch.tensor([[8.0, 6.0]], dtype=dtype).expand(batch, 2)
    return weak_perspective(rotation, torch.zeros(batch, 2, dtype=dtype), zero + scale, centre)


@pytest.fixture
def sheet(patch):
    """The bent sheet in float32 with its surface; it is 20 mm wide."""
    vertices, triangles, uv = patch
    return vertices.float(), Surface(triangles, uv.float(), (4, 4))


def test_uniform_albedo_under_white_light_is_its_colour(sheet):
    vertices, surface = sheet
    colour = torch.tensor([0.2, 0.5, 0.8]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)
    for encoding in ("none", "srgb"):
        drawn = render_textures(vertices, colour, camera_for(1, 0.5), white_light(1), surface, SIZE, encoding)
        assert drawn.images.shape == (1, 1, 3, *SIZE)
        inside = drawn.images[0, 0, :, drawn.mask[0]]
        torch.testing.assert_close(inside, colour[0, 0, :, 0, :1].expand_as(inside), atol=1e-5, rtol=0)
        assert drawn.images[0, 0, :, ~drawn.mask[0]].eq(0).all()


def test_mask_is_the_projected_sheet(sheet):
    vertices, surface = sheet
    albedo = torch.ones(1, 1, 3, 4, 4)
    drawn = render_textures(vertices, albedo, camera_for(1, 0.4), white_light(1), surface, SIZE, "none")
    rows, columns = drawn.mask[0].nonzero().T
    assert (int(columns.min()), int(columns.max())) == (4, 11)  # 20 mm * 0.4 px/mm = 8 px around column 8
    assert (int(rows.min()), int(rows.max())) == (2, 9)
    assert int(drawn.mask.sum()) == 64


def test_texture_stands_upright(sheet):
    """Map row 0 is the sheet's top and the image's top, map column 0 its left."""
    vertices, surface = sheet
    albedo = torch.zeros(1, 1, 3, 4, 4)
    albedo[0, 0, 0, 0, 0], albedo[0, 0, 1, 0, 3], albedo[0, 0, 2, 3, 0] = 1, 1, 1
    drawn = render_textures(vertices, albedo, camera_for(1, 0.4), white_light(1), surface, SIZE, "none")
    red, green, blue = drawn.images[0, 0]
    assert red.flatten().argmax() == 2 * 16 + 4
    assert green.flatten().argmax() == 2 * 16 + 11
    assert blue.flatten().argmax() == 9 * 16 + 4


def test_light_is_in_the_camera_frame(sheet):
    """Light from image right: the sheet turned to the right is brighter than the one turned to the left."""
    vertices, surface = sheet
    light = torch.zeros(1, 3, 9)
    light[..., 3] = 1.0
    albedo = torch.ones(1, 1, 3, 4, 4)
    means = []
    for yaw in (0.5, -0.5):
        drawn = render_textures(vertices, albedo, camera_for(1, 0.4, yaw), light, surface, SIZE, "none")
        means.append(float(drawn.images[0, 0, :, drawn.mask[0]].mean()))
        torch.testing.assert_close(drawn.shading[..., 0], SH_CONSTANTS[1] * drawn.normals[..., 0])
    assert means[0] > 0.1
    assert means[1] < -0.1  # not clamped


def test_brightness_is_linear_light_under_srgb(sheet):
    vertices, surface = sheet
    albedo = torch.ones(1, 1, 3, 4, 4)
    drawn = render_textures(vertices, albedo, camera_for(1, 0.5), white_light(1, 0.25), surface, SIZE, "srgb")
    inside = drawn.images[0, 0, :, drawn.mask[0]]
    torch.testing.assert_close(inside, encode_srgb(torch.tensor(0.25)).expand_as(inside), atol=1e-5, rtol=0)


def test_several_textures_equal_single_renderings(sheet):
    vertices, surface = sheet
    vertices = torch.cat([vertices, 0.8 * vertices])
    albedos, light = torch.rand(2, 3, 3, 4, 4), white_light(2) + 0.1 * torch.randn(2, 3, 9)
    camera = camera_for(2, 0.5, 0.3)
    drawn = render_textures(vertices, albedos, camera, light, surface, SIZE, "srgb")
    for batch in range(2):
        for texture in range(3):
            one, map_ = slice(batch, batch + 1), slice(texture, texture + 1)
            single = render_textures(
                vertices[one], albedos[one, map_], camera[batch], light[one], surface, SIZE, "srgb"
            )
            torch.testing.assert_close(single.images[0, 0], drawn.images[batch, texture], atol=1e-6, rtol=0)
            assert single.mask[0].equal(drawn.mask[batch])


def test_perspective_camera_magnifies_what_is_near(sheet):
    vertices, surface = sheet
    albedo, areas = torch.ones(1, 1, 3, 4, 4), []
    near = vertices + torch.tensor([0.0, 0, 30])
    for inverse_distance in (0.0, 1 / 100):
        camera = replace(camera_for(1, 0.3), inverse_distance=torch.tensor([inverse_distance]))
        drawn = render_textures(near, albedo, camera, white_light(1), surface, SIZE, "none")
        areas.append(int(drawn.mask.sum()))
    assert areas[1] > 1.5 * areas[0]


def test_autocast_does_not_lower_the_precision(sheet):
    vertices, surface = sheet
    inputs = (vertices, torch.rand(1, 1, 3, 4, 4), camera_for(1, 0.5, 0.2), white_light(1), surface, SIZE, "srgb")
    expected = render_textures(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = render_textures(*inputs)
    assert drawn.images.dtype == torch.float32
    assert drawn.images.equal(expected.images)


def test_clay_pictures_are_grey_and_in_range(sheet):
    vertices, surface = sheet
    picture = render_geometry(vertices, camera_for(1, 0.4), surface, SIZE)
    assert picture.shape == (1, 3, *SIZE)
    assert picture[:, 0].equal(picture[:, 1])
    assert picture[:, 0].equal(picture[:, 2])
    assert 0 <= picture.min() < 0.01
    assert 0.3 < picture.max() <= 1


def test_composite_selects():
    image, background = torch.full((1, 3, 2, 2), 0.9), torch.full((1, 3, 2, 2), 0.1)
    mask = torch.tensor([[[True, False], [False, False]]])
    chosen = composite(image, background, mask)
    assert chosen[0, 0].tolist() == [[pytest.approx(0.9), pytest.approx(0.1)], [pytest.approx(0.1)] * 2]


def with_tables(surface: Surface) -> Surface:
    """The same surface as one that is no grid: texel k is vertex k by a look-up in its first triangle."""
    chosen = [int((surface.triangles == k).any(1).nonzero()[0]) for k in range(16)]
    texel_triangle = torch.tensor(chosen)
    barycentric = (surface.triangles[texel_triangle] == torch.arange(16)[:, None]).to(surface.uv.dtype)
    return replace(surface, texel_triangle=texel_triangle.view(4, 4), texel_barycentric=barycentric.view(4, 4, 3))


def test_values_go_to_the_map_and_back(sheet):
    values = torch.randn(2, 16, 5)
    for surface in (sheet[1], with_tables(sheet[1])):
        uv_map = surface.to_uv_map(values)
        assert uv_map.shape == (2, 5, 4, 4)
        assert uv_map[1, :, 2, 3].equal(values[1, 11])
        torch.testing.assert_close(surface.to_vertices(uv_map), values)


def test_grid_and_tables_draw_the_same_picture(sheet):
    vertices, surface = sheet
    inputs = (vertices, torch.rand(1, 2, 3, 4, 4), camera_for(1, 0.5, 0.2), white_light(1))
    pictures = [render_textures(*inputs, part, SIZE, "srgb").images for part in (surface, with_tables(surface))]
    torch.testing.assert_close(*pictures)


@pytest.mark.parametrize(
    ("encoding", "inverse_distance", "is_grid"),
    [("none", 0.0, True), ("srgb", 0.0, False), ("none", 1 / 300, False), ("srgb", 1 / 300, True)],
)
def test_gradcheck(patch, encoding, inverse_distance, is_grid):
    """The sheet overfills the image, so no silhouette moves; no pixel centre lies on an edge or a texel centre."""
    vertices, triangles, uv = patch
    surface, size = Surface(triangles, uv, (4, 4)), (3, 4)
    surface = surface if is_grid else with_tables(surface)
    camera = camera_for(1, 0.6, 0.15, torch.float64)
    centre = torch.tensor([[2.113, 1.287]], dtype=torch.float64)
    camera = replace(camera, principal_point=centre, inverse_distance=torch.full((1,), inverse_distance).double())
    albedo = (0.2 + 0.6 * torch.rand(1, 2, 3, 4, 4, dtype=torch.float64)).requires_grad_()
    light = (white_light(1).double() + 0.1 * torch.randn(1, 3, 9, dtype=torch.float64)).requires_grad_()
    poses = [value.clone().requires_grad_() for value in (camera.rotation, camera.translation, camera.scale)]

    def picture(vertices, albedo, light, rotation, translation, scale):
        moved = replace(camera, rotation=rotation, translation=translation, scale=scale)
        drawn = render_textures(vertices, albedo, moved, light, surface, size, encoding)
        assert drawn.mask.all()
        return drawn.images

    inputs = (vertices.requires_grad_(), albedo, light, *poses)
    assert gradcheck(picture, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)
