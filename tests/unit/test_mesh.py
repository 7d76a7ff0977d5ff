"""Normals and edges on meshes whose answer is known."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.mesh import triangle_normals, vertex_normals


def test_triangle_normal_is_twice_the_area_long_and_counter_clockwise():
    vertices = torch.tensor([[[0.0, 0, 5], [3, 0, 5], [0, 4, 5]]])
    assert triangle_normals(vertices, torch.tensor([[0, 1, 2]])).tolist() == [[[0, 0, 12]]]
    assert triangle_normals(vertices, torch.tensor([[0, 2, 1]])).tolist() == [[[0, 0, -12]]]


def test_tetrahedron_normals_point_outwards_and_sum_to_zero(tetrahedron):
    vertices, triangles = tetrahedron
    normals = triangle_normals(vertices, triangles)
    outward = vertices[:, triangles].mean(2) - vertices.mean(1, keepdim=True)
    assert ((normals * outward).sum(-1) > 0).all()
    torch.testing.assert_close(normals.sum(1), torch.zeros(1, 3, dtype=torch.float64))


def test_vertex_normals_are_weighted_by_area(tetrahedron):
    vertices, triangles = tetrahedron
    normals = vertex_normals(vertices, triangles)
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(1, 4, dtype=torch.float64))
    corner = -torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    torch.testing.assert_close(normals[0, 0], corner)
    # Vertex 1 touches the slanted triangle (1, 1, 1) and two unit triangles (0, 0, -1) and (0, -1, 0).
    torch.testing.assert_close(normals[0, 1], torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_scale_changes_no_normal_and_rotation_turns_it(tetrahedron):
    vertices, triangles = tetrahedron
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    normals = vertex_normals(vertices, triangles)
    torch.testing.assert_close(vertex_normals(7 * vertices + 3, triangles), normals)
    torch.testing.assert_close(vertex_normals(vertices @ turn.T, triangles), normals @ turn.T)


def test_unused_vertices_and_degenerate_triangles_have_zero_normals_and_moderate_gradients():
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 9, 9]]], requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    assert normals.eq(0).all()
    normals.sum().backward()
    assert vertices.grad.abs().max() < 1e5


def test_edges_of_a_face_obey_euler(small_template):
    """A disc: vertices - edges + triangles = 1."""
    sides = torch.cat([small_template.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    edges = sides.sort(dim=1).values.unique(dim=0)
    assert len(small_template.vertices) - len(edges) + len(small_template.triangles) == 1


def test_gradcheck(patch):
    vertices, triangles, _ = patch
    vertices = vertices.requires_grad_()
    assert gradcheck(lambda v: triangle_normals(v, triangles), vertices)
    assert gradcheck(lambda v: vertex_normals(v, triangles), vertices)


def test_a_batch_is_its_elements_to_the_last_bit(patch):
    vertices, triangles, _ = patch
    batch = (vertices * torch.tensor([1.0, 2, 3])[:, None, None] + torch.randn(3, 16, 3)).float()
    for function in (triangle_normals, vertex_normals):
        whole = function(batch, triangles)
        assert torch.equal(whole, torch.cat([function(batch[k : k + 1], triangles) for k in range(3)]))
        assert torch.equal(whole, function(batch, triangles.int()))
    assert vertex_normals(batch, triangles).is_contiguous()


def test_gradient_of_a_batch(patch):
    vertices, triangles, _ = patch
    batch = torch.cat([vertices, vertices.flip(1), 2 * vertices]).requires_grad_()
    assert gradcheck(lambda v: triangle_normals(v, triangles), batch)
    assert gradcheck(lambda v: vertex_normals(v, triangles), batch)


@pytest.mark.parametrize(("batch", "vertices", "triangles"), [(0, 3, 1), (2, 3, 0), (2, 0, 0)])
def test_empty_meshes_and_batches(batch, vertices, triangles):
    points, corners = torch.randn(batch, vertices, 3), torch.tensor([[0, 1, 2]])[:triangles]
    assert triangle_normals(points, corners).shape == (batch, triangles, 3)
    assert torch.equal(vertex_normals(points, corners), torch.zeros(batch, vertices, 3))


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_that_does_not_exist_is_an_error(index):
    with pytest.raises(IndexError, match="out of range"):
        vertex_normals(torch.zeros(1, 3, 3), torch.tensor([[0, 1, index]]))
