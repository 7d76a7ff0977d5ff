"""Cameras: frames, the one projection formula and its limits, clip space, gradients."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from nl3dmm.geometry.camera import (
    at_distance,
    camera_from_logits,
    clip_from_object,
    perspective,
    project,
    rotate,
    rotation_from_6d,
    rotation_from_euler,
    weak_perspective,
    zoom,
)
from nl3dmm.render import rasterize
from nl3dmm.types import Camera

SIZE = (40, 60)  # height, width


def some_cameras(batch: int = 3, inverse_distance: float = 1 / 600) -> Camera:
    """Turned cameras off the image's centre, float64."""
    angle = torch.linspace(-0.5, 0.6, batch, dtype=torch.float64)
    return Camera(
        rotation=rotation_from_euler(angle, 0.7 * angle.flip(0) + 0.1, 0.4 - angle),
        translation=torch.stack([3 * angle, 2 - angle], 1),
        scale=0.3 + 0.1 * angle,
        inverse_distance=torch.full((batch,), inverse_distance, dtype=torch.float64),
        principal_point=torch.stack([31 + angle, 18 - angle], 1),
    )


def some_points(batch: int = 3) -> torch.Tensor:
    return 60 * torch.randn(batch, 7, 3, dtype=torch.float64)


def fixed(camera: Camera, **changes: torch.Tensor) -> Camera:
    return replace(camera, **changes)


def frontal(inverse_distance: float = 0.0) -> Camera:
    centre = torch.tensor([[SIZE[1] / 2, SIZE[0] / 2]])
    camera = weak_perspective(torch.eye(3)[None], torch.zeros(1, 2), torch.tensor([0.5]), centre)
    return replace(camera, inverse_distance=torch.tensor([inverse_distance]))


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 500])
def test_axes_are_image_right_up_and_towards_the_camera(inverse_distance):
    points = torch.tensor([[[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]])
    pixels, depth = project(frontal(inverse_distance), points)
    torch.testing.assert_close(pixels[0, :3], torch.tensor([[30.0, 20], [35, 20], [30, 15]]))
    assert depth[0].tolist() == [0, 0, 0, -10]


def test_camera_frame_is_rotation_times_object_frame():
    camera, points = some_cameras(), some_points()
    expected = torch.stack([points[k] @ camera.rotation[k].T for k in range(3)])
    torch.testing.assert_close(rotate(camera, points), expected)
    by_hand = torch.einsum("ij,j->i", camera.rotation[1], points[1, 2])
    torch.testing.assert_close(rotate(camera, points)[1, 2], by_hand)


def test_zero_inverse_distance_is_exactly_weak_perspective():
    camera, points = some_cameras(inverse_distance=0.0), some_points()
    rotated = rotate(camera, points)
    flip = torch.tensor([1.0, -1.0], dtype=torch.float64)
    origin = (camera.principal_point + camera.translation)[:, None]
    pixels, depth = project(camera, points)
    torch.testing.assert_close(
        pixels, origin + camera.scale[:, None, None] * rotated[..., :2] * flip, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(depth, -rotated[..., 2])
    far = project(fixed(camera, inverse_distance=torch.full((3,), 1e-9, dtype=torch.float64)), points)[0]
    torch.testing.assert_close(far, pixels, rtol=0, atol=1e-4)


def test_perspective_is_the_textbook_pinhole():
    rotation, points = some_cameras().rotation, some_points()
    position = torch.tensor([[20.0, -10, 500], [0, 0, 900], [-40, 15, 650]], dtype=torch.float64)
    focal = torch.tensor([700.0, 900, 500], dtype=torch.float64)
    centre = torch.tensor([[30.0, 20], [28, 22], [31, 19]], dtype=torch.float64)
    camera = perspective(rotation, position, focal, centre)
    seen = points @ rotation.transpose(1, 2) - position[:, None]
    expected = centre[:, None] + focal[:, None, None] * seen[..., :2] / -seen[..., 2:] * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(project(camera, points)[0], expected)
    torch.testing.assert_close(camera.scale / camera.inverse_distance, focal)


def test_a_batch_may_mix_both_camera_types():
    one, points = some_cameras(2), some_points(2)
    mixed = fixed(one, inverse_distance=torch.tensor([0.0, 1 / 600], dtype=torch.float64))
    for k in range(2):
        torch.testing.assert_close(project(mixed, points)[0][k : k + 1], project(mixed[k], points[k : k + 1])[0])


def test_points_behind_the_camera_stay_finite():
    pixels, _ = project(frontal(1 / 100), torch.tensor([[[5.0, 5, 100], [5, 5, 5000]]]))
    assert pixels.isfinite().all()


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 600])
def test_clip_space_is_the_projection_with_rows_down(inverse_distance):
    camera, points = some_cameras(inverse_distance=inverse_distance), some_points()
    clip = clip_from_object(camera, points, SIZE)
    ndc = clip[..., :3] / clip[..., 3:]
    pixels, depth = project(camera, points)
    torch.testing.assert_close((ndc[..., 0] + 1) / 2 * SIZE[1], pixels[..., 0])
    torch.testing.assert_close((ndc[..., 1] + 1) / 2 * SIZE[0], pixels[..., 1])
    order = depth.argsort(1)
    assert (ndc[..., 2].gather(1, order).diff(dim=1) > 0).all()


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 450])
def test_clip_depth_stays_in_range_within_400_mm(inverse_distance):
    z = torch.linspace(-399, 399, 50)
    points = torch.stack([torch.zeros(50), torch.zeros(50), z], -1)[None]
    clip = clip_from_object(frontal(inverse_distance), points, SIZE)
    visible = clip[0, :, 3] > 0
    near_enough = z < (1 / inverse_distance - 400) / 2 if inverse_distance else torch.ones(50, dtype=torch.bool)
    assert ((clip[0, :, 2] / clip[0, :, 3]).abs() < 1)[visible & near_enough].all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 59), (39, 0), (17, 42)])
