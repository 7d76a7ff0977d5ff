import numpy as np
import pytest
import torch
from render_reference import SCENES, face, reference_antialias

from nl3dmm.render import antialias, antialias_construct_topology_hash, rasterize

DTYPES = [torch.float32, torch.float64]
QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])
CUBE = torch.tensor([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])

W = torch.tensor([0.97, 1.23, -0.91], dtype=torch.float64)
BEHIND = torch.stack([torch.tensor([-0.41, 0.47, 0.13]), torch.tensor([-0.53, -0.62, 0.9]), -0.9 * W - 0.005, W], -1)[
    None
]


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def random(*size, seed=0, dtype=torch.float64):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clip_from_pixels(xy, size, z=0.0, w=1.0):
    """Clip positions of points in pixels of a size x size image, (0, 0) = its first corner."""
    ndc = torch.cat([2 * xy / size - 1, torch.full((len(xy), 1), z), torch.ones(len(xy), 1)], -1)
    return (ndc * w)[None]


def rectangle(left, bottom, right, top):
    return torch.tensor([[left, bottom], [right, bottom], [right, top], [left, top]], dtype=torch.float64)


def mask_of(pos, tri, size):
    """Antialiased coverage of one mesh."""
    rast, _ = rasterize(None, pos, tri, (size, size))
    return antialias((rast[..., 3:] > 0).to(pos.dtype), rast, pos, tri)[..., 0]


def cube(angle=0.5):
    """A turned cube seen in perspective; its triangles are wound alike."""
    corner = torch.tensor([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], dtype=torch.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ torch.tensor(
        [[1, 0, 0], [0, cos, -sin], [0, sin, cos]]
    )
    x, y, z = (corner @ turn.T).unbind(-1)
    pos = torch.stack([1.4 * x, 1.4 * y, 0.1 * z, z + 4], -1)
    return pos[None], torch.cat([CUBE[:, [0, 1, 2]], CUBE[:, [0, 2, 3]]])


def disc(rings, sectors, radius, size):
    """A flat disc of concentric rings around the centre of the image."""
    angle = torch.arange(sectors, dtype=torch.float64) * 2 * np.pi / sectors + 0.1
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    radii = radius * torch.arange(1, rings + 1, dtype=torch.float64) / rings
    xy = torch.cat([torch.zeros(1, 2).double(), (radii[:, None, None] * circle).flatten(0, 1)]) + size / 2
    k = torch.arange(sectors)
    tri = [torch.stack([torch.zeros_like(k), 1 + k, 1 + (k + 1) % sectors], -1)]
    for ring in range(rings - 1):
        inner, outer = 1 + ring * sectors, 1 + (ring + 1) * sectors
        following = (k + 1) % sectors
        tri.append(torch.stack([inner + k, outer + k, outer + following], -1))
        tri.append(torch.stack([inner + k, outer + following, inner + following], -1))
    return xy, torch.cat(tri)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scene", SCENES)
def test_equals_the_rule_applied_pair_by_pair(backend, scene, dtype):
    pos, tri, height, width = SCENES[scene]
    pos, color = pos.to(dtype), random(height, width, 3, dtype=dtype)
    rast, _ = rasterize(None, pos[None], tri, (height, width))
    out = antialias(color[None], rast, pos[None], tri)
    assert out.dtype == dtype
    np.testing.assert_allclose(out[0].numpy(), reference_antialias(color, rast[0], pos, tri), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scene", SCENES)
def test_both_backends_agree(monkeypatch, scene, dtype):
    start, tri, height, width = SCENES[scene]
    start = torch.stack([start, start * torch.tensor([0.9, 1.1, 1, 1])]).to(dtype)
    weight, results = random(2, height, width, 3, seed=1, dtype=dtype) - 0.5, []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        color, pos = random(2, height, width, 3, dtype=dtype).requires_grad_(), start.clone().requires_grad_()
        out = antialias(color, rasterize(None, start, tri, (height, width))[0], pos, tri, pos_gradient_boost=2.5)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), (color, pos))))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 if dtype == torch.float32 else 1e-11, rtol=1e-5)
    assert scene == "one pixel" or results[0][2].abs().max() > 0.1


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 0.499, 0.625, 0.9, 1.0])
def test_axis_aligned_edges_give_exact_coverage(backend, shift):
    mask = mask_of(clip_from_pixels(rectangle(3 + shift, 2.25, 9.5 + shift / 3, 10 + shift), 14), QUAD, 14)
    column = (torch.tensor([3.0]) + shift, torch.tensor([9.5]) + shift / 3)
    place = torch.arange(14.0)
    expected = (torch.minimum(place + 1, column[1]) - torch.maximum(place, column[0])).clamp(0, 1).double()
    torch.testing.assert_close(mask[0, 5], expected, atol=1e-6, rtol=0)
    expected = (torch.minimum(place + 1, torch.tensor(10 + shift)) - place.clamp(min=2.25)).clamp(0, 1).double()
    torch.testing.assert_close(mask[0, :, 6], expected, atol=1e-6, rtol=0)


