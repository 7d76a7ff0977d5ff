import numpy as np
import pytest
import torch
from render_reference import SCENES, face, reference_attributes, reference_ids, soup

from nl3dmm.render import interpolate, rasterize

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def ids_of(rast):
    return rast[..., 3].long() - 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scene", SCENES)
def test_ids_and_attributes_equal_brute_force(backend, scene, dtype):
    pos, tri, height, width = SCENES[scene]
    pos = pos.to(dtype)
    rast, rast_db = rasterize(None, pos[None], tri, (height, width))
    assert rast.shape == (1, height, width, 4)
    assert rast_db.shape == (1, height, width, 0)
    expected = reference_ids(pos, tri, height, width)
    assert (expected >= 0).any()
    assert (ids_of(rast)[0].numpy() != expected).sum() == 0
    attr = torch.rand(len(pos), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    out, _ = interpolate(attr[None], rast, tri)
    np.testing.assert_allclose(out[0].numpy(), reference_attributes(pos, tri, attr, expected), atol=1e-5)


def test_depth_and_barycentrics_have_known_values(backend):
    pos = torch.tensor([[[-1.0, -1, 0, 1], [3, -1, 1, 1], [-1, 3, 0.5, 1]]])
    rast, _ = rasterize(None, pos, torch.tensor([[0, 1, 2]]), (2, 2))
    # centres at NDC -0.5 and 0.5; vertex 1 is 4 to the right, vertex 2 is 4 up
    torch.testing.assert_close(rast[0, 0, 1], torch.tensor([0.5, 0.375, 0.4375, 1]))
    torch.testing.assert_close(rast[0, 1, 0], torch.tensor([0.5, 0.125, 0.3125, 1]))


def test_row_zero_is_the_side_of_y_minus_one(backend):
    pos = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [1, 0, 0, 1], [-1, 0, 0, 1]]])
    rast, _ = rasterize(None, pos, torch.tensor([[0, 1, 2], [0, 2, 3]]), (4, 4))
    assert (ids_of(rast)[0, :2] >= 0).all()
    assert (ids_of(rast)[0, 2:] < 0).all()


def test_shared_edges_are_watertight_and_never_doubled(backend):
    generator = torch.Generator().manual_seed(5)
    for size in (16, 17):
        centre = torch.randint(-7, 8, (1, 2), generator=generator) / 8.0
        corners = torch.tensor([[-1.0, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0]])
        xy = torch.cat([centre, corners])
        pos = torch.cat([xy, torch.zeros(9, 1), torch.ones(9, 1)], -1)[None]
        fan = torch.tensor([[0, 1 + k, 1 + (k + 1) % 8] for k in range(8)])
        counts = sum((rasterize(None, pos, fan[k : k + 1], (size, size))[0][..., 3] > 0).int() for k in range(8))
        assert (counts == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_later_triangle_wins_equal_depths(backend, dtype):
    pos = torch.tensor([[[-1.0, -1, 0.3, 1], [1, -1, -0.2, 1], [0, 1, 0.9, 1]]], dtype=dtype)
    tri = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0]])
    for last in range(1, 4):
        ids = ids_of(rasterize(None, pos, tri[:last], (20, 20))[0])
        assert set(ids.unique().tolist()) == {-1, last - 1}


@pytest.mark.parametrize("seed", range(4))
def test_clipping_agrees_with_homogeneous_sampling(backend, seed):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(3, 4, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 2, 1, 1])
    pos[:, 3] += 0.4  # often one vertex lies behind the viewer
    tri, size = torch.tensor([[0, 1, 2]]), 64
    rast, _ = rasterize(None, pos[None], tri, (size, size))
    axis = (2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    weights = torch.linalg.solve(pos[:, [0, 1, 3]].T, torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3).T)
    z = (weights * pos[:, 2:3]).sum(0)  # here w = 1
    expected = ((weights >= 0).all(0) & (z.abs() <= 1)).view(size, size)
    assert (expected != (rast[0, ..., 3] > 0)).double().mean() < 0.01


def test_both_backends_clip_to_the_same_ids(monkeypatch):
    pos, tri = soup(400, seed=9)
    pos = (pos * torch.tensor([2.0, 2, 1.5, 1]) - torch.tensor([0, 0, 0, 0.8])).float()[None]
    images = []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        images.append(rasterize(None, pos, tri, (50, 61))[0])
    assert (images[0][..., 3] > 0).double().mean() > 0.5
    assert torch.equal(images[0][..., 3], images[1][..., 3])
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


