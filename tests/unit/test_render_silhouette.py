"""Edge-walk antialiasing: gradients of areas against finite differences of finely sampled pictures, and its limits."""

import math

import pytest
import torch
from render_reference import face, soup

from nl3dmm.render import antialias, antialias_construct_topology_hash, interpolate, rasterize


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def random(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_axes(x, y, z=None, w=None):
    """Factors or offsets of clip positions."""
    z, w = torch.zeros_like(x) if z is None else z, torch.zeros_like(x) if w is None else w
    return torch.stack([x, y, z, w], -1)


def scaled(pos, factor):
    return pos * torch.stack([factor, factor, torch.ones_like(factor), torch.ones_like(factor)])


def moved(pos, x, y):
    return pos + pos[..., 3:] * torch.stack([x, y, torch.zeros_like(x), torch.zeros_like(x)])


def picture(pos, tri, colors, size, mode=None):
    """(size, size, channels) of one mesh with a colour per vertex."""
    rast, _ = rasterize(None, pos[None], tri, (size, size))
    image, _ = interpolate(colors[None], rast, tri)
    return (image if mode is None else antialias(image, rast, pos[None], tri, mode=mode))[0]


def moments(image):
    """Sums of an image over [-1, 1]^2, unweighted and weighted by x."""
    size = len(image)
    x = (2 * torch.arange(size, dtype=image.dtype) + 1) / size - 1
    return torch.stack([image.sum(), (image * x[:, None]).sum()]) * 4 / size**2


def slopes(pos_of, tri, colors, mode, size=224):
    """Derivatives of both moments by the parameter of ``pos_of``, at 0."""
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    values = moments(picture(pos_of(parameter), tri, colors, size, mode))
    return torch.stack([torch.autograd.grad(value, parameter, retain_graph=True)[0] for value in values])


def true_slopes(pos_of, tri, colors, size=1344, step=0.02):
    """Differences of pictures sampled six times as finely."""
    ends = [torch.tensor(sign * step, dtype=torch.float64) for sign in (1, -1)]
    above, below = (moments(picture(pos_of(end).float(), tri, colors.float(), size).double()) for end in ends)
    return (above - below) / (2 * step)


def disc(corners=48):
    angle = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / corners) + 0.1
    rim = on_axes(0.71 * angle.cos(), 0.62 * angle.sin(), w=torch.ones_like(angle))
    index = torch.arange(corners)
    tri = torch.stack([torch.full_like(index, corners), index, (index + 1) % corners], 1)
    return torch.cat([rim, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)]), tri


def cube():
    corner = (torch.arange(8)[:, None] >> torch.arange(3) & 1) * 2.0 - 1
    turn = torch.linalg.qr(random(3, 3, seed=4))[0]
    x, y, z = (0.45 * corner.double() @ turn).unbind(1)
    quads = torch.tensor([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])
    return on_axes(x, y, 0.5 * z, 1 - 0.2 * z), torch.cat([quads[:, :3], quads[:, [0, 2, 3]]])


def closed_head(size):
    """A closed, bumpy body: all of its outline is surface that turns away."""
    angle = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
    polar, angle = torch.meshgrid(torch.linspace(1e-3, math.pi - 1e-3, size).double(), angle, indexing="ij")
    radius = 1 + 0.08 * (3 * angle).sin() * polar.sin() ** 3 + 0.05 * (7 * polar).cos()
    x, y, z = radius * polar.sin() * angle.cos(), radius * polar.cos(), radius * polar.sin() * angle.sin()
    x, y = 0.55 * x - 0.2 * y, 0.15 * x + 0.6 * y
    index = torch.arange(size * size).view(size, size)
    a, b, c, d = (part.flatten() for part in (index[:-1], index[:-1].roll(-1, 1), index[1:], index[1:].roll(-1, 1)))
    tri = torch.cat([torch.stack([a, c, b], 1), torch.stack([b, c, d], 1)])
    return on_axes(x, y, -0.5 * z, 1 - 0.2 * z).view(-1, 4), tri


SHAPES = {
    **{f"face {size}, {turn} degrees": (size, turn) for size in (24, 48, 198) for turn in (0, 45)},
    "disc": disc,
    "cube": cube,
    "head": lambda: closed_head(60),
}


@pytest.mark.parametrize("name", SHAPES)
def test_area_and_moment_change_as_they_should(name):
    shape = SHAPES[name]
    pos, tri = face(shape[0], yaw=math.radians(shape[1])) if isinstance(shape, tuple) else shape()
    pos = scaled(pos, torch.tensor(0.8, dtype=torch.float64))
    white = torch.ones(len(pos), 1, dtype=torch.float64)
    for pos_of, moment in ((lambda s: scaled(pos, 1 + s), 0), (lambda s: moved(pos, s, 0.3 * s), 1)):
        truth = true_slopes(pos_of, tri, white)[moment]
        assert slopes(pos_of, tri, white, "edge")[moment] / truth == pytest.approx(1, abs=0.03)