def test_pixel_centres_are_at_one_half(row, column):
    """A triangle of a quarter pixel around (column + .5, row + .5) is drawn in tensor element [row, column] only."""
    camera = fixed(frontal(), scale=torch.ones(1), principal_point=torch.zeros(1, 2))
    corners = torch.tensor([[-0.2, -0.2], [0.25, -0.2], [0.0, 0.25]]) + torch.tensor([column + 0.5, -(row + 0.5)])
    vertices = torch.cat([corners, torch.zeros(3, 1)], 1)[None]
    rast, _ = rasterize(None, clip_from_object(camera, vertices, SIZE), torch.tensor([[0, 1, 2]]), SIZE)
    assert (rast[0, ..., 3] > 0).nonzero().tolist() == [[row, column]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6))
def test_rotation_from_6d_is_proper(values):
    x, y = torch.tensor(values, dtype=torch.float64).view(2, 3)
    if float(torch.linalg.cross(x, y).norm()) < 1e-2:
        return
    rotation = rotation_from_6d(torch.cat([x, y])[None])[0]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones((), dtype=torch.float64))


def test_rotation_from_6d_known_values():
    torch.testing.assert_close(rotation_from_6d(torch.tensor([[1.0, 0, 0, 0, 1, 0]]))[0], torch.eye(3))
    rotation = rotation_from_euler(*torch.tensor([[0.3], [-0.7], [0.2]]))
    torch.testing.assert_close(rotation_from_6d(rotation[:, :2].flatten(1)), rotation)
    assert rotation_from_6d(torch.zeros(1, 6)).isfinite().all()


