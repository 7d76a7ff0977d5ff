"""Surfaces laid flat: lengths on the plane are lengths on the surface."""

import math

import pytest
import torch

from nl3dmm.assets.template import grid_triangles
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.geometry.patch import flatten_patch

UP = torch.tensor([0.0, 1.0, 0.0])
SIDE = 41
MIDDLE = SIDE * SIDE // 2


def sheet(step: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """mm to the right and up of the vertices of a square grid, row-major from the top left; its triangles."""
    axis = (torch.arange(SIDE) - SIDE // 2) * step
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1), grid_triangles(torch.ones(SIDE, SIDE, dtype=torch.bool))


def flatten(vertices: torch.Tensor, triangles: torch.Tensor, reach: float = 30.0) -> torch.Tensor:
    normals = vertex_normals(vertices[None], triangles)[0]
    centre = torch.tensor([MIDDLE, MIDDLE + 1, MIDDLE + SIDE]), torch.tensor([1.0, 0.0, 0.0])
    return flatten_patch(vertices, triangles, normals, centre, UP, reach)


def test_a_plane_is_kept_and_ends_at_the_reach():
    plane, triangles = sheet()
    flat = flatten(torch.cat([plane, torch.zeros(len(plane), 1)], 1), triangles)
    reached = flat.isfinite().all(1)
    torch.testing.assert_close(flat[reached], plane[reached], atol=1e-3, rtol=0)
    distance = plane.norm(dim=1)
    assert reached[distance < 27].all()
    assert not reached[distance > 30].any()


@pytest.mark.parametrize("axis", [0, 1], ids=["rolled sideways", "rolled over"])
def test_a_cylinder_unrolls(axis):
    plane, triangles = sheet()
    radius = 40.0
    angle = plane[:, axis] / radius
    columns = {axis: radius * angle.sin(), 1 - axis: plane[:, 1 - axis], 2: radius * angle.cos()}
    flat = flatten(torch.stack([columns[k] for k in range(3)], 1), triangles)
    reached = flat.isfinite().all(1)
    torch.testing.assert_close(flat[reached], plane[reached], atol=0.1, rtol=0)


def test_a_sphere_keeps_distances_from_the_centre():
    """As large as a head; azimuthal coordinates of the grid are the true distances and directions."""
    plane, triangles = sheet()
    radius, distance = 80.0, plane.norm(dim=1, keepdim=True)
    across = plane / distance.clamp_min(1e-6) * radius * (distance / radius).sin()
    vertices = torch.cat([across, radius * (distance / radius).cos()], 1)
    flat = flatten(vertices, triangles)
    near = distance[:, 0] < 22
    torch.testing.assert_close(flat[near].norm(dim=1), distance[near, 0], atol=0.3, rtol=0)
    torch.testing.assert_close(flat[near], plane[near], atol=0.3, rtol=0)


def test_the_viewers_right_is_right_wherever_the_surface_faces():
    plane, triangles = sheet()
    for angle in (-0.9, 0.9):  # about the vertical, to the image's left and right
        c, s = math.cos(angle), math.sin(angle)
        turned = torch.stack([plane[:, 0] * c, plane[:, 1], -plane[:, 0] * s], 1)
        flat = flatten(turned, triangles)
        assert flat[MIDDLE + 3][0] == pytest.approx(6.0, abs=1e-3)
        assert flat[MIDDLE - 3 * SIDE][1] == pytest.approx(6.0, abs=1e-3)


def test_a_surface_that_faces_up_has_a_direction():
    plane, triangles = sheet()
    lying = torch.stack([plane[:, 0], torch.zeros(len(plane)), -plane[:, 1]], 1)  # faces +y, top of the sheet behind
    flat = flatten(lying, triangles)
    torch.testing.assert_close(flat[MIDDLE - 2 * SIDE], torch.tensor([0.0, 4.0]), atol=1e-3, rtol=0)


def test_what_does_not_hang_together_with_the_centre_is_left_out():
    plane, triangles = sheet()
    vertices = torch.cat([plane, torch.zeros(len(plane), 1)], 1)
    column = torch.arange(SIDE * SIDE) % SIDE
    gap = column == SIDE // 2 + 4
    flat = flatten(vertices, triangles[~gap[triangles].any(1)])
    assert flat[column >= SIDE // 2 + 4].isnan().all()
    assert flat[MIDDLE - 5].isfinite().all()
