"""Vertex normals of both CPU backends: known values, agreement with each other, faults, threads."""

import math

import pytest
import torch
from render_reference import face
from torch.autograd import gradcheck

from nl3dmm.errors import ShapeError
from nl3dmm.geometry import mesh
from nl3dmm.render import vertex_normals, warmup

TRI = torch.tensor([[0, 1, 2]])


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)
    return request.param


@pytest.fixture
def numba(monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", "numba")


def sheets(batch: int = 3, size: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Crumpled sheets of some ten millimetres in float64: vertices, triangles."""
    pos, tri = face(size)
    return 20 * pos[:, :3] + 0.5 * torch.randn(batch, size * size, 3, dtype=torch.float64), tri


def with_gradient(function, vertices, triangles):
    """Normals, and the gradient of their product with numbers that depend on their shape only."""
    vertices = vertices.detach().requires_grad_()
    normals = function(vertices, triangles)
    weights = torch.randn(normals.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return normals.detach(), torch.autograd.grad(normals, vertices, weights.to(normals))[0]


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_known_normals_of_a_tetrahedron(backend, tetrahedron, dtype, index):
    vertices, triangles = tetrahedron
    normals = vertex_normals(vertices.to(dtype), triangles.to(index))
    third = -math.sqrt(1 / 3)
    expected = torch.tensor([[third] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=dtype)
    torch.testing.assert_close(normals, expected[None])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_numba_is_torch_in_value_and_gradient(numba, dtype, tolerance):
    vertices, triangles = sheets()
    normals, gradient = with_gradient(vertex_normals, vertices.to(dtype), triangles)
    expected, expected_gradient = with_gradient(mesh.vertex_normals, vertices, triangles)
    assert normals.dtype == gradient.dtype == dtype
    torch.testing.assert_close(normals.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, atol=10 * tolerance, rtol=10 * tolerance)


def test_gradcheck(backend, patch):
    vertices, triangles, _ = patch
    vertices = torch.cat([vertices, 0.5 * vertices.flip(1)]).requires_grad_()
    assert gradcheck(lambda v: vertex_normals(v, triangles), vertices)


def test_collapsed_triangles_and_unused_vertices(backend):
    """Below the least length of a sum the normal is linear in it: zero here, with a gradient of moderate size."""
    collapsed = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 9, 9]]], dtype=torch.float64)
    normals, gradient = with_gradient(vertex_normals, collapsed, TRI)
    assert normals.eq(0).all()
    assert gradient[0, 3].eq(0).all()
    assert 1e3 < gradient.abs().max() < 1e5
    torch.testing.assert_close(gradient, with_gradient(mesh.vertex_normals, collapsed, TRI)[1])
    assert gradcheck(lambda v: vertex_normals(v, TRI), collapsed.requires_grad_())


def test_short_sums_make_short_normals(backend):
    """Areas around the least length, 1e-4 mm^2, on both sides of it; in float32."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]) * torch.tensor([2e-3, 8e-3, 2e-2])[:, None, None]
    normals, gradient = with_gradient(vertex_normals, vertices, TRI)
    torch.testing.assert_close(normals[:, :, 2], torch.tensor([[0.04], [0.64], [1.0]]).expand(3, 3))
    torch.testing.assert_close(gradient, with_gradient(mesh.vertex_normals, vertices, TRI)[1])


def test_triangles_that_repeat_a_vertex_count_nothing(backend):
    vertices, triangles = sheets(1)
    repeating = torch.cat([triangles, torch.tensor([[3, 3, 5], [7, 2, 7], [1, 1, 1]])])
    actual, expected = (with_gradient(vertex_normals, vertices, tri) for tri in (repeating, triangles))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_vertex_that_is_not_finite_stays_local(backend, value):
    vertices, triangles = sheets(2)
    broken = vertices.clone()
    broken[0, 40, 1] = value
    near = triangles[(triangles == 40).any(1)].unique()
    around = triangles[torch.isin(triangles, near).any(1)].unique()
    normals, gradient = with_gradient(vertex_normals, broken, triangles)
    expected, expected_gradient = with_gradient(vertex_normals, vertices, triangles)
    is_normal_far, is_gradient_far = torch.ones(2, 2, 81, dtype=torch.bool)
    is_normal_far[0, near], is_gradient_far[0, around] = False, False
    assert torch.equal(normals[is_normal_far], expected[is_normal_far])
    assert torch.equal(gradient[is_gradient_far], expected_gradient[is_gradient_far])
    of_torch, gradient_of_torch = with_gradient(mesh.vertex_normals, broken, triangles)
    assert torch.equal(normals.isnan(), of_torch.isnan())
    assert torch.equal(gradient.isnan(), gradient_of_torch.isnan())
    assert normals[0, 40].isnan().any()


@pytest.mark.parametrize(("batch", "vertices", "triangles"), [(0, 3, 1), (2, 3, 0), (2, 0, 0), (0, 0, 0)])
def test_nothing_to_do(backend, batch, vertices, triangles):
    points = torch.randn(batch, vertices, 3)
    normals, gradient = with_gradient(vertex_normals, points, TRI[:triangles])
    assert normals.shape == gradient.shape == points.shape
    assert normals.eq(0).all()
    assert gradient.eq(0).all()


@pytest.mark.parametrize(
    ("vertices", "triangles", "message"),
    [
        (torch.zeros(3, 3), TRI, r"vertices: got shape \(3, 3\); expected \(batch, vertices, 3\)"),
        (torch.zeros(1, 3, 4), TRI, r"vertices: got shape \(1, 3, 4\); expected"),
        (torch.zeros(1, 3, 3).half(), TRI, "vertices: got torch.float16; expected float32 or float64"),
        (None, TRI, "vertices: got NoneType; expected a tensor"),
        (torch.zeros(1, 3, 3), None, r"triangles: got NoneType; expected int32 or int64 \(triangles, 3\)"),
        (torch.zeros(1, 3, 3), TRI[0], r"triangles: got torch.int64 \(3,\); expected int32 or int64"),
        (torch.zeros(1, 3, 3), TRI.float(), r"triangles: got torch.float32 \(1, 3\); expected int32 or"),
        (torch.zeros(1, 3, 3), TRI[:, :2], r"triangles: got torch.int64 \(1, 2\); expected"),
        (torch.zeros(1, 3, 3), TRI.to("meta"), r"triangles: got device meta; expected cpu"),
        (torch.zeros(1, 3, 3), TRI + 1, "triangles: got indices from 1 to 3; expected 0 to 2. Pass those of this mesh"),
        (torch.zeros(1, 3, 3), TRI - 1, "triangles: got indices from -1 to 1; expected 0 to 2"),
        (torch.zeros(0, 0, 3), TRI, "triangles: got indices from 0 to 2; expected 0 to -1"),
    ],
)
def test_wrong_arguments_are_named(backend, vertices, triangles, message):
    with pytest.raises(ShapeError, match=message):
        vertex_normals(vertices, triangles)


def test_any_layout_of_the_arguments(backend):
    vertices, triangles = sheets(2)
    expected = with_gradient(vertex_normals, vertices, triangles)
    turned = vertices.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    columns = triangles.t().contiguous().t()
    assert not turned.is_contiguous()
    assert not columns.is_contiguous()
    assert_same_bits(with_gradient(vertex_normals, turned, columns), expected)
    shared = vertices[:1].expand(2, -1, -1)
    torch.testing.assert_close(vertex_normals(shared, triangles), expected[0][:1].expand(2, -1, -1))
    assert vertex_normals(turned, triangles).is_contiguous()
    leaf = vertices.clone().requires_grad_()
    vertex_normals(leaf, triangles).sum().backward()  # a gradient without memory of its own
    torch.testing.assert_close(leaf.grad.sum(1), torch.zeros(2, 3, dtype=torch.float64))


def test_an_element_does_not_depend_on_its_batch(backend):
    vertices, triangles = sheets(5)
    whole = vertex_normals(vertices.float(), triangles)
    for number in range(5):
        assert torch.equal(vertex_normals(vertices[number : number + 1].float(), triangles)[0], whole[number])


def test_one_and_two_threads_give_the_same_bits(numba):
    vertices, triangles = sheets(5)
    expected = with_gradient(vertex_normals, vertices.float(), triangles)
    torch.set_num_threads(2)
    try:
        assert_same_bits(with_gradient(vertex_normals, vertices.float(), triangles), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warmup_leaves_nothing_to_compile(numba, dtype):
    from nl3dmm.render._numba import normals

    warmup(dtype)
    kernels = [normals.mesh_normals, normals.mesh_normals_backward]
    before = [len(kernel.signatures) for kernel in kernels]
    vertices, triangles = sheets(1)
    with_gradient(vertex_normals, vertices.to(dtype), triangles.int())
    assert min(before) >= 1
    assert [len(kernel.signatures) for kernel in kernels] == before
