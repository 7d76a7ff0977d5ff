"""Range mode: images of different meshes that share one array of vertices."""

import pytest
import torch
from render_reference import face, soup

from nl3dmm.errors import ShapeError
from nl3dmm.render import interpolate, rasterize

SIZE = (30, 27)


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def three_meshes(dtype=torch.float64):
    """Vertices and triangles one after the other, and the range of each mesh."""
    meshes = [face(12), soup(25, seed=1), face(7, yaw=-0.9)]
    vertices = torch.tensor([0, *(len(pos) for pos, _ in meshes)]).cumsum(0)[:3]
    triangles = torch.cat([tri + start for (_, tri), start in zip(meshes, vertices, strict=True)])
    counts = torch.tensor([len(tri) for _, tri in meshes])
    ranges = torch.stack([counts.cumsum(0) - counts, counts], 1)
    return torch.cat([pos for pos, _ in meshes]).to(dtype), triangles, ranges


def image_by_image(pos, tri, ranges, size=SIZE):
    """The same in instance mode: each image from its own triangles, indices counted from the first of all."""
    images = []
    for first, count in ranges.tolist():
        rast, rast_db = rasterize(None, pos[None], tri[first : first + count], size, grad_db=True)
        shift = torch.zeros_like(rast)
        shift[..., 3] = first * (rast[..., 3] > 0)
        images.append((rast + shift, rast_db))
    return [torch.cat(parts) for parts in zip(*images, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0], [1, 1, 0, 1]])
def test_range_mode_equals_instance_mode_with_slices(backend, dtype, order):
    pos, tri, ranges = three_meshes(dtype)
    ranges, pos = ranges[order], pos.requires_grad_()
    got = rasterize(None, pos, tri, SIZE, ranges=ranges.int(), grad_db=True)
    expected = image_by_image(pos, tri, ranges)
    weights = [torch.randn_like(part) for part in expected]
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    gradients = []
    for parts in (got, expected):
        (gradient,) = torch.autograd.grad(sum((w * p).sum() for w, p in zip(weights, parts, strict=True)), pos)
        gradients.append(gradient)
    scale = float(gradients[0].abs().max())
    tolerance = (1e-12 if dtype == torch.float64 else 1e-5) * scale  # only the order of the sum may differ
    assert scale > 0
    torch.testing.assert_close(*gradients, rtol=0, atol=tolerance)
    assert len(gradients[0]) == len(pos)


def test_indices_count_from_the_first_of_all_triangles(backend):
    pos, tri, ranges = three_meshes()
    ids = rasterize(None, pos, tri, SIZE, ranges=ranges)[0][..., 3].long() - 1
    for image, (first, count) in zip(ids, ranges.tolist(), strict=True):
        seen = image[image >= 0]
        assert len(seen) > 50
        assert seen.min() >= first
        assert seen.max() < first + count


def test_ranges_may_overlap_and_be_empty(backend):
    pos, tri, _ = three_meshes()
    pos.requires_grad_()
    ranges = torch.tensor([[0, len(tri)], [5, 0], [len(tri), 0], [0, 40], [20, 40]])
    rast, _ = rasterize(None, pos, tri, SIZE, ranges=ranges)
    assert not rast[1:3].any()
    assert torch.equal(rast, image_by_image(pos, tri, ranges)[0])
    rast.square().sum().backward()
    assert pos.grad.isfinite().all()
    assert pos.grad.any()


def test_later_triangle_of_the_range_wins_equal_depths(backend):
    pos = torch.tensor([[-1.0, -1, 0.3, 1], [1, -1, -0.2, 1], [0, 1, 0.9, 1]])
    tri = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]])
    rast, _ = rasterize(None, pos, tri, (9, 9), ranges=torch.tensor([[0, 2], [1, 2], [2, 1], [0, 4]]))
    assert [sorted(image[..., 3].unique().tolist()) for image in rast] == [[0, 2], [0, 3], [0, 3], [0, 4]]


def test_no_images_no_vertices_and_no_triangles(backend):
    pos, tri, ranges = three_meshes()
    rast, rast_db = rasterize(None, pos, tri, SIZE, ranges=ranges[:0], grad_db=True)
    assert rast.shape == rast_db.shape == (0, *SIZE, 4)
    assert not rasterize(None, pos[:0], tri, SIZE, ranges=ranges)[0].any()
    assert not rasterize(None, pos, tri[:0], SIZE, ranges=torch.zeros(2, 2, dtype=torch.int32))[0].any()
    leaf = pos.clone().requires_grad_()
    rasterize(None, leaf, tri, SIZE, ranges=ranges[:0])[0].sum().backward()
    assert not leaf.grad.any()


