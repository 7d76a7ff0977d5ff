import pytest
import torch
from render_reference import face

from nl3dmm.render import interpolate, rasterize, texture

BOUNDARIES = ["clamp", "wrap", "zero"]


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def random(*size, seed=0, dtype=torch.float64):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uv_grid(batch, height, width, seed=1, spread=1.0):
    """Coordinates that leave [0, 1] and keep away from the kinks at texel centres of a 5 x 7 texture."""
    texel = torch.floor(random(batch, height, width, 2, seed=seed) * spread * 20) - 6
    fraction = 0.1 + 0.8 * random(batch, height, width, 2, seed=seed + 1)
    return (texel + 0.5 + fraction) / torch.tensor([7.0, 5.0], dtype=torch.float64)


def rendered_face(batch=2, resolution=(20, 23)):
    pos, tri = face(9)
    pos = torch.stack([pos * (1 - 0.2 * i) for i in range(batch)])
    return rasterize(None, pos, tri, resolution)[0], tri, pos.shape[1]


def test_interpolate_has_known_values_and_zero_background(backend):
    rast = torch.tensor([[[[0.25, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 1]]]])
    tri = torch.tensor([[2, 1, 0], [0, 1, 2]])
    attr = torch.tensor([[[1.0, 0], [2, 10], [4, 20]]])
    out, empty = interpolate(attr, rast, tri)
    torch.testing.assert_close(out, torch.tensor([[[[2.25, 10], [0, 0], [4, 20]]]]))
    assert empty.shape == (1, 1, 3, 0)


def test_interpolate_reproduces_linear_functions_and_constants(backend):
    pos, tri = face(12)
    rast, _ = rasterize(None, pos[None], tri, (40, 40))
    out, _ = interpolate(torch.cat([pos, torch.ones(len(pos), 1)], -1)[None], rast, tri)
    row, column = (rast[0, ..., 3] > 0).nonzero(as_tuple=True)
    x, y, _, w, one = out[0, row, column].unbind(-1)
    error = torch.maximum((20 * (x / w + 1) - column - 0.5).abs(), (20 * (y / w + 1) - row - 0.5).abs())  # px
    assert error.median() < 1e-9
    assert error.max() < 0.25  # coverage is decided at 1/16 pixel, the sample then moved into the true triangle
    torch.testing.assert_close(one, torch.ones_like(one))


def test_interpolate_ignores_what_is_no_triangle(backend):
    rast = torch.tensor([[[[0.2, 0.3, 0, 9], [0.2, 0.3, 0, -3], [0.2, 0.3, 0, float("nan")], [0.2, 0.3, 0, 2]]]])
    attr, rast = torch.ones(1, 3, 2, requires_grad=True), rast.requires_grad_()
    out, _ = interpolate(attr, rast, torch.tensor([[0, 1, 2], [0, 1, 3]]))
    assert not out.any()
    out.sum().backward()
    assert not attr.grad.any()
    assert not rast.grad.any()
    assert not interpolate(attr, rast, torch.zeros(0, 3, dtype=torch.int64))[0].any()


@pytest.mark.parametrize("shared", [False, True])
def test_interpolate_gradcheck(backend, shared):
    rast, tri, vertices = rendered_face(resolution=(5, 6))
    attr = random(1 if shared else 2, vertices, 3).requires_grad_()

    def run(attr, weights):
        return interpolate(attr, torch.cat([weights, rast[..., 2:]], -1), tri)[0]

    assert torch.autograd.gradcheck(run, (attr, rast[..., :2].clone().requires_grad_()))


def test_shared_attributes_equal_repeated_ones(backend):
    rast, tri, vertices = rendered_face()
    results = []
    for repeat in (1, 2):
        attr = random(1, vertices, 4).requires_grad_()
        out, _ = interpolate(attr.expand(repeat, -1, -1), rast, tri)
        out.square().sum().backward()
        results.append((out.detach(), attr.grad))
    torch.testing.assert_close(*results)


def test_texture_reads_texel_centres_exactly(backend):
    tex = random(1, 5, 7, 2)
    row, column = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    uv = torch.stack([(column + 0.5) / 7, (row + 0.5) / 5], -1)[None].double()
    for filter_mode in ("linear", "nearest"):
        for boundary_mode in BOUNDARIES:
            out = texture(tex, uv, filter_mode=filter_mode, boundary_mode=boundary_mode)
            torch.testing.assert_close(out, tex, rtol=0, atol=1e-6)


def test_texture_has_known_values(backend):
    tex = torch.tensor([[[[0.0], [4]], [[8], [16]]]])
    uv = torch.tensor([[[[0.5, 0.5], [0.5, 0.25], [0.0, 0.25], [-0.25, 0.25], [0.9, 0.9], [9, -9]]]])
    expected = {
        ("linear", "clamp"): [7, 2, 0, 0, 16, 4],
        ("linear", "wrap"): [7, 2, 2, 4, None, 7],
        ("linear", "zero"): [7, 2, 0, 0, None, 0],
        ("nearest", "clamp"): [16, 4, 0, 0, 16, 4],
        ("nearest", "wrap"): [16, 4, 0, 4, 16, 0],
        ("nearest", "zero"): [16, 4, 0, 0, 16, 0],
    }
    for (filter_mode, boundary_mode), values in expected.items():
        out = texture(tex, uv, filter_mode=filter_mode, boundary_mode=boundary_mode).flatten()
        for got, want in zip(out.tolist(), values, strict=True):
            assert want is None or got == pytest.approx(want, abs=1e-5), (filter_mode, boundary_mode)


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
def test_texture_equals_grid_sample(backend, boundary_mode):
    if boundary_mode == "wrap":
        tex, uv = random(2, 5, 7, 3), random(2, 9, 8, 2) * 0.6 + 0.2  # grid_sample cannot wrap
    else:
        tex, uv = random(2, 5, 7, 3), uv_grid(2, 9, 8)
    padding = "zeros" if boundary_mode == "zero" else "border"
    expected = torch.nn.functional.grid_sample(
        tex.permute(0, 3, 1, 2), 2 * uv - 1, padding_mode=padding, align_corners=False
    )
    out = texture(tex, uv, boundary_mode=boundary_mode)
    torch.testing.assert_close(out, expected.permute(0, 2, 3, 1))


