"""Image-space derivatives: of u and v from ``rasterize``, of attributes from ``interpolate``."""

import numpy as np
import pytest
import torch
from render_reference import face, soup

from nl3dmm.errors import ShapeError
from nl3dmm.render import interpolate, rasterize

DTYPES = [torch.float32, torch.float64]
TRI = torch.tensor([[0, 1, 2]])


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def inside(rast, margin=1e-3):
    """Pixels that show a triangle and where no clamp was needed."""
    u, v, _, number = rast.unbind(-1)
    return ((torch.stack([u, v, 1 - u - v]).amin(0) > margin) & (number > 0))[..., None]


def shifted(pos, pixels, axis, resolution):
    """The scene moved by pixels along an axis: a clip-space shear, as a tensor row is NDC * size / 2."""
    size = resolution[1 - axis]
    move = torch.zeros(4, dtype=pos.dtype)
    move[axis] = 2 * pixels / size
    return pos + pos[..., 3:] * move


def reference_derivatives(pos, tri, rast):
    """du/dX, du/dY, dv/dX, dv/dY of one image at its u, v, by inverting each triangle's matrix."""
    height, width = rast.shape[:2]
    out = np.zeros((height, width, 4))
    for row, column in np.argwhere(rast[..., 3].numpy() > 0):
        corners = pos[tri[int(rast[row, column, 3]) - 1]].double().numpy()
        weights = np.linalg.inv(corners[:, [0, 1, 3]].T)  # times (x, y, 1): weights whose sum is 1 / w
        x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
        total = (weights @ [x, y, 1]).sum()
        for index in range(2):
            value = float(rast[row, column, index])
            slope = (weights[index, :2] - value * weights[:, :2].sum(0)) / total
            out[row, column, 2 * index : 2 * index + 2] = slope * [2 / width, 2 / height]
    return out