def two_sheets(size):
    """A bright sheet before a dark one, both bulging, and a colour for each vertex."""
    (near, near_tri), (far, far_tri) = face(size, yaw=0.3), face(2 * size, yaw=-0.2)
    near = near * torch.tensor([0.5, 0.5, 0.5, 1]) - near[:, 3:] * torch.tensor([0, 0, 0.35, 0])
    far = far * torch.tensor([0.85, 0.85, 0.5, 1]) + far[:, 3:] * torch.tensor([0, 0, 0.35, 0])
    bright, dark = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.2, 0.1]])
    colors = torch.cat([bright.expand(len(near), 2), dark.expand(len(far), 2)]).double()
    return near, far, torch.cat([near_tri, far_tri + len(near)]), colors


@pytest.mark.parametrize("size", [24, 90])
def test_surfaces_before_others_change_as_they_should(size):
    near, far, tri, colors = two_sheets(size)
    for pos_of, moment in (
        (lambda s: torch.cat([scaled(near, 1 + s), far]), 0),
        (lambda s: torch.cat([moved(near, s, 0.5 * s), far]), 1),
        (lambda s: torch.cat([near, moved(far, s, 0 * s)]), 1),
    ):
        truth = true_slopes(pos_of, tri, colors)[moment]
        assert slopes(pos_of, tri, colors, "edge")[moment] / truth == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", [48, 198])
def test_a_nose_that_grows_over_its_cheek_changes_as_it_should(size):
    flat, tri = face(size, yaw=0.0)
    x, y = flat[:, 0] / 0.6, flat[:, 1] / 0.6
    cos, sin = math.cos(0.6), math.sin(0.6)

    def grown(factor):
        height = 0.8 - 0.5 * (x**2 + y**2) + 0.8 * (1 + factor) * torch.exp(-(x**2 + y**2) / 0.05)
        depth = height * cos - x * sin
        return on_axes(0.6 * (x * cos + (height - 0.8) * sin), 0.6 * y, -0.4 * depth, 1 - 0.2 * depth)

    cheek = torch.sigmoid(25 * (x - 0.35))[:, None]  # white; the nose and the border of its colour are before it
    truth = true_slopes(grown, tri, cheek, step=0.06)[0]
    assert slopes(grown, tri, cheek, "edge")[0] / truth == pytest.approx(1, abs=0.05)
    assert slopes(grown, tri, cheek, None)[0] / truth < 0.1


def test_outlines_come_close_to_true_coverage():
    pos, tri = closed_head(120)
    white = torch.ones(len(pos), 1)
    truth = picture(pos.float(), tri, white, 960).view(120, 8, 120, 8).mean((1, 3))
    hard, soft = (picture(pos.float(), tri, white, 120, mode)[..., 0] for mode in (None, "edge"))
    assert (soft - truth).abs().max() < 0.25
    assert (soft - truth).square().mean() < 0.04 * (hard - truth).square().mean()
    assert soft.min() >= 0
    assert soft.max() <= 1


def rectangle(left, top, right, bottom, size, z=0.0):
    """Two triangles with these limits in pixels."""
    x = 2 * torch.tensor([left, right, left, right], dtype=torch.float64) / size - 1
    y = 2 * torch.tensor([top, top, bottom, bottom], dtype=torch.float64) / size - 1
    return on_axes(x, y, torch.full_like(x, z), torch.ones_like(x)), torch.tensor([[0, 2, 1], [1, 2, 3]])


def test_blends_have_known_values(backend):
    pos, tri = rectangle(2.75, 3, 5.375, 6, 8)
    pos = pos[None].requires_grad_()
    rast, _ = rasterize(None, pos, tri, (8, 8))
    color = torch.where(rast[..., 3:] > 0, 5.0, 1.0).double()
    out = antialias(color, rast, pos, tri, mode="edge")
    row = torch.tensor([1, 1, 2, 5, 5, 2.5, 1, 1], dtype=torch.float64)  # a quarter of column 2, three eighths of 5
    torch.testing.assert_close(out[0, 3:6, :, 0], row.expand(3, 8))
    torch.testing.assert_close(out[0, [2, 6], :, 0], color[0, [2, 6], :, 0])  # rows end where pixels do
    out[0, 4].sum().backward()
    assert pos.grad[0, :, 0].sum() == pytest.approx(0, abs=1e-12)
    assert pos.grad[0, [1, 3], 0].sum() == pytest.approx(4 * 4)  # 4 grey levels a pixel, 4 pixels to x = 1
    assert not pos.grad[..., 2].any()