def test_a_slanted_edge_gives_the_coverage_of_its_rows(backend):
    xy = torch.tensor([[-4.0, -4], [5.2, -4], [9.2, 20], [-4, 20]]).double()  # right side: 6 rows per column
    mask = mask_of(clip_from_pixels(xy, 16), QUAD, 16)
    # the middle of a row decides, which is the row's coverage where the edge stays within a column
    torch.testing.assert_close(mask[0].sum(1), 5.2 + (torch.arange(16) + 0.5 + 4).double() / 6)


def test_silhouettes_within_a_surface_blend_with_what_is_behind(backend):
    near, far = rectangle(4, 4, 8.3, 8), rectangle(0, 0, 12, 12)
    pos = torch.cat([clip_from_pixels(far, 12, 0.5), clip_from_pixels(near, 12, 0.1)], 1)
    tri = torch.cat([QUAD, QUAD + 4])
    rast, _ = rasterize(None, pos, tri, (12, 12))
    out = antialias(torch.where(rast[..., 3:] > 2, 1.0, 5.0).double(), rast, pos, tri)
    torch.testing.assert_close(out[0, 6, :, 0], torch.tensor([5.0, 5, 5, 5, 1, 1, 1, 1, 3.8, 5, 5, 5]).double())


def test_interior_edges_of_a_closed_mesh_are_left_alone(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (40, 40))
    color = random(1, 40, 40, 3)
    out = antialias(color, rast, pos, tri)
    seen = rast[0, ..., 3] > 0
    changed = (out != color).any(-1)[0]
    inside = seen.clone()
    inside[1:-1, 1:-1] &= seen[2:, 1:-1] & seen[:-2, 1:-1] & seen[1:-1, 2:] & seen[1:-1, :-2]
    assert rast[..., 3].unique().numel() == 7  # three sides of the cube: six triangles
    assert changed.any()
    assert not (changed & inside).any()


def test_winding_does_not_matter(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (40, 40))
    color = random(1, 40, 40, 3)
    turned = torch.where(random(len(tri), 1, seed=3) > 0.5, tri, tri[:, [2, 1, 0]])
    assert torch.equal(antialias(color, rast, pos, turned), antialias(color, rast, pos, tri))


def test_vertices_doubled_at_a_seam_make_a_silhouette(backend):
    pos = clip_from_pixels(rectangle(1.1, 1.2, 8.3, 8.4), 10)
    doubled, tri = torch.cat([pos, pos[:, [0, 2]]], 1), torch.tensor([[0, 1, 2], [4, 5, 3]])
    rast, _ = rasterize(None, pos, QUAD, (10, 10))
    color = torch.where(rast[..., 3:] > 1, 1.0, 0.0).double()  # differs between the two triangles
    away = torch.ones(10, 10, dtype=torch.bool)
    away[2:7, 2:7] = False
    welded, seamed = antialias(color, rast, pos, QUAD)[0, ..., 0], antialias(color, rast, doubled, tri)[0, ..., 0]
    assert torch.equal(welded[~away], color[0, ..., 0][~away])
    assert not torch.equal(seamed[~away], color[0, ..., 0][~away])
    given = antialias_construct_topology_hash(QUAD)  # the mesh of positions, so that the seam is none
    assert torch.equal(antialias(color, rast, doubled, tri, given), welded.view(1, 10, 10, 1))


