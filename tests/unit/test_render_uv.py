"""Photos unwrapped to UV maps: colours, visibility against rays, confidence, gradients, odd input."""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.camera import FACE_FILL, perspective, project, rotation_from_euler, weak_perspective, zoom
from nl3dmm.geometry.lighting import white_light
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.geometry.uv import fill_outwards
from nl3dmm.render.scene import Surface, render_textures
from nl3dmm.render.uv import unwrap_photo

DIRECTIONS = {"weak": None, "perspective": 450.0}  # distance of the viewer in mm


def face_camera(template, size, yaw=0.0, pitch=0.0, distance=None, dtype=torch.float32):
    """Frames the landmarks as the synthetic world does; returns the camera and the viewer (or the way to it)."""
    zero = torch.zeros(1, dtype=dtype)
    rotation = rotation_from_euler(zero + pitch, zero + yaw, zero)
    rotated = template.landmarks(template.vertices[None]).to(dtype) @ rotation.mT
    low, high = rotated[..., :2].amin(1), rotated[..., :2].amax(1)
    scale = FACE_FILL * size / (high - low).amax(1)
    centre, half = (low + high) / 2, zero.expand(1, 2) + size / 2
    if distance is None:
        shift = torch.stack([-scale * centre[:, 0], scale * centre[:, 1]], -1)
        return weak_perspective(rotation, shift, scale, half), None
    position = torch.cat([centre, zero[None] + distance], -1)
    return perspective(rotation, position, scale * distance, half), position


def smooth_map(template):
    height, width = template.uv_size
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([0.5 + 0.4 * torch.sin(5 * u + v), 0.2 + 0.6 * u * v, 0.5 + 0.4 * torch.cos(6 * v)])[None]


def tabled(template, surface):
    """The same surface as one that is no grid."""
    triangle, barycentric = fill_outwards(template.texel_triangle, template.texel_barycentric)
    return replace(surface, texel_triangle=triangle, texel_barycentric=barycentric)


def two_sheets():
    """64 texels: a wall of 32 mm (left half of the map) and a poster of 12 mm, 20 mm before its middle."""
    axis = torch.linspace(-1, 1, 8)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    wall = torch.stack([16 * x, 16 * y, 0 * x], -1)
    poster = torch.stack([6 * x, 6 * y, 0 * x + 20], -1)
    index = torch.arange(128).view(8, 16)
    halves = []
    for half in (index[:, :8], index[:, 8:]):
        a, b, c, d = (part.flatten() for part in (half[:-1, :-1], half[:-1, 1:], half[1:, :-1], half[1:, 1:]))
        halves += [torch.stack([a, c, d], 1), torch.stack([a, d, b], 1)]
    vertices = torch.cat([wall, poster], 1).view(1, 128, 3)
    return vertices, Surface(torch.cat(halves), torch.zeros(128, 2), (8, 16))


def sheet_camera(size=64, scale=1.5, yaw=0.0):
    zero = torch.zeros(1)
    return weak_perspective(
        rotation_from_euler(zero, zero + yaw, zero), torch.zeros(1, 2), zero + scale, torch.full((1, 2), size / 2)
    )


def reaches_viewer(vertices, triangles, camera, viewer):
    """Whether the segment from each vertex to the viewer meets no triangle that does not touch the vertex."""
    points = (vertices[0] @ camera.rotation[0].T).double()
    direction = points.new_tensor([[0, 0, 1]]) if viewer is None else viewer.double() - points
    direction = direction.expand_as(points)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    free = []
    for number, (point, way) in enumerate(zip(points, direction, strict=True)):
        facing = normal @ way
        t = (normal * (a - point)).sum(-1) / facing
        hit = point + t[:, None] * way
        sides = [(torch.linalg.cross(q - p, hit - p) * normal).sum(-1) > 0 for p, q in ((a, b), (b, c), (c, a))]
        own = (triangles == number).any(1)
        free.append(not bool((sides[0] & sides[1] & sides[2] & (t > 0) & ~own).any()))
    return torch.tensor(free), direction.float()


