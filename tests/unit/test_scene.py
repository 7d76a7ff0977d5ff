"""Pictures of meshes: colours, masks, light, encodings, several textures at once, gradients."""

import math
from dataclasses import replace
from inspect import unwrap

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.errors import ShapeError
from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.geometry.lighting import SH_CONSTANTS, directional_light, encode_srgb, white_light
from nl3dmm.geometry.uv import uv_grid
from nl3dmm.render.scene import Surface, composite, render_geometry, render_textures
from nl3dmm.types import Camera

SIZE = (12, 16)
DOMAINS = ("uv", "vertex", "screen")


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


@pytest.mark.parametrize("shading", DOMAINS)
def test_several_textures_equal_single_renderings(sheet, shading):
    vertices, surface = sheet
    vertices = torch.cat([vertices, 0.8 * vertices])
    albedos, light = torch.rand(2, 3, 3, 4, 4), white_light(2) + 0.1 * torch.randn(2, 3, 9)
    camera = camera_for(2, 0.5, 0.3)
    drawn = render_textures(vertices, albedos, camera, light, surface, SIZE, "srgb", shading)
    for batch in range(2):
        for texture in range(3):
            one, map_ = slice(batch, batch + 1), slice(texture, texture + 1)
            single = render_textures(
                vertices[one], albedos[one, map_], camera[batch], light[one], surface, SIZE, "srgb", shading
            )
            torch.testing.assert_close(single.images[0, 0], drawn.images[batch, texture], atol=1e-6, rtol=0)
            assert single.mask[0].equal(drawn.mask[batch])


@pytest.mark.parametrize("encoding", ["none", "srgb"])
def test_shading_domains_on_a_roof(encoding):
    """Half way from the ridge, whose normal faces the viewer, to the left eave, whose normal is turned by an angle.

    Carried to the pixel, the two shadings have their mean and the two normals half the angle; in the 2 x 2 map the
    right eave counts too.
    """
    angle = 0.8
    ridge_and_eaves = [[-10, 0, -10 * math.tan(angle)], [0, -10, 0], [0, 10, 0], [10, 0, -10 * math.tan(angle)]]
    surface = Surface(torch.tensor([[0, 1, 2], [3, 2, 1]]), uv_grid((2, 2)), (2, 2))
    camera = replace(camera_for(1, 1.0), principal_point=torch.tensor([[10.5, 10.5]]))
    light = torch.zeros(1, 3, 9)
    light[..., 2] = 1 / SH_CONSTANTS[1]  # shading is z of the normal
    albedo = torch.ones(1, 1, 3, 2, 2)
    expected = {
        "uv": 0.375 + 0.625 * math.cos(angle),
        "vertex": 0.5 + 0.5 * math.cos(angle),
        "screen": math.cos(angle / 2),
    }
    for shading, value in expected.items():
        inputs = (torch.tensor([ridge_and_eaves]), albedo, camera, light, surface, (21, 21), encoding, shading)
        colour = render_textures(*inputs).images[0, 0, :, 10, 5]
        if encoding == "srgb" and shading != "uv":
            value = float(encode_srgb(torch.tensor(value)))
        if encoding == "srgb" and shading == "uv":  # the map that is fetched is encoded
            value = 0.375 + 0.625 * float(encode_srgb(torch.tensor(math.cos(angle))))
        torch.testing.assert_close(colour, torch.full((3,), value), atol=1e-5, rtol=0)


def smooth_face(template) -> tuple:
    """The template under a soft albedo, turned a little: all arguments before the light."""
    u, v = uv_grid(template.uv_size).unbind(-1)
    waves = [0.5 + 0.2 * (6 * u).sin(), 0.45 + 0.2 * (5 * v).cos(), 0.4 + 0.1 * (5 * (u + v)).sin()]
    albedo = torch.stack(waves).view(1, 1, 3, *template.uv_size)
    camera = replace(camera_for(1, 0.55, 0.4), principal_point=torch.full((1, 2), 56.0))
    return template.vertices[None], albedo, camera