def test_indices_that_do_not_exist_are_skipped(backend):
    pos, tri, ranges = three_meshes()
    pos = pos.requires_grad_()
    broken = tri.clone()
    first = ranges[1, 0]
    broken[first : first + 4, 1] = torch.tensor([-1, len(pos), -(2**63), 2**63 - 1])
    rast, _ = rasterize(None, pos, broken, SIZE, ranges=ranges)
    assert torch.equal(rast, image_by_image(pos, broken, ranges)[0])
    assert not torch.isin(rast[..., 3] - 1, torch.arange(first, first + 4)).any()
    rast.square().sum().backward()
    assert pos.grad.isfinite().all()
    all_bad = torch.tensor([[-5, -4, -3], [len(pos), len(pos) + 1, len(pos) + 2]])
    assert not rasterize(None, pos, all_bad, SIZE, ranges=torch.tensor([[0, 1], [1, 1], [0, 2]]))[0].any()


@pytest.mark.parametrize("axes", [2, 3])
def test_attributes_are_shared_by_all_images(backend, axes):
    pos, tri, ranges = three_meshes()
    attr = torch.rand(1, len(pos), 3, dtype=torch.float64)
    shared = (attr if axes == 3 else attr[0]).clone().requires_grad_()
    repeated = attr.repeat(3, 1, 1).requires_grad_()
    rast, rast_db = rasterize(None, pos, tri, SIZE, ranges=ranges, grad_db=False)
    for leaf in (shared, repeated):
        out, out_da = interpolate(leaf, rast, tri, rast_db, "all")
        (out.square().sum() + out_da.square().sum()).backward()
    torch.testing.assert_close(shared.grad, repeated.grad.sum(0, keepdim=axes == 3))


def test_gradcheck_inside_triangles(backend):
    pos, tri = soup(6, seed=6)
    ranges = torch.tensor([[0, 6], [2, 4], [1, 2]])
    rast, _ = rasterize(None, pos, tri, (6, 7), ranges=ranges)
    u, v, _, number = rast.unbind(-1)
    inside = ((torch.stack([u, v, 1 - u - v]).amin(0) > 1e-3) & (number > 0))[..., None]
    assert inside.sum() > 10
    assert torch.autograd.gradcheck(
        lambda pos: rasterize(None, pos, tri, (6, 7), ranges=ranges)[0][..., :2] * inside, pos.requires_grad_()
    )


def outputs_and_gradients(dtype=torch.float32):
    pos, tri, ranges = three_meshes(dtype)
    pos, attr = pos.requires_grad_(), torch.linspace(0, 1, 3 * len(pos), dtype=dtype).view(-1, 3).requires_grad_()
    rast, rast_db = rasterize(None, pos, tri, SIZE, ranges=ranges[[0, 1, 2, 0, 1]], grad_db=True)
    out, out_da = interpolate(attr, rast, tri, rast_db, [0, -1])
    gradients = torch.autograd.grad(out.square().sum() + out_da.square().sum(), [pos, attr])
    return [tensor.detach() for tensor in (rast, rast_db, out, out_da, *gradients)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_equal_torch_autograd(monkeypatch, dtype):
    results = []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        results.append(outputs_and_gradients(dtype))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(float(one.abs().max()), 1))


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", "numba")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": torch.zeros(1, 3, 4)}, r"pos: got shape \(1, 3, 4\); expected \(vertices, 4\) with ranges"),
        ({"ranges": [[0, 1]]}, "ranges: got list; expected int32"),
        ({"ranges": torch.zeros(2, 2)}, r"ranges: got torch.float32 \(2, 2\); expected int32 \(batch, 2\)"),
        ({"ranges": torch.zeros(2, 3).int()}, r"ranges: got torch.int32 \(2, 3\); expected int32 \(batch, 2\)"),
        ({"ranges": torch.zeros(2, 2, device="meta").int()}, "ranges: got device meta; expected cpu"),
        (
            {"ranges": torch.tensor([[1, 2]])},
            r"ranges: got \[1, 2\] for image \d; expected starts and counts within 2 triangles",
        ),
        (
            {"ranges": torch.tensor([[-1, 1]])},
            r"ranges: got \[-1, 1\] for image \d; expected starts and counts within 2",
        ),
        (
            {"ranges": torch.tensor([[1, -1]])},
            r"ranges: got \[1, -1\] for image \d; expected starts and counts within 2",
        ),
    ],
)
def test_wrong_ranges_are_named(change, message):
    arguments = {"pos": torch.zeros(3, 4), "tri": torch.tensor([[0, 1, 2]] * 2), "resolution": (4, 4)}
    with pytest.raises(ShapeError, match=message):
        rasterize(None, **{**arguments, "ranges": torch.tensor([[0, 1]]), **change})