@pytest.mark.parametrize("distance", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("is_grid", [True, False])
def test_a_rendered_albedo_comes_back(template, distance, is_grid):
    camera, _ = face_camera(template, 160, yaw=0.5, distance=distance)
    surface = template.surface() if is_grid else tabled(template, template.surface())
    albedo, vertices = smooth_map(template), template.vertices[None]
    drawn = render_textures(vertices, albedo[:, None], camera, white_light(1), surface, (160, 160), "none")
    photo = torch.cat([drawn.images[:, 0], drawn.mask[:, None].float()], 1)
    seen = unwrap_photo(photo, camera, vertices, surface)
    assert seen.colour.shape == (1, 4, *template.uv_size)
    assert 0.6 < seen.visible.float().mean() < 0.9
    error = (seen.colour[:, :3] - albedo).abs().mean(1)
    pure = seen.visible & (seen.colour[:, 3] > 0.999)  # no background in the bilinear footprint
    assert pure.sum() > 0.85 * seen.visible.sum()
    assert error[pure].mean() < 0.002
    assert error[pure].max() < 0.06
    assert error[pure & (seen.confidence > 0.2)].max() < 0.03
    assert error[~seen.visible].mean() > 0.1  # another part of the face, or the background


@pytest.mark.parametrize("distance", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("yaw", [math.pi / 4, -math.pi / 4])
def test_visibility_agrees_with_rays_where_the_nose_hides_the_cheek(small_template, distance, yaw):
    camera, viewer = face_camera(small_template, 128, yaw, distance=distance)
    vertices, surface = small_template.vertices[None], small_template.surface()
    free, direction = reaches_viewer(vertices, surface.triangles, camera, viewer)
    normals = vertex_normals(vertices, surface.triangles)[0] @ camera.rotation[0].T
    facing = (normals * direction).sum(-1) > 0
    pixels, _ = project(camera, vertices)
    facing &= ((pixels[0] >= 0) & (pixels[0] <= 128)).all(-1)
    expected = free & facing
    visible = unwrap_photo(torch.rand(1, 3, 128, 128), camera, vertices, surface).visible.flatten()
    hits = (visible & expected).sum()
    assert hits / visible.sum() > 0.98
    assert hits / expected.sum() > 0.98
    behind = facing & ~free  # what facing alone cannot know
    assert behind.sum() >= 20
    assert (visible & behind).sum() < 0.2 * behind.sum()


def test_a_poster_hides_the_wall_behind_it():
    vertices, surface = two_sheets()
    photo = torch.rand(1, 1, 64, 64)
    for camera in (sheet_camera(), sheet_camera(yaw=0.3)):
        visible = unwrap_photo(photo, camera, vertices, surface).visible[0]
        assert visible[:, 8:].all()
        pixels = project(camera, vertices)[0].view(8, 16, 2)
        poster = pixels[:, 8:].flatten(0, 1)
        hidden = ((pixels[:, :8] > poster.amin(0)) & (pixels[:, :8] < poster.amax(0))).all(-1)
        assert hidden.any()
        assert visible[:, :8].equal(~hidden)


@pytest.mark.parametrize("yaw", [0.0, 0.6, 1.2, 2.0])
def test_confidence_is_the_cosine_to_the_viewer(yaw):
    vertices, surface = two_sheets()
    vertices = vertices * torch.tensor([1, 1, 0])  # both sheets in one plane
    seen = unwrap_photo(torch.rand(1, 1, 64, 64), sheet_camera(yaw=yaw), vertices, surface)
    expected = max(math.cos(yaw), 0)
    torch.testing.assert_close(seen.confidence, torch.full_like(seen.confidence, expected), atol=1e-5, rtol=0)
    assert seen.visible.equal(seen.confidence > 0)


def test_viewer_of_a_perspective_camera_stands_at_a_point():
    vertices, surface = two_sheets()
    position = torch.tensor([[9.0, -5, 60]])
    zero = torch.zeros(1)
    camera = perspective(rotation_from_euler(zero, zero, zero), position, zero + 60, torch.full((1, 2), 32.0))
    seen = unwrap_photo(torch.rand(1, 1, 64, 64), camera, vertices, surface)
    way = position - vertices[0]
    cosine = (way[:, 2] / way.norm(dim=-1)).view(1, 8, 16)
    assert 0.5 < seen.visible.float().mean() < 1
    torch.testing.assert_close(seen.confidence, torch.where(seen.visible, cosine, 0))


def test_what_is_outside_of_the_photo_or_behind_the_viewer_is_not_visible():
    vertices, surface = two_sheets()
    photo, camera = torch.rand(1, 3, 64, 64), sheet_camera()
    whole = unwrap_photo(photo, camera, vertices, surface)
    part = unwrap_photo(photo[:, :, :, 32:], zoom(camera, 1, torch.tensor([32.0, 0])), vertices, surface)
    right = torch.arange(16) % 8 >= 4
    assert not part.visible[..., ~right].any()
    assert part.visible[..., right].equal(whole.visible[..., right])
    torch.testing.assert_close(part.colour[..., right], whole.colour[..., right])
    assert part.colour.isfinite().all()
    zero = torch.zeros(1)
    position = torch.tensor([[0.0, 0, 10]])  # between the wall and the poster
    between = perspective(rotation_from_euler(zero, zero, zero), position, zero + 15, torch.full((1, 2), 32.0))
    seen = unwrap_photo(photo, between, vertices, surface)
    assert seen.visible[..., :8].all()
    assert not seen.visible[..., 8:].any()


def test_elements_of_a_batch_are_on_their_own(small_template):
    cameras = [face_camera(small_template, 64, 0.4)[0], face_camera(small_template, 64, -0.7, distance=500.0)[0]]
    fields = ("rotation", "translation", "scale", "inverse_distance", "principal_point")
    camera = replace(cameras[0], **{name: torch.cat([getattr(one, name) for one in cameras]) for name in fields})
    vertices, surface = torch.stack([small_template.vertices, small_template.vertices * 0.9]), small_template.surface()
    photo = torch.rand(2, 3, 64, 64)
    both = unwrap_photo(photo, camera, vertices, surface)
    for k in range(2):
        one = unwrap_photo(photo[k : k + 1], cameras[k], vertices[k : k + 1], surface)
        torch.testing.assert_close(one.colour, both[k].colour, atol=1e-6, rtol=0)
        assert one.visible.equal(both[k].visible)
        torch.testing.assert_close(one.confidence, both[k].confidence, atol=1e-6, rtol=0)
    nothing = unwrap_photo(photo[:0], camera[:0], vertices[:0], surface)
    assert nothing.visible.shape == (0, *small_template.uv_size)


@pytest.mark.parametrize("is_grid", [True, False])
def test_vertices_that_are_not_finite_are_not_visible(small_template, is_grid):
    surface = small_template.surface() if is_grid else tabled(small_template, small_template.surface())
    vertices = small_template.vertices[None].clone()
    whole = unwrap_photo(torch.rand(1, 3, 64, 64), face_camera(small_template, 64)[0], vertices, surface)
    vertices[0, 16 * 32 + 16] = math.nan
    vertices.requires_grad_()
    photo = torch.rand(1, 3, 64, 64, requires_grad=True)
    seen = unwrap_photo(photo, face_camera(small_template, 64)[0], vertices, surface)
    seen.colour.sum().backward()
    assert whole.visible[0, 16, 16]
    assert not seen.visible[0, 16, 16]
    assert seen.visible.sum() > 0.9 * whole.visible.sum()
    assert seen.colour.isfinite().all()
    assert photo.grad.isfinite().all()
    assert vertices.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision(small_template):
    arguments = (torch.rand(1, 3, 64, 64), face_camera(small_template, 64, 0.4)[0], small_template.vertices[None])
    expected = unwrap_photo(*arguments, small_template.surface())
    with torch.autocast("cpu", torch.bfloat16):
        seen = unwrap_photo(*arguments, small_template.surface())
    assert seen.colour.equal(expected.colour)
    assert seen.confidence.equal(expected.confidence)


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 300])
@pytest.mark.parametrize("is_grid", [True, False])
def test_gradcheck_of_the_colour(patch, inverse_distance, is_grid):
    """No texel is projected to a pixel centre, where bilinear sampling has a kink; one is outside of the photo."""
    vertices, triangles, uv = patch
    surface = Surface(triangles, uv, (4, 4))
    if not is_grid:
        texel_triangle = torch.arange(16).view(4, 4)
        surface = replace(
            surface, texel_triangle=texel_triangle, texel_barycentric=torch.full((4, 4, 3), 1 / 3).double()
        )
    zero = torch.zeros(1, dtype=torch.float64)
    rotation = rotation_from_euler(zero + 0.1, zero + 0.15, zero)
    centre = torch.tensor([[3.113, 2.487]], dtype=torch.float64)
    camera = weak_perspective(rotation, torch.zeros(1, 2, dtype=torch.float64), zero + 0.31, centre)
    camera = replace(camera, inverse_distance=zero + inverse_distance)
    photo = torch.rand(1, 2, 5, 6, dtype=torch.float64).requires_grad_()
    poses = [value.clone().requires_grad_() for value in (camera.rotation, camera.translation, camera.scale)]

    def colour(photo, vertices, rotation, translation, scale):
        moved = replace(camera, rotation=rotation, translation=translation, scale=scale)
        return unwrap_photo(photo, moved, vertices, surface).colour

    assert gradcheck(colour, (photo, vertices.requires_grad_(), *poses), eps=1e-6, atol=1e-6)
    seen = unwrap_photo(photo, camera, vertices, surface)
    assert seen.visible.any()
    assert seen.colour.requires_grad
    assert not seen.confidence.requires_grad