def test_screen_filling_and_outside_triangles(backend):
    tri = torch.tensor([[0, 1, 2]])
    large = torch.tensor([[[-1e6, -1e6, 0, 1], [1e6, -1e6, 0, 1], [0, 1e6, 0, 1]]])
    assert (rasterize(None, large, tri, (9, 7))[0][..., 3] == 1).all()
    for axis, value in ((0, 3.0), (1, -3.0), (2, 2.0), (2, -2.0)):
        outside = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]])
        outside[..., axis] += value
        assert not rasterize(None, outside, tri, (9, 7))[0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("axis", range(4))
def test_triangles_with_vertices_that_are_not_finite_are_skipped(backend, bad, axis):
    pos, tri = face(6)
    pos = pos.float()[None].clone()
    pos[0, 14, axis] = bad
    pos.requires_grad_()
    rast, _ = rasterize(None, pos, tri, (24, 24))
    kept = tri[(tri != 14).all(-1)]
    expected, _ = rasterize(None, pos.detach(), kept, (24, 24))
    assert torch.equal(rast[..., :3], expected[..., :3])
    rast[..., :2].sum().backward()
    assert pos.grad.isfinite().all()


def test_degenerate_triangles_and_indices_that_do_not_exist_are_skipped(backend):
    pos, tri = face(6)
    pos = pos.float()[None]
    bad = torch.tensor([[0, 0, 1], [3, 3, 3], [-1, 0, 1], [0, 1, 36], [2**40, 0, 1], [0, 1, 2]])
    rast, _ = rasterize(None, pos, torch.cat([bad, tri]), (24, 24))
    expected, _ = rasterize(None, pos, tri, (24, 24))
    assert torch.equal(rast[..., :3], expected[..., :3])
    assert torch.equal(rast[..., 3], torch.where(expected[..., 3] > 0, expected[..., 3] + len(bad), 0))
    assert not rasterize(None, torch.zeros_like(pos), tri, (24, 24))[0].any()


def test_empty_meshes_and_batches(backend):
    pos, tri = face(4)
    pos = pos.float()[None]
    assert not rasterize(None, pos, tri[:0], (3, 5))[0].any()
    assert not rasterize(None, pos[:, :0], tri[:0], (3, 5))[0].any()
    assert not rasterize(None, pos[:, :0], tri, (3, 5))[0].any()
    assert rasterize(None, pos[:0], tri, (3, 5))[0].shape == (0, 3, 5, 4)
    gradient = pos.clone().requires_grad_()
    rasterize(None, gradient, tri[:0], (3, 5))[0].sum().backward()
    assert not gradient.grad.any()


def test_integer_types_layouts_and_batch_order_do_not_matter(backend):
    pos, tri = face(8)
    pos = torch.stack([pos, pos * torch.tensor([0.5, 1, 1, 1]), pos * torch.tensor([1, 0.3, 1, 1])]).float()
    rast, _ = rasterize(None, pos, tri, (20, 22))
    strided = pos.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(rast, rasterize(None, strided, tri.int(), (20, 22))[0])
    order = [2, 0, 1]
    assert torch.equal(rast[order], rasterize(None, pos[order], tri, (20, 22))[0])


def test_values_keep_their_ranges_where_snapping_moved_the_edge(backend):
    pos, tri = face(40, yaw=1.2)
    rast, _ = rasterize(None, pos.float()[None], tri, (48, 48))
    u, v, depth, _ = rast.unbind(-1)
    assert u.min() >= 0
    assert v.min() >= 0
    assert (u + v).max() <= 1 + 1e-6
    assert depth.abs().max() <= 1


def test_gradient_equals_finite_differences_inside_triangles(backend):
    pos, tri = soup(6, seed=6)
    pos = (pos * torch.tensor([1.3, 1.3, 1, 1]))[None]  # some cross the border
    rast, _ = rasterize(None, pos, tri, (9, 10))
    weights = torch.stack([rast[..., 0], rast[..., 1], 1 - rast[..., 0] - rast[..., 1]], -1)
    inside = ((weights.amin(-1) > 1e-3) & (rast[..., 3] > 0))[..., None]
    assert inside.sum() > 20
    assert torch.autograd.gradcheck(
        lambda pos: rasterize(None, pos, tri, (9, 10))[0][..., :2] * inside, pos.requires_grad_()
    )


def test_depth_and_index_channels_have_no_gradient(backend):
    pos, tri = face(6)
    pos = pos[None].requires_grad_()
    rast, _ = rasterize(None, pos, tri, (16, 16))
    (gradient,) = torch.autograd.grad(rast[..., 2:].sum(), pos, retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(rast[..., :2].square().sum(), pos)
    assert gradient[..., [0, 1, 3]].any()
    assert not gradient[..., 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_gradient_equals_torch_autograd(monkeypatch, dtype):
    start, tri = face(30)
    start = torch.stack([start, start * torch.tensor([1.4, 0.9, 1, 1])]).to(dtype)
    weight = torch.randn(2, 40, 37, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        pos = start.clone().requires_grad_()
        (rasterize(None, pos, tri, (40, 37))[0][..., :2] * weight).sum().backward()
        gradients.append(pos.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))
    assert torch.cosine_similarity(*(gradient.flatten().double() for gradient in gradients), dim=0) > 0.999999