@pytest.mark.parametrize("encoding", ["none", "srgb"])
def test_shading_domains_agree_on_a_smooth_face(small_template, template, encoding):
    """Mean difference to uv, linear: 7e-4 (vertex) and 15e-4 (screen) on 32 x 32, 3e-4 and 7e-4 on 64 x 80 vertices."""
    light = white_light(1, 0.5) + directional_light(torch.tensor([[0.36, 0.48, 0.8]]), torch.tensor([[0.5, 0.5, 0.45]]))
    means = {}
    for face in (small_template, template):
        inputs = (*smooth_face(face), light, face.surface(), (112, 112), encoding)
        uv, vertex, screen = (render_textures(*inputs, shading) for shading in DOMAINS)
        assert uv.mask.equal(vertex.mask)
        assert uv.shading.equal(screen.shading)
        drawn = uv.mask[0]
        for name, other in (("vertex", vertex), ("screen", screen)):
            means[name, len(face.vertices)] = float((other.images - uv.images)[0, 0, :, drawn].abs().mean())
            assert other.images[0, 0, :, ~drawn].eq(0).all()
    assert max(means.values()) < 2e-3
    for name in ("vertex", "screen"):
        assert 0 < means[name, 64 * 80] < 0.6 * means[name, 32 * 32]  # vanishes with the size of the triangles


@pytest.mark.parametrize("encoding", ["none", "srgb"])
def test_shading_domains_are_equal_under_constant_light(template, encoding):
    """Both colour curves are affine above their toes, so light and bilinear mean commute; 3e-7 was measured."""
    inputs = (*smooth_face(template), white_light(1, 0.7), template.surface(), (112, 112), encoding)
    uv, vertex, screen = (render_textures(*inputs, shading).images for shading in DOMAINS)
    torch.testing.assert_close(vertex, uv, atol=1e-5, rtol=0)
    torch.testing.assert_close(screen, uv, atol=1e-5, rtol=0)
    assert render_textures(*inputs).images.equal(uv)


def test_unknown_shading_domain(sheet):
    vertices, surface = sheet
    inputs = (vertices, torch.ones(1, 1, 3, 4, 4), camera_for(1, 0.5), white_light(1), surface, SIZE, "srgb", "pixel")
    with pytest.raises(ShapeError, match="shading: got 'pixel'; expected one of uv, vertex, screen"):
        unwrap(render_textures)(*inputs)


def test_opposite_normals_keep_gradients_finite():
    """A ribbon folded onto itself: normals between its sides have almost no length."""
    vertices = torch.tensor([[[-5.0, -5, 0], [-5, 5, 0], [5, -5, 1e-4], [5, 5, 1e-4], [-5, -5, 2e-4], [-5, 5, 2e-4]]])
    surface = Surface(torch.tensor([[0, 2, 1], [1, 2, 3], [2, 4, 3], [3, 4, 5]]), uv_grid((2, 3)), (2, 3))
    vertices.requires_grad_()
    light = white_light(1) + 0.1 * torch.randn(1, 3, 9)
    inputs = (torch.ones(1, 1, 3, 2, 3), camera_for(1, 1.0), light, surface, SIZE, "srgb", "screen")
    (gradient,) = torch.autograd.grad(render_textures(vertices, *inputs).images.square().mean(), vertices)
    assert gradient.isfinite().all()


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
    ("encoding", "inverse_distance", "is_grid", "shading"),
    [
        ("none", 0.0, True, "uv"),
        ("srgb", 0.0, False, "uv"),
        ("none", 1 / 300, False, "uv"),
        ("srgb", 1 / 300, True, "uv"),
        ("srgb", 1 / 300, True, "vertex"),
        ("srgb", 0.0, False, "screen"),
    ],
)
def test_gradcheck(patch, encoding, inverse_distance, is_grid, shading):
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
        drawn = render_textures(vertices, albedo, moved, light, surface, size, encoding, shading)
        assert drawn.mask.all()
        return drawn.images

    inputs = (vertices.requires_grad_(), albedo, light, *poses)
    assert gradcheck(picture, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)