def test_a_side_seen_edge_on_is_a_silhouette(backend):
    corner = torch.tensor([[x, y, z, 1] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)]).double()
    pos = (corner * torch.tensor([0.43, 0.43, 0.3, 1]))[None]  # parallel projection along z
    mask = mask_of(pos, torch.cat([CUBE[:, [0, 1, 2]], CUBE[:, [0, 2, 3]]]), 10)
    torch.testing.assert_close(mask[0, 5], torch.tensor([0, 0, 0.15, 1, 1, 1, 1, 0.15, 0, 0]).double())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scene", ["face", "soup"])
def test_gradcheck(backend, scene, shared):
    pos, tri = face(3) if scene == "face" else (SCENES["soup"][0][:15], SCENES["soup"][1][:5])
    pos = torch.stack([pos] if shared else [pos, pos * torch.tensor([0.8, 1.1, 1, 1])])
    images = torch.cat([pos, pos * torch.tensor([0.7, 0.9, 1, 1])]) if shared else pos
    rast, _ = rasterize(None, images, tri, (6, 7))
    color = random(2, 6, 7, 2).requires_grad_()
    assert antialias(color, rast, pos, tri).ne(color).sum() > 20
    assert torch.autograd.gradcheck(lambda color, pos: antialias(color, rast, pos, tri), (color, pos.requires_grad_()))


def area_gradient(pos, tri, size, direction):
    """Change of the antialiased area, in pixels, with a movement of the vertices in pixels."""
    pos = pos.clone().requires_grad_()
    (grad,) = torch.autograd.grad(mask_of(pos, tri, size).sum(), pos)
    return (grad[0, :, :2] * direction * 2 / size).sum().item()


def test_area_gradients_of_a_coarse_disc_are_true(backend):
    size, radius = 64, 24.0
    xy, tri = disc(1, 12, radius, size)
    pos = clip_from_pixels(xy, size)
    area = 12 / 2 * np.sin(np.pi / 6) * radius**2
    assert 0.9 < area_gradient(pos, tri, size, xy - size / 2) / (2 * area) < 1.05
    pos = pos.clone().requires_grad_()
    moment = (mask_of(pos, tri, size)[0] * (torch.arange(size) + 0.5)).sum()
    (grad,) = torch.autograd.grad(moment, pos)
    assert 0.9 < (grad[0, :, 0] * 2 / size).sum().item() / area < 1.05


def test_dense_meshes_lose_most_of_the_area_gradient(backend):
    # Only the triangle seen at a pixel centre is looked at, and of a dense mesh it seldom reaches the silhouette.
    size, radius, ratios = 32, 12.0, []
    for rings, sectors in ((1, 12), (10, 60), (60, 360)):
        xy, tri = disc(rings, sectors, radius, size)
        gradient = area_gradient(clip_from_pixels(xy, size), tri, size, xy - size / 2)
        ratios.append(gradient / (sectors * np.sin(2 * np.pi / sectors) * radius**2))
    assert 0.9 < ratios[0] < 1.05
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 0.3


def test_gradients_of_position_stop_where_a_crossing_leaves_its_pair(backend):
    pos = clip_from_pixels(rectangle(2.6, 2, 9, 10), 12).requires_grad_()  # covers column 3 and more
    rast, _ = rasterize(None, pos, QUAD, (12, 12))
    moved = clip_from_pixels(rectangle(2.5 - 1 / 40, 2, 9, 10), 12).requires_grad_()
    color = torch.arange(12.0).double().square()[:, None].expand(1, 12, 12, 1)
    out = antialias(color, rast, moved, QUAD)
    (grad,) = torch.autograd.grad(out[0, 6, 2:4].sum(), moved)
    assert out[0, 6, 2] == 9 - 2.5  # half of the way from 4 to 9: clamped
    assert not grad.any()
    (grad,) = torch.autograd.grad(antialias(color, rast, pos, QUAD)[0, 6, 2:4].sum(), pos)
    assert grad.any()