def test_derivatives_have_known_values(backend):
    pos = torch.tensor([[[-1.0, -1, 0, 1], [3, -1, 0, 1], [-1, 3, 0, 1]]])
    _, rast_db = rasterize(None, pos, TRI, (4, 8), grad_db=False)
    # vertex 1 is 16 pixels to the right of vertex 0, vertex 2 is 8 pixels up
    expected = torch.tensor([-1 / 16, -1 / 8, 1 / 16, 0])
    torch.testing.assert_close(rast_db, expected.expand(1, 4, 8, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scene", [face(14), soup(30, seed=2)])
def test_derivatives_equal_the_inverse_matrix_clamped_pixels_included(backend, scene, dtype):
    pos, tri = scene[0].to(dtype), scene[1]
    rast, rast_db = rasterize(None, pos[None], tri, (23, 26), grad_db=False)
    assert not inside(rast, 0)[rast[..., 3] > 0].all()
    assert not rast_db[rast[..., 3] == 0].any()
    expected = reference_derivatives(pos, tri, rast[0])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(rast_db[0], expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("axis", [0, 1])
def test_derivatives_equal_finite_differences_over_sub_pixel_shifts(backend, axis):
    pos, tri = soup(12, seed=6)
    pos, resolution, step = pos[None], (25, 28), 1e-5
    rast, rast_db = rasterize(None, pos, tri, resolution, grad_db=False)
    ahead, behind = (rasterize(None, shifted(pos, -s, axis, resolution), tri, resolution)[0] for s in (step, -step))
    same = inside(rast) & ((ahead[..., 3:] == rast[..., 3:]) & (behind[..., 3:] == rast[..., 3:]))
    assert same.sum() > 200
    difference = (ahead - behind)[..., :2] / (2 * step)
    torch.testing.assert_close(rast_db[..., [axis, 2 + axis]] * same, difference * same, rtol=1e-6, atol=1e-8)


def test_derivatives_come_on_request_and_change_nothing_else(backend):
    pos, tri = face(8)
    pos = pos[None].requires_grad_()
    results = [rasterize(None, pos, tri, (12, 13), grad_db=grad_db) for grad_db in (None, False, True)]
    assert [rast_db.shape[-1] for _, rast_db in results] == [0, 4, 4]
    assert [rast_db.requires_grad for _, rast_db in results] == [False, False, True]
    assert torch.equal(results[1][1], results[2][1])
    for rast, _ in results:
        assert torch.equal(rast, results[0][0])
        (gradient,) = torch.autograd.grad(rast[..., :2].square().sum(), pos, retain_graph=True)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(results[0][0][..., :2].square().sum(), pos, retain_graph=True)[0]
        )
    with torch.no_grad():
        assert not rasterize(None, pos, tri, (12, 13), grad_db=True)[1].requires_grad


@pytest.mark.parametrize("ranges", [None, torch.tensor([[0, 6], [2, 4]])])
@pytest.mark.parametrize("parts", ["derivatives", "both"])
def test_rasterize_gradcheck_inside_triangles(backend, ranges, parts):
    pos, tri = soup(6, seed=6)
    pos = pos * torch.tensor([1.3, 1.3, 1, 1])  # some cross the border
    pos = pos[None] if ranges is None else pos
    mask = inside(rasterize(None, pos, tri, (6, 7), ranges=ranges)[0])
    assert mask.sum() > 10

    def run(pos):
        rast, rast_db = rasterize(None, pos, tri, (6, 7), ranges=ranges, grad_db=True)
        return rast_db * mask if parts == "derivatives" else torch.cat([rast[..., :2], rast_db], -1) * mask

    assert torch.autograd.gradcheck(run, pos.requires_grad_())


def test_depth_has_no_part_in_the_gradient(backend):
    pos, tri = face(6)
    pos = pos[None].requires_grad_()
    _, rast_db = rasterize(None, pos, tri, (16, 16), grad_db=True)
    (gradient,) = torch.autograd.grad(rast_db.square().sum(), pos)
    assert all(gradient[..., axis].any() for axis in (0, 1, 3))
    assert not gradient[..., 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels", ["all", [1], (0, -1), [2, 2, 1, 2]])
def test_kernels_equal_torch_autograd(monkeypatch, dtype, shared, channels):
    start, tri = face(30)
    start = torch.stack([start, start * torch.tensor([1.4, 0.9, 1, 1])]).to(dtype)
    start_attr = torch.rand(1 if shared else 2, start.shape[1], 3).to(dtype)
    weights = [
        torch.randn(2, 40, 37, count).to(dtype) for count in (2, 4, 3, 6 if channels == "all" else 2 * len(channels))
    ]
    values, gradients = [], []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        pos, attr = start.clone().requires_grad_(), start_attr.clone().requires_grad_()
        rast, rast_db = rasterize(None, pos, tri, (40, 37), grad_db=True)
        out, out_da = interpolate(attr, rast, tri, rast_db, channels)
        parts = [rast[..., :2], rast_db, out, out_da]
        values.append([part.detach() for part in parts])
        loss = sum((weight * part).sum() for weight, part in zip(weights, parts, strict=True))
        gradients.append(torch.autograd.grad(loss, [pos, attr, rast_db]))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in zip([*values[0], *gradients[0]], [*values[1], *gradients[1]], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(one.abs().max()))


def test_interpolated_derivatives_have_known_values(backend):
    rast = torch.tensor([[[[0.25, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 1]]]])
    rast_db = torch.tensor([[[[1.0, 2, 3, 4], [5, 6, 7, 8], [0, 1, 0, 0]]]])
    tri = torch.tensor([[2, 1, 0], [0, 1, 2]])
    attr = torch.tensor([[[1.0, 0], [2, 10], [4, 20]]])
    out, out_da = interpolate(attr, rast, tri, rast_db, "all")
    # a0 - a2 = -3, -20 and a1 - a2 = -2, -10 in triangle 1; 3, 20 and 1, 10 in triangle 0
    expected = [[-3 - 6, -6 - 8, -20 - 30, -40 - 40], [0, 0, 0, 0], [0, 3, 0, 20]]
    assert out_da.tolist() == [[expected]]
    assert torch.equal(out, interpolate(attr, rast, tri)[0])


def test_interpolated_screen_position_moves_one_pixel_per_pixel(backend):
    pos, tri = face(12)
    resolution = (40, 36)
    rast, rast_db = rasterize(None, pos[None], tri, resolution, grad_db=False)
    out, out_da = interpolate(pos[None], rast, tri, rast_db, [0, 1, 3])
    mask = inside(rast)[..., 0]
    x, y, _, w = out[mask].unbind(-1)
    x_x, x_y, y_x, y_y, w_x, w_y = out_da[mask].unbind(-1)
    half_width, half_height = resolution[1] / 2, resolution[0] / 2
    for slope, expected in (
        ((x_x * w - x * w_x) / w**2 * half_width, 1),
        ((x_y * w - x * w_y) / w**2 * half_width, 0),
        ((y_x * w - y * w_x) / w**2 * half_height, 0),
        ((y_y * w - y * w_y) / w**2 * half_height, 1),
    ):
        torch.testing.assert_close(slope, torch.full_like(slope, expected), rtol=0, atol=1e-9)


def test_channels_are_chosen_by_number(backend):
    pos, tri = face(8)
    rast, rast_db = rasterize(None, pos[None], tri, (12, 13), grad_db=False)
    attr = torch.rand(1, len(pos), 4, dtype=torch.float64)
    _, everything = interpolate(attr, rast, tri, rast_db, "all")
    assert everything.shape == (1, 12, 13, 8)
    for channels, columns in (([1, -1], [2, 3, 6, 7]), ((0,), [0, 1]), ([3, 0, 3], [6, 7, 0, 1, 6, 7])):
        assert torch.equal(interpolate(attr, rast, tri, rast_db, channels)[1], everything[..., columns])
    for nothing in (None, [], ()):
        assert interpolate(attr, rast, tri, rast_db, nothing)[1].shape == (1, 12, 13, 0)
    empty_db = rasterize(None, pos[None], tri, (12, 13))[1]
    assert interpolate(attr, rast, tri, empty_db)[1].shape == (1, 12, 13, 0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels", ["all", [2, 0, 2]])
def test_interpolate_gradcheck(backend, shared, channels):
    pos, tri = face(5)
    pos = torch.stack([pos, pos[:, [1, 0, 2, 3]]]) * torch.tensor([1.8, 1.8, 1, 1])
    rast, rast_db = rasterize(None, pos, tri, (2, 3), grad_db=False)
    assert rast[..., 3].unique().numel() > 4
    attr = torch.rand(1 if shared else 2, pos.shape[1], 3, dtype=torch.float64, requires_grad=True)
    leaves = attr, rast[..., :2].clone().requires_grad_(), rast_db.clone().requires_grad_()

    def run(attr, uv, rast_db):
        return interpolate(attr, torch.cat([uv, rast[..., 2:]], -1), tri, rast_db, channels)

    assert torch.autograd.gradcheck(run, leaves)


def test_derivatives_of_attributes_have_no_gradient_to_u_and_v(backend):
    pos, tri = face(9)
    rast, rast_db = rasterize(None, pos[None], tri, (9, 9), grad_db=False)
    rast, attr = rast.requires_grad_(), torch.rand(1, len(pos), 2, dtype=torch.float64, requires_grad=True)
    _, out_da = interpolate(attr, rast, tri, rast_db, "all")
    gradient, _ = torch.autograd.grad(out_da.square().sum(), [rast, attr], allow_unused=True)
    assert gradient is None or not gradient.any()


def test_interpolate_ignores_what_is_no_triangle(backend):
    rast = torch.tensor([[[[0.2, 0.3, 0, 9], [0.2, 0.3, 0, -3], [0.2, 0.3, 0, float("nan")], [0.2, 0.3, 0, 2]]]])
    attr, rast_db = torch.ones(1, 3, 2, requires_grad=True), torch.full_like(rast, torch.nan).requires_grad_()
    _, out_da = interpolate(attr, rast, torch.tensor([[0, 1, 2], [0, 1, 3]]), rast_db, "all")
    assert not out_da.any()
    out_da.sum().backward()
    assert not attr.grad.any()
    assert not rast_db.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_triangles_seen_edge_on_have_finite_gradients(backend, dtype):
    generator = torch.Generator().manual_seed(1)
    start, direction = torch.rand(2, 400, 1, 2, generator=generator) - 0.5
    xy = start + torch.tensor([[-1.0], [0.4], [1]]) * direction  # collinear up to rounding; 1/16 pixel makes them areas
    pos = torch.cat([xy, torch.zeros(400, 3, 1), torch.ones(400, 3, 1)], -1).view(1, -1, 4).to(dtype).requires_grad_()
    tri = torch.arange(1200).view(-1, 3)
    rast, rast_db = rasterize(None, pos, tri, (64, 64), grad_db=True)
    assert (rast[..., 3] > 0).sum() > 50
    (rast[..., :2].sum() + rast_db.sum()).backward()
    assert rast_db.isfinite().all()
    assert pos.grad.isfinite().all()


def test_empty_meshes_batches_and_channels(backend):
    pos, tri = face(4)
    pos = pos[None]
    for p, t in ((pos, tri[:0]), (pos[:, :0], tri), (pos[:0], tri)):
        p = p.clone().requires_grad_()
        rast, rast_db = rasterize(None, p, t, (3, 5), grad_db=True)
        assert not rast_db.any()
        out, out_da = interpolate(p, rast, t, rast_db, "all")
        assert out_da.shape == (len(p), 3, 5, 8)
        (out.sum() + out_da.sum()).backward()
        assert not p.grad.any()
    rast, rast_db = rasterize(None, pos, tri, (3, 5), grad_db=False)
    assert interpolate(pos[..., :0], rast, tri, rast_db, "all")[1].shape == (1, 3, 5, 0)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", "numba")
    start, tri = face(20)
    start = torch.stack([start * (1 - 0.1 * i) for i in range(5)]).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            pos, attr = start.clone().requires_grad_(), start[:1, :, :3].clone().requires_grad_()
            rast, rast_db = rasterize(None, pos, tri, (32, 30), grad_db=True)
            out, out_da = interpolate(attr, rast, tri, rast_db, [0, 2, 0])
            gradients = torch.autograd.grad(out.square().sum() + out_da.square().sum(), [pos, attr])
            results.append([rast_db, out_da, *gradients])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rast_db": None}, r"rast_db: got NoneType; expected a tensor \(2, 4, 4, 4\) from grad_db"),
        ({"rast_db": torch.zeros(2, 4, 4, 0)}, r"rast_db: got shape \(2, 4, 4, 0\); expected \(2, 4, 4, 4\)"),
        ({"rast_db": torch.zeros(2, 4, 5, 4)}, r"rast_db: got shape \(2, 4, 5, 4\); expected \(2, 4, 4, 4\)"),
        ({"rast_db": torch.zeros(2, 4, 4, 4).double()}, "rast_db: got torch.float64 on cpu; expected torch.float32"),
        ({"diff_attrs": [2]}, r"diff_attrs: got \[2\]; expected 'all' or a list of channels of 2"),
        ({"diff_attrs": [-3]}, r"diff_attrs: got \[-3\]; expected 'all'"),
        ({"diff_attrs": "first"}, "diff_attrs: got 'first'; expected 'all'"),
        ({"diff_attrs": 1}, "diff_attrs: got 1; expected 'all'"),
    ],
)
def test_interpolate_names_wrong_arguments(change, message):
    arguments = {"attr": torch.zeros(1, 3, 2), "rast": torch.zeros(2, 4, 4, 4), "tri": TRI}
    with pytest.raises(ShapeError, match=message):
        interpolate(**{**arguments, "rast_db": torch.zeros(2, 4, 4, 4), "diff_attrs": "all", **change})