@pytest.mark.parametrize(
    ("angles", "direction", "expected"),
    [
        ((30.0, 0, 0), (0.0, 0, 1), (0, -0.5, math.sqrt(0.75))),  # pitch: the face looks down
        ((0, 30.0, 0), (0.0, 0, 1), (0.5, 0, math.sqrt(0.75))),  # yaw: it looks to image right
        ((0, 0, 30.0), (1.0, 0, 0), (math.sqrt(0.75), 0.5, 0)),  # roll: counter-clockwise
    ],
)
def test_euler_angles_turn_as_documented(angles, direction, expected):
    pitch, yaw, roll = (torch.tensor([math.radians(angle)], dtype=torch.float64) for angle in angles)
    turned = rotation_from_euler(pitch, yaw, roll)[0] @ torch.tensor(direction, dtype=torch.float64)
    torch.testing.assert_close(turned, torch.tensor(expected, dtype=torch.float64))


def test_euler_order_is_roll_yaw_pitch():
    zero, angles = torch.zeros(1), torch.tensor([0.3, -0.5, 0.9])
    pitch = rotation_from_euler(angles[:1], zero, zero)
    yaw = rotation_from_euler(zero, angles[1:2], zero)
    roll = rotation_from_euler(zero, zero, angles[2:])
    torch.testing.assert_close(rotation_from_euler(angles[:1], angles[1:2], angles[2:]), roll @ yaw @ pitch)


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 600])
def test_zoom_moves_and_scales_pixels_and_nothing_else(inverse_distance):
    camera, points = some_cameras(2, inverse_distance), some_points(2)
    origin = torch.tensor([17.0, -5.0], dtype=torch.float64)
    pixels, depth = project(camera, points)
    zoomed, zoomed_depth = project(zoom(camera, 2.5, origin), points)
    torch.testing.assert_close(zoomed, (pixels - origin) * 2.5)
    torch.testing.assert_close(zoomed_depth, depth)
    torch.testing.assert_close(project(zoom(camera, 3), points)[0], 3 * pixels)


def test_zero_logits_are_a_frontal_centred_camera():
    camera = camera_from_logits(torch.zeros(2, 9), SIZE, mean_scale=0.4)
    torch.testing.assert_close(camera.rotation, torch.eye(3).expand(2, 3, 3))
    assert camera.translation.eq(0).all()
    assert camera.inverse_distance.eq(0).all()
    torch.testing.assert_close(camera.scale, torch.full((2,), 0.4))
    assert camera.principal_point.tolist() == [[30.0, 20.0]] * 2


def test_logits_are_half_image_sizes_and_log_scale():
    logits = torch.zeros(2, 9)
    logits[0, 6:] = torch.tensor([1.0, -0.5, math.log(2)])
    logits[1, 8] = 50
    camera = camera_from_logits(logits, SIZE, mean_scale=0.4)
    torch.testing.assert_close(camera.translation[0], torch.tensor([30.0, -10.0]))
    torch.testing.assert_close(camera.scale, torch.tensor([0.8, 0.4 * math.exp(3)]))


def test_gradcheck_of_rotations_and_logits():
    values = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(rotation_from_6d, values)
    angles = [torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert gradcheck(rotation_from_euler, angles)
    logits = (0.3 * torch.randn(2, 9, dtype=torch.float64)).requires_grad_()

    def outputs(logits):
        camera = camera_from_logits(logits, SIZE, 0.4)
        return camera.rotation, camera.translation, camera.scale

    assert gradcheck(outputs, logits)


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 600])
def test_gradcheck_of_projections(inverse_distance):
    camera = some_cameras(2, inverse_distance)
    inputs = [getattr(camera, name).clone().requires_grad_() for name in vars(camera)]
    points = some_points(2)[:, :2].requires_grad_()

    def outputs(points, *values):
        camera = Camera(*values)
        return *project(camera, points), clip_from_object(camera, points, SIZE)

    assert gradcheck(outputs, (points, *inputs))