def test_boost_multiplies_the_gradient_of_positions_only(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (20, 20))
    color, results = random(1, 20, 20, 3).requires_grad_(), []
    pos.requires_grad_()
    for boost in (1.0, 3.0):
        out = antialias(color, rast, pos, tri, pos_gradient_boost=boost)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), (color, pos))))
    torch.testing.assert_close(results[0][:2], results[1][:2])
    torch.testing.assert_close(3 * results[0][2], results[1][2])
    assert not results[0][2][..., 2].any()


def test_rast_gets_no_gradient_and_the_inputs_stay_as_they_are(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos.requires_grad_(), tri, (20, 20))
    color = random(1, 20, 20, 3).requires_grad_()
    before, leaf = color.detach().clone(), rast.detach().clone().requires_grad_()
    out = antialias(color, leaf, pos, tri)
    (grad,) = torch.autograd.grad(out.sum(), leaf, allow_unused=True)
    assert grad is None or not grad.any()
    assert torch.equal(color, before)
    assert out.data_ptr() != color.data_ptr()


def test_edges_that_pass_the_viewer_equal_clipped_ones(backend):
    behind = BEHIND[0]
    at = [(behind[k, 2:].sum() / (behind[k, 2:] - behind[2, 2:]).sum()).item() for k in (0, 1)]  # where z = -w
    cut = [behind[k] + t * (behind[2] - behind[k]) for k, t in zip((0, 1), at, strict=True)]
    assert all(corner[1] > 2 * corner[3] > 0 for corner in cut)  # above the image
    clipped = torch.stack([behind[0], behind[1], cut[1], cut[0]])
    pos, size = BEHIND.clone().requires_grad_(), 40
    mask, expected = mask_of(pos, torch.tensor([[0, 1, 2]]), size), mask_of(clipped[None], QUAD, size)
    inside = expected[0] > 0
    assert 0.1 < inside.double().mean() < 0.9
    blended = (expected > 0) & (expected < 1)
    assert blended.sum() > 20
    torch.testing.assert_close(mask, expected)
    (grad,) = torch.autograd.grad(mask.square().sum(), pos)
    assert grad.isfinite().all()
    assert grad[0, 2].any()  # also the corner behind the viewer moves the edges that are seen


def test_gradcheck_with_a_corner_behind_the_viewer(backend):
    tri = torch.tensor([[0, 1, 2]])
    rast, _ = rasterize(None, BEHIND, tri, (9, 9))
    color = random(1, 9, 9, 1)
    pos = BEHIND.clone().requires_grad_()
    assert antialias(color, rast, pos, tri).ne(color).sum() > 5
    assert torch.autograd.gradcheck(lambda pos: antialias(color, rast, pos, tri), pos)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("axis", range(4))
def test_vertices_that_are_not_finite_do_no_harm(backend, bad, axis):
    pos, tri = face(8)
    pos = pos.float()[None].clone()
    pos[0, 27, axis] = bad
    pos.requires_grad_()
    rast, _ = rasterize(None, pos.detach(), tri, (30, 30))
    color = random(1, 30, 30, 3, dtype=torch.float32).requires_grad_()
    out = antialias(color, rast, pos, tri)
    kept = tri[(tri != 27).all(-1)]  # the triangles around it are not drawn, so their neighbours end at a border
    expected = antialias(color, rasterize(None, pos.detach(), kept, (30, 30))[0], pos, kept)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    assert pos.grad.isfinite().all()
    assert color.grad.isfinite().all()