def test_wrapped_texture_is_periodic(backend):
    tex, uv = random(1, 5, 7, 3), uv_grid(1, 6, 6)
    for filter_mode in ("linear", "nearest"):
        shifted = texture(tex, uv + torch.tensor([3, -2]), filter_mode=filter_mode, boundary_mode="wrap")
        torch.testing.assert_close(texture(tex, uv, filter_mode=filter_mode, boundary_mode="wrap"), shifted)


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
@pytest.mark.parametrize("shared", [False, True])
def test_linear_texture_gradcheck(backend, boundary_mode, shared):
    tex, uv = random(1 if shared else 2, 5, 7, 2).requires_grad_(), uv_grid(2, 4, 3).requires_grad_()
    mask = random(2, 4, 3, seed=7) > 0.2
    assert torch.autograd.gradcheck(lambda tex, uv: texture(tex, uv, boundary_mode=boundary_mode, mask=mask), (tex, uv))


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
def test_nearest_texture_has_a_gradient_to_the_texels_only(backend, boundary_mode):
    tex, uv = random(1, 5, 7, 2).requires_grad_(), uv_grid(2, 4, 3)
    assert torch.autograd.gradcheck(
        lambda tex: texture(tex, uv, filter_mode="nearest", boundary_mode=boundary_mode), tex
    )
    uv.requires_grad_()
    texture(tex, uv, filter_mode="nearest", boundary_mode=boundary_mode).sum().backward()
    assert uv.grad is None or not uv.grad.any()


def test_clamped_coordinates_have_no_gradient(backend):
    tex, uv = random(1, 5, 7, 2), torch.tensor([[[[-0.3, 0.5], [0.5, 1.7]]]], dtype=torch.float64, requires_grad=True)
    texture(tex, uv, boundary_mode="clamp").sum().backward()
    assert uv.grad[0, 0, 0, 0] == 0
    assert uv.grad[0, 0, 1, 1] == 0
    assert (uv.grad[0, 0, [0, 1], [1, 0]] != 0).all()


def test_masked_pixels_are_zero_and_without_gradient(backend):
    tex, uv, mask = random(2, 5, 7, 3).requires_grad_(), uv_grid(2, 6, 5).requires_grad_(), random(2, 6, 5) > 0.5
    full, masked = texture(tex, uv), texture(tex, uv, mask=mask)
    assert torch.equal(masked, torch.where(mask[..., None], full, 0))
    expected = torch.autograd.grad(torch.where(mask[..., None], full, 0).sum(), (tex, uv))
    torch.testing.assert_close(torch.autograd.grad(masked.sum(), (tex, uv)), expected)


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
@pytest.mark.parametrize("filter_mode", ["linear", "nearest"])
def test_coordinates_that_do_not_exist_give_zero(backend, filter_mode, boundary_mode):
    nan, inf = float("nan"), float("inf")
    uv = torch.tensor([[[[nan, 0.5], [0.5, nan], [inf, 0.5], [0.5, -inf]]]], requires_grad=True)
    tex = torch.ones(1, 5, 7, 2, requires_grad=True)
    out = texture(tex, uv, filter_mode=filter_mode, boundary_mode=boundary_mode)
    assert not out.any()
    out.sum().backward()
    assert not tex.grad.any()
    assert uv.grad is None or not uv.grad.any()
    huge = torch.tensor([[[[1e30, -1e30], [-1e30, 1e30]]]])
    assert texture(tex, huge, filter_mode=filter_mode, boundary_mode=boundary_mode).isfinite().all()


def test_one_texel_and_empty_batches(backend):
    tex = torch.full((1, 1, 1, 2), 3.0)
    uv = uv_grid(2, 3, 3).float()
    for boundary_mode in ("clamp", "wrap"):
        torch.testing.assert_close(texture(tex, uv, boundary_mode=boundary_mode), torch.full((2, 3, 3, 2), 3.0))
    assert texture(tex, uv[:0]).shape == (0, 3, 3, 2)
    out, _ = interpolate(torch.zeros(1, 3, 2), torch.zeros(0, 3, 3, 4), torch.tensor([[0, 1, 2]]))
    assert out.shape == (0, 3, 3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_pipeline_agrees_between_backends(monkeypatch, dtype):
    start, tri = face(40)
    start = torch.stack([start, start * torch.tensor([0.8, 1.2, 1, 1])]).to(dtype)
    start_attr, start_tex = random(1, start.shape[1], 5).to(dtype), random(1, 12, 14, 6, seed=3).to(dtype)
    weight = random(2, 56, 60, 6, seed=5).to(dtype) - 0.5
    images, gradients = [], []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        leaves = [leaf.clone().requires_grad_() for leaf in (start, start_attr, start_tex)]
        rast, _ = rasterize(None, leaves[0], tri, (56, 60))
        out, _ = interpolate(leaves[1], rast, tri)
        image = texture(leaves[2], out[..., :2], mask=rast[..., 3] > 0) * out[..., 2:3]
        images.append(image.detach())
        gradients.append(torch.autograd.grad((image * weight).sum(), leaves))
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)
    for one, other in zip(*gradients, strict=True):
        assert torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0) > 0.9999
        assert abs(one.norm() / other.norm() - 1) < 1e-4