def test_gradcheck_of_camera_constructors():
    camera = some_cameras(2)
    position = torch.tensor([[20.0, -10, 500], [0, 5, 900]], dtype=torch.float64, requires_grad=True)
    focal = torch.tensor([700.0, 800], dtype=torch.float64, requires_grad=True)

    def outputs(position, focal):
        made = perspective(camera.rotation, position, focal, camera.principal_point)
        return made.translation, made.scale, made.inverse_distance

    assert gradcheck(outputs, (position, focal))


@pytest.mark.parametrize("points", [1, 7, 68, 1000])
def test_a_projected_element_does_not_depend_on_its_batch(points):
    camera, vertices = some_cameras(5).to(torch.float32), 60 * torch.randn(5, points, 3)
    rotated, clip = rotate(camera, vertices), clip_from_object(camera, vertices, SIZE)
    pixels, depth = project(camera, vertices)
    for k in range(5):
        alone, own = camera[k], vertices[k : k + 1]
        assert torch.equal(rotate(alone, own)[0], rotated[k])
        assert torch.equal(clip_from_object(alone, own, SIZE)[0], clip[k])
        assert torch.equal(project(alone, own)[0][0], pixels[k])
        assert torch.equal(project(alone, own)[1][0], depth[k])


@pytest.mark.parametrize("inverse_distance", [0.0, 1 / 600])
def test_clip_space_in_float32_is_exact_to_rounding(inverse_distance):
    camera, points = some_cameras(3, inverse_distance), 60 * torch.randn(3, 500, 3, dtype=torch.float64)
    exact = clip_from_object(camera, points, SIZE)
    clip = clip_from_object(camera.to(torch.float32), points.float(), SIZE)
    torch.testing.assert_close(clip.double(), exact, rtol=0, atol=1e-6)
    assert clip.is_contiguous()
    if inverse_distance == 0:
        assert clip[..., 3].eq(1).all()


def test_one_camera_sees_many_meshes():
    camera, points = some_cameras(1), some_points(3)
    repeated = camera.map(lambda value: value.expand(3, *value.shape[1:]))
    for function in (rotate, lambda c, p: clip_from_object(c, p, SIZE)):
        torch.testing.assert_close(function(camera, points), function(repeated, points))


def test_a_point_that_is_not_finite_stays_alone():
    camera, points = some_cameras(), some_points()
    broken = points.clone()
    broken[1, 3, 0] = math.nan
    for function in (rotate, lambda c, p: clip_from_object(c, p, SIZE)):
        before, after = function(camera, points), function(camera, broken)
        assert after[1, 3].isnan().all()
        before[1, 3] = after[1, 3] = 0
        assert torch.equal(after, before)


def test_clip_space_of_nothing():
    assert clip_from_object(some_cameras(2), torch.zeros(2, 0, 3, dtype=torch.float64), SIZE).shape == (2, 0, 4)
    assert clip_from_object(some_cameras(2)[:0], some_points(2)[:0], SIZE).shape == (0, 7, 4)


def test_a_pinhole_at_a_distance_keeps_its_plane_and_enlarges_what_is_nearer():
    """Points of the plane keep their pixels; those before it move away from the principal point, others towards it."""
    flat = some_cameras(inverse_distance=0.0)
    in_camera_frame = torch.tensor([[20.0, -30, 50], [-15, 8, 50], [20, -30, 90], [20, -30, 0]], dtype=torch.float64)
    points = in_camera_frame @ flat.rotation  # rotate() undoes this
    camera = at_distance(flat, *torch.tensor([500.0, 50.0], dtype=torch.float64)[:, None].expand(2, 3))
    assert camera.inverse_distance.tolist() == [1 / 500] * 3
    before, after = (project(each, points)[0] - flat.principal_point[:, None] for each in (flat, camera))
    torch.testing.assert_close(after[:, :2], before[:, :2])
    larger = after.norm(dim=-1) / before.norm(dim=-1)
    torch.testing.assert_close(larger[:, 2], torch.full((3,), 450 / 410, dtype=torch.float64))
    torch.testing.assert_close(larger[:, 3], torch.full((3,), 450 / 500, dtype=torch.float64))