def test_hidden_edges_do_not_act(backend):
    pos, tri = face(30, yaw=0.3)
    small, small_tri = face(9, yaw=0.2)
    small = small * torch.tensor([0.3, 0.3, 0.3, 1]) + small[:, 3:] * torch.tensor([0, 0, 0.5, 0])
    both = torch.cat([pos, small])[None].requires_grad_()
    both_tri = torch.cat([tri, small_tri + len(pos)])
    rast, _ = rasterize(None, both, both_tri, (64, 64))
    assert rast[..., 3].max() <= len(tri)
    color = random(1, 64, 64, 2)
    out = antialias(color, rast, both, both_tri, mode="edge")
    torch.testing.assert_close(out, antialias(color, rast, pos[None], tri, mode="edge"), rtol=0, atol=0)
    out.square().sum().backward()
    assert both.grad[0, : len(pos)].any()
    assert not both.grad[0, len(pos) :].any()


def test_seams_of_a_plane_do_not_act(backend):
    axis = torch.linspace(-1, 1, 9, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pos = on_axes(0.7 * x + 0.1 * y, 0.6 * y, 0.3 * x - 0.4 * y, 1 + 0.2 * x).view(-1, 4)
    tri = face(9)[1]
    rast, _ = rasterize(None, pos[None], tri, (60, 60))
    color = random(1, 60, 60, 2)
    welded = antialias(color, rast, pos[None], tri, mode="edge")
    apart = antialias(color, rast, pos[None, tri.flatten()], torch.arange(tri.numel()).view(-1, 3), mode="edge")
    torch.testing.assert_close(welded, apart)
    assert not torch.equal(welded, color)


def test_winding_does_not_matter(backend):
    pos, tri = face(20)
    turned = torch.where(random(len(tri), 1) < 0.5, tri, tri.flip(1))
    rast, _ = rasterize(None, pos[None], tri, (50, 50))
    color = random(1, 50, 50, 2)
    results = [antialias(color, rast, pos[None], triangles, mode="edge") for triangles in (tri, turned, tri.int())]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_what_does_not_end_is_left_as_it_is(backend):
    pos, tri = rectangle(-1, -1, 10, 10, 8)
    rast, _ = rasterize(None, pos[None], tri, (8, 8))
    assert (rast[..., 3] > 0).all()
    color = random(1, 8, 8, 3)
    assert torch.equal(antialias(color, rast, pos[None], tri, mode="edge"), color)


@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck(shared):
    (near, near_tri), (far, far_tri) = face(4), rectangle(0.8, 0.6, 5.3, 5.7, 6, z=0.9)
    pos, tri = torch.cat([near, far + 0.01 * random(4, 4)]), torch.cat([near_tri, far_tri + len(near)])
    pos = (pos if shared else torch.stack([pos, 0.9 * pos + 0.02])).requires_grad_()
    rast, _ = rasterize(None, pos.detach().expand(2, -1, -1), tri, (6, 6))
    color = random(2, 6, 6, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, p: antialias(c, rast, p, tri, mode="edge"), (color, pos))


def test_shared_positions_equal_repeated_ones(backend):
    pos, tri = face(16)
    rast, _ = rasterize(None, pos.expand(3, -1, -1), tri, (40, 40))
    color, results = random(3, 40, 40, 2), []
    for form in (lambda p: p, lambda p: p[None], lambda p: p.expand(3, -1, -1)):
        leaf = pos.clone().requires_grad_()
        out = antialias(color, rast, form(leaf), tri, mode="edge")
        out.square().sum().backward()
        results.append((out.detach(), leaf.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_agree(monkeypatch, dtype):
    for pos, tri in (face(40), closed_head(24), soup(60, seed=1)):
        pos = torch.stack([pos, pos * torch.tensor([0.8, -0.9, 0.7, 1])]).to(dtype)
        rast, _ = rasterize(None, pos, tri, (48, 50))
        color, results = random(2, 48, 50, 2).to(dtype), []
        for name in ("numba", "torch"):
            monkeypatch.setenv("NL3DMM_RENDER", name)
            leaf = pos.clone().requires_grad_()
            out = antialias(color, rast, leaf, tri, mode="edge")
            out.square().sum().backward()
            results.append((out.detach(), leaf.grad))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_boost_multiplies_the_gradient_of_positions_only(backend):
    pos, tri = face(12)
    rast, _ = rasterize(None, pos[None], tri, (30, 30))
    gradients = []
    for boost in (1.0, 2.5):
        color, leaf = random(1, 30, 30, 2).requires_grad_(), pos[None].clone().requires_grad_()
        out = antialias(color, rast, leaf, tri, pos_gradient_boost=boost, mode="edge")
        gradients.append((out.detach(), *torch.autograd.grad(out.square().sum(), (color, leaf))))
    torch.testing.assert_close(gradients[0][:2], gradients[1][:2])
    torch.testing.assert_close(2.5 * gradients[0][2], gradients[1][2])


def test_vertices_that_cannot_be_projected_leave_gradients_finite(backend):
    pos, tri = face(16)
    pos = pos.repeat(5, 1, 1)
    pos[0, 20:30] = torch.nan
    pos[1, 40:60, 3] = 0
    pos[2, 70:90, 3] *= -1
    pos[3, 100:110, 0] = torch.inf
    pos[4] = torch.nan
    leaf = pos.clone().requires_grad_()
    rast, _ = rasterize(None, pos, tri, (40, 40))
    color = random(5, 40, 40, 2).requires_grad_()
    out = antialias(color, rast, leaf, tri, mode="edge")
    out.square().sum().backward()
    assert out.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert color.grad.isfinite().all()
    assert leaf.grad[:4].flatten(1).any(1).all()
    assert torch.equal(out[4], color[4])


def test_a_hole_of_undrawn_triangles_has_an_outline(backend):
    pos, tri = face(16, yaw=0.0)
    holed = pos.clone()
    holed[8 * 16 + 3] = torch.nan
    kept = tri[(tri != 8 * 16 + 3).all(1)]
    rast, _ = rasterize(None, holed[None], tri, (40, 40))
    color = (rast[..., 3:] > 0).double()
    holed_out = antialias(color, rast, holed[None], tri, mode="edge")
    torch.testing.assert_close(holed_out, antialias(color, rast, pos[None], kept, mode="edge"), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_triangles_without_vertices_are_ignored(backend, bad):
    pos, tri = face(12)
    extra = torch.cat([tri, torch.tensor([[bad, 0, 1], [5, 6, bad]])])
    rast, _ = rasterize(None, pos[None], tri, (30, 30))
    color = random(1, 30, 30, 1)
    torch.testing.assert_close(
        antialias(color, rast, pos[None], extra, mode="edge"), antialias(color, rast, pos[None], tri, mode="edge")
    )


def test_a_third_triangle_at_an_edge_has_its_own_outline(backend):
    pos = torch.tensor([[0.0, -0.8, 0, 1], [0, 0.8, 0, 1], [-0.7, 0, 0, 1], [0.1, 0, 0.3, 1], [0.72, 0, 0, 1]]).double()
    tri = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    rast, _ = rasterize(None, pos[None], tri, (32, 32))
    leaf = pos[None].clone().requires_grad_()
    antialias((rast[..., 3:] > 0).double(), rast, leaf, tri, mode="edge").sum().backward()
    assert leaf.grad[0, 4, 0] > 0 > leaf.grad[0, 2, 0]


def test_topology_can_be_passed(backend):
    pos, tri = face(12)
    rast, _ = rasterize(None, pos[None], tri, (30, 30))
    color = random(1, 30, 30, 1)
    hashed = antialias(color, rast, pos[None], tri, antialias_construct_topology_hash(tri), mode="edge")
    assert torch.equal(hashed, antialias(color, rast, pos[None], tri, mode="edge"))


@pytest.mark.parametrize(
    ("batch", "vertices", "triangles", "size"), [(0, 9, 8, 4), (2, 0, 0, 4), (2, 9, 0, 4), (1, 9, 8, 1)]
)
def test_empty_input_comes_back(backend, batch, vertices, triangles, size):
    pos, tri = face(3)
    pos = pos[:vertices].expand(batch, -1, -1).clone().requires_grad_()
    rast = torch.zeros(batch, size, size, 4, dtype=torch.float64)
    color = random(batch, size, size, 3).requires_grad_()
    out = antialias(color, rast, pos, tri[:triangles], mode="edge")
    out.sum().backward()
    assert torch.equal(out, color)
    assert torch.equal(color.grad, torch.ones_like(color))


def test_a_topology_serves_another_index_buffer_of_the_same_mesh(backend):
    pos, tri = face(12, yaw=0.6)
    topology = antialias_construct_topology_hash(tri)
    images = []
    for offset in (0, 5):  # the same triangles, whose vertices lie elsewhere
        moved_pos, moved_tri = torch.cat([torch.zeros(offset, 4, dtype=pos.dtype), pos])[None], tri + offset
        rast, _ = rasterize(None, moved_pos, moved_tri, (40, 40))
        mask = (rast[..., 3:] > 0).double()
        images.append(antialias(mask, rast, moved_pos, moved_tri, topology, mode="edge"))
    assert not torch.equal(images[0], mask)
    assert torch.equal(*images)