def test_a_rast_of_another_mesh_and_indices_that_do_not_exist_do_no_harm(backend):
    nan = float("nan")
    rast = torch.zeros(1, 4, 4, 4)
    rast[0, 1, :, 3] = torch.tensor([1.0, 2, 3, 9])
    rast[0, 2, :, 3] = torch.tensor([-3.0, nan, 1.5, 2])
    rast[0, 2, :, 2] = nan
    color = random(1, 4, 4, 1, dtype=torch.float32)
    pos = torch.randn(1, 3, 4).requires_grad_()
    tri = torch.tensor([[0, 1, 2**40], [0, -1, 2], [0, 0, 1]])
    out = antialias(color, rast, pos, tri)
    assert torch.equal(out, color)
    if out.requires_grad:
        out.sum().backward()
        assert not pos.grad.any()


def test_empty_meshes_batches_and_images(backend):
    pos, tri = face(4)
    pos, color = pos.float()[None].requires_grad_(), random(1, 6, 5, 3, dtype=torch.float32)
    rast = torch.zeros(1, 6, 5, 4)
    assert torch.equal(antialias(color, rast, pos, tri), color)
    assert torch.equal(antialias(color, rast, pos, tri[:0]), color)
    assert torch.equal(antialias(color, rast, pos[:, :0], tri), color)
    assert antialias(color[:0], rast[:0], pos[:0], tri).shape == (0, 6, 5, 3)
    assert antialias(color[:0], rast[:0], pos, tri).shape == (0, 6, 5, 3)
    assert antialias(color[:, :0], rast[:, :0], pos, tri).shape == (1, 0, 5, 3)
    assert antialias(color[..., :0], rast, pos, tri).shape == (1, 6, 5, 0)


@pytest.mark.parametrize("axes", [2, 3])
def test_shared_positions_equal_repeated_ones(backend, axes):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (24, 24))
    rast, color, weight = rast.expand(3, -1, -1, -1), random(3, 24, 24, 2), random(3, 24, 24, 2, seed=1)
    results = []
    for start in (pos[0] if axes == 2 else pos, pos.expand(3, -1, -1).contiguous()):
        leaf = start.clone().requires_grad_()
        out = antialias(color, rast, leaf, tri)
        (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
        results.append((out.detach(), grad.view(-1, *pos.shape[1:]).sum(0)))
    torch.testing.assert_close(*results)


def test_int32_triangles_and_strided_inputs(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (24, 24))
    color = random(1, 24, 24, 4)
    expected = antialias(color[..., :2].contiguous(), rast, pos, tri)
    assert torch.equal(antialias(color[..., :2], rast, pos, tri.int()), expected)
    strided = torch.stack([pos, pos], -1)[..., 0]
    wide = torch.cat([rast, rast], -1)[..., :4]
    assert torch.equal(antialias(color[..., :2], wide, strided, tri.T.contiguous().T), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_and_two_threads_give_the_same_bits(monkeypatch, dtype):
    monkeypatch.setenv("NL3DMM_RENDER", "numba")
    pos, tri = face(40)
    images = torch.stack([pos * torch.tensor([1 - 0.1 * i, 1, 1, 1]) for i in range(5)]).to(dtype)
    rast, _ = rasterize(None, images, tri, (50, 60))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            color, leaf = random(5, 50, 60, 3, dtype=dtype).requires_grad_(), images.clone().requires_grad_()
            shared = pos.to(dtype).clone().requires_grad_()
            for positions in (leaf, shared):
                out = antialias(color, rast, positions, tri)
                results.append((out, *torch.autograd.grad(out.square().sum(), (color, positions))))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_color_is_antialiased_where_positions_need_no_gradient(backend):
    pos, tri = cube()
    rast, _ = rasterize(None, pos, tri, (24, 24))
    color = random(1, 24, 24, 2).requires_grad_()
    out = antialias(color, rast, pos, tri)
    (grad,) = torch.autograd.grad(out.sum(), color)
    torch.testing.assert_close(grad.sum(), torch.tensor(2.0 * 24 * 24).double())  # shares move colour, weights stay 1
    assert not antialias(color.detach(), rast, pos, tri).requires_grad
