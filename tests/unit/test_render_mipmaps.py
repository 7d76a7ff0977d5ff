"""Texture pyramids and the filters that read them: known values, both CPU backends, gradients, odd input."""

import math

import pytest
import torch

from nl3dmm.errors import ShapeError
from nl3dmm.render import texture, texture_construct_mip
from nl3dmm.render.mipmaps import level_of_detail

BOUNDARIES = ["clamp", "wrap", "zero"]
FILTERS = ["linear-mipmap-nearest", "linear-mipmap-linear"]
SIZE = (8, 4)  # texels of the textures here: rows, columns


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)


def random(*size, seed=0, dtype=torch.float64):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def footprints(batch, height, width, seed=4):
    """``uv_da`` of tilted ellipses whose longer semi-axis is 2 ** l texels, l away from integers in [-1, 3.5]."""
    level = torch.floor(random(batch, height, width, seed=seed) * 5) - 1 + 0.1 + 0.35 * random(batch, height, width)
    angle, other = 6 * random(batch, height, width, seed=seed + 1), 6 * random(batch, height, width, seed=seed + 2)
    major, minor = 2**level, 2**level * (0.1 + 0.6 * random(batch, height, width, seed=seed + 3))
    left, right = rotation(angle), rotation(other)
    jacobian = left @ torch.diag_embed(torch.stack([major, minor], -1)) @ right
    return (jacobian / torch.tensor([[SIZE[1]], [SIZE[0]]], dtype=torch.float64)).flatten(-2), level


def rotation(angle):
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))


def coordinates(batch, height, width, spread=1.0):
    """Away from the kinks of all levels: texel centres are at multiples of 1 / 16."""
    step = torch.floor(random(batch, height, width, 2, seed=2) * 16 * spread) - 8 * (spread - 1)
    return (step + 0.1 + 0.8 * random(batch, height, width, 2, seed=3)) / 16


def centres(height, width, dtype=torch.float64):
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([u, v], -1)[None].to(dtype)


def test_a_pyramid_is_made_of_means():
    tex = random(2, 8, 4, 3)
    levels = texture_construct_mip(tex)
    assert [tuple(level.shape) for level in levels] == [(2, 4, 2, 3), (2, 2, 1, 3), (2, 1, 1, 3)]
    torch.testing.assert_close(levels[0][1, 2, 1], tex[1, 4:6, 2:4].mean((0, 1)))
    torch.testing.assert_close(levels[-1], tex.mean((1, 2), keepdim=True))
    pooled = torch.nn.functional.avg_pool2d(tex.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(levels[0], pooled)
    assert torch.autograd.gradcheck(lambda tex: tuple(texture_construct_mip(tex)), tex[:1, :, :, :1].requires_grad_())


def test_pyramids_of_odd_textures_must_stop_in_time():
    tex = torch.zeros(1, 12, 8, 1)
    with pytest.raises(ShapeError, match=r"tex: got 3 x 2 texels at mip level 2; .*Pass max_mip_level=2"):
        texture_construct_mip(tex)
    assert len(texture_construct_mip(tex, 2)) == 2
    assert texture_construct_mip(tex, 0) == []
    assert texture_construct_mip(torch.zeros(1, 1, 1, 2)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 4, 3),), r"tex: got shape \(4, 4, 3\); expected \(batch, height, width, channels\)"),
        ((torch.zeros(1, 0, 4, 3),), "expected at least one texel"),
        ((torch.zeros(1, 4, 4, 3), -1), "max_mip_level: got -1; expected None or an integer >= 0"),
        ((torch.zeros(1, 4, 4, 3), 1.5), "max_mip_level: got 1.5; expected None or an integer"),
    ],
)
def test_pyramids_name_wrong_arguments(arguments, message):
    with pytest.raises(ShapeError, match=message):
        texture_construct_mip(*arguments)


def test_level_is_the_log_of_the_longer_semi_axis():
    uv_da, level = footprints(2, 5, 6)
    torch.testing.assert_close(level_of_detail(uv_da, None, SIZE, 9), level.clamp_min(0))
    jacobian = uv_da.unflatten(-1, (2, 2)) * torch.tensor([[SIZE[1]], [SIZE[0]]])
    major = torch.linalg.eigvalsh(jacobian @ jacobian.mT)[..., -1]
    bias = 4 * random(2, 5, 6) - 2
    expected = (0.5 * torch.log2(major) + bias).clamp(0, 2)
    torch.testing.assert_close(level_of_detail(uv_da, bias, SIZE, 2), expected)
    torch.testing.assert_close(level_of_detail(None, bias, SIZE, 2), bias.clamp(0, 2))


@pytest.mark.parametrize("filter_mode", FILTERS)
def test_a_constant_texture_stays_constant(backend, filter_mode):
    uv_da, _ = footprints(2, 5, 6)
    for boundary_mode in ("clamp", "wrap"):
        uv, tex = coordinates(2, 5, 6, spread=3), torch.full((1, *SIZE, 2), 3.0).double()
        out = texture(tex, uv, uv_da, filter_mode=filter_mode, boundary_mode=boundary_mode)
        torch.testing.assert_close(out, torch.full_like(out, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filter_mode", FILTERS)
def test_a_texture_minified_by_two_is_its_first_level(backend, filter_mode, dtype):
    tex = random(2, *SIZE, 3).to(dtype)
    first = texture_construct_mip(tex)[0]
    uv = centres(SIZE[0] // 2, SIZE[1] // 2, dtype).expand(2, -1, -1, -1)
    uv_da = uv.new_tensor([2 / SIZE[1], 0, 0, 2 / SIZE[0]]).expand(*uv.shape[:3], 4)
    for boundary_mode in BOUNDARIES:
        out = texture(tex, uv, uv_da, filter_mode=filter_mode, boundary_mode=boundary_mode)
        torch.testing.assert_close(out, first, rtol=0, atol=1e-5)
        out = texture(tex, uv, mip_level_bias=torch.ones_like(uv[..., 0]), filter_mode=filter_mode)
        torch.testing.assert_close(out, first, rtol=0, atol=1e-6)


def test_levels_are_blended_or_rounded(backend):
    levels = [torch.full((1, 4 >> k, 4 >> k, 1), 10.0**k) for k in range(3)]
    bias = torch.tensor([[[-3.0, 0, 0.25, 0.5, 1, 1.75, 2, 9]]])
    arguments = {"uv": torch.full((1, 1, 8, 2), 0.4), "mip_level_bias": bias, "mip": levels[1:]}
    out = texture(levels[0], **arguments).flatten()
    torch.testing.assert_close(out, torch.tensor([1, 1, 3.25, 5.5, 10, 77.5, 100, 100]))
    out = texture(levels[0], **arguments, filter_mode="linear-mipmap-nearest").flatten()
    torch.testing.assert_close(out, torch.tensor([1.0, 1, 1, 10, 10, 100, 100, 100]))


def test_the_longer_axis_decides(backend):
    """A footprint of 4 texels along one axis and of a tenth along the other reads level 2 whichever way it lies."""
    levels = [torch.full((1, 8 >> k, 4 >> min(k, 2), 1), 1.0 * k) for k in range(4)]
    thin = torch.diag_embed(torch.tensor([[4, 0.1], [0.1, 4]])) @ rotation(torch.tensor([0.0, 0.7]))
    uv_da = (thin / torch.tensor([[4.0], [8.0]])).flatten(-2)[None, None]
    out = texture(levels[0], torch.full((1, 1, 2, 2), 0.4), uv_da, mip=levels[1:])
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 2.0]))


def test_magnified_textures_are_sampled_as_without_a_pyramid(backend):
    tex, uv = random(2, *SIZE, 3).float(), coordinates(2, 5, 6, spread=3).float()
    for boundary_mode in BOUNDARIES:
        plain = texture(tex, uv, boundary_mode=boundary_mode)
        for filter_mode in FILTERS:
            uv_da = torch.full((2, 5, 6, 4), 1e-3)
            assert texture(tex, uv, uv_da, filter_mode=filter_mode, boundary_mode=boundary_mode).equal(plain)
            only = texture(tex, uv, uv_da + 1, filter_mode=filter_mode, boundary_mode=boundary_mode, max_mip_level=0)
            assert only.equal(plain)


def test_auto_is_trilinear_when_guided(backend):
    tex, uv, (uv_da, _) = random(1, *SIZE, 3), coordinates(2, 5, 6), footprints(2, 5, 6)
    explicit = texture(tex, uv, uv_da, filter_mode="linear-mipmap-linear")
    assert texture(tex, uv, uv_da).equal(explicit)
    assert texture(tex, uv, uv_da, filter_mode="linear").equal(texture(tex, uv))


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
@pytest.mark.parametrize("shared", [False, True])
def test_trilinear_gradcheck(backend, boundary_mode, shared):
    tex, uv = random(1 if shared else 2, *SIZE, 1).requires_grad_(), coordinates(2, 2, 3, spread=3).requires_grad_()
    uv_da, bias = footprints(2, 2, 3)[0].requires_grad_(), (0.3 * random(2, 2, 3)).requires_grad_()
    mask = random(2, 2, 3, seed=7) > 0.2
    mip = [level.detach().requires_grad_() for level in texture_construct_mip(tex)[:2]]

    def run(tex, uv, uv_da, bias, *mip):
        return texture(tex, uv, uv_da, bias, list(mip) or None, boundary_mode=boundary_mode, mask=mask)

    assert torch.autograd.gradcheck(run, (tex, uv, uv_da, bias))
    assert torch.autograd.gradcheck(run, (tex, uv, uv_da, bias, *mip))


@pytest.mark.parametrize("boundary_mode", BOUNDARIES)
def test_nearest_level_has_gradients_to_texels_and_coordinates_only(backend, boundary_mode):
    tex, uv = random(1, *SIZE, 2).requires_grad_(), coordinates(2, 2, 3, spread=3).requires_grad_()
    uv_da, bias = footprints(2, 2, 3)[0].requires_grad_(), (0.01 * random(2, 2, 3)).requires_grad_()
    arguments = {"filter_mode": "linear-mipmap-nearest", "boundary_mode": boundary_mode}
    assert torch.autograd.gradcheck(lambda tex, uv: texture(tex, uv, uv_da.detach(), **arguments), (tex, uv))
    texture(tex, uv, uv_da, bias, **arguments).sum().backward()
    assert uv_da.grad is None or not uv_da.grad.any()
    assert bias.grad is None or not bias.grad.any()


def test_clamped_levels_have_no_gradient(backend):
    tex, uv = random(1, *SIZE, 2), coordinates(1, 1, 4)
    bias = torch.tensor([[[-1.0, 0.5, 2.5, 4.0]]], dtype=torch.float64, requires_grad=True)
    texture(tex, uv, mip_level_bias=bias).sum().backward()
    assert (bias.grad != 0).tolist() == [[[False, True, True, False]]]


def test_round_footprints_have_finite_gradients(backend):
    """A circle has no longer axis, and the zeros of the background no size."""
    uv_da = torch.tensor([[[[0.5, 0, 0, 0.25], [0.0, 0, 0, 0], [0, 0.5, 0.25, 0]]]], requires_grad=True)
    texture(random(1, *SIZE, 2).float(), torch.full((1, 1, 3, 2), 0.4), uv_da).sum().backward()
    assert uv_da.grad.isfinite().all()
    assert not uv_da.grad[0, 0, 1].any()


@pytest.mark.parametrize("filter_mode", FILTERS)
def test_backends_agree(monkeypatch, filter_mode):
    for boundary_mode in BOUNDARIES:
        results = []
        for name in ("numba", "torch"):
            monkeypatch.setenv("NL3DMM_RENDER", name)
            leaves = [random(2, *SIZE, 3), coordinates(2, 9, 8, spread=3), footprints(2, 9, 8)[0], random(2, 9, 8)]
            leaves = [leaf.float().requires_grad_() for leaf in leaves]
            out = texture(*leaves, filter_mode=filter_mode, boundary_mode=boundary_mode, mask=random(2, 9, 8) > 0.2)
            gradients = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
            results.append([out.detach(), *gradients])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_one_and_two_threads_give_the_same_bits():
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [random(1, *SIZE, 3), coordinates(3, 9, 8), footprints(3, 9, 8)[0]]
        leaves = [leaf.float().requires_grad_() for leaf in leaves]
        out = texture(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    torch.set_num_threads(before)
    assert all(one.equal(other) for one, other in zip(*results, strict=True))


def test_masked_pixels_and_elements_of_a_batch_are_on_their_own(backend):
    tex, uv, (uv_da, _) = random(2, *SIZE, 3), coordinates(2, 5, 6), footprints(2, 5, 6)
    mask = random(2, 5, 6) > 0.5
    full = texture(tex, uv, uv_da)
    assert texture(tex, uv, uv_da, mask=mask).equal(torch.where(mask[..., None], full, 0))
    for one in (slice(0, 1), slice(1, 2)):
        assert texture(tex[one], uv[one], uv_da[one]).equal(full[one])
    shared = texture(tex[:1], uv, uv_da)
    assert shared.equal(texture(tex[:1].expand(2, -1, -1, -1), uv, uv_da))
    assert texture(tex[:1], uv[:0], uv_da[:0]).shape == (0, 5, 6, 3)


@pytest.mark.parametrize("filter_mode", FILTERS)
def test_what_is_not_finite_has_a_defined_result(backend, filter_mode):
    """Unknown coordinates give 0; an unknown level counts as 0, an infinite one as the last."""
    nan, inf = math.nan, math.inf
    tex = random(1, *SIZE, 2).float().requires_grad_()
    uv = torch.full((1, 1, 8, 2), 0.4)
    uv[0, 0, 0, 0], uv[0, 0, 1, 1] = nan, inf
    uv_da, bias = torch.full((1, 1, 8, 4), 1e-3), torch.zeros(1, 1, 8)
    uv_da[0, 0, 2, 0], uv_da[0, 0, 3, 1], uv_da[0, 0, 4] = nan, inf, inf
    bias[0, 0, 5], bias[0, 0, 6], bias[0, 0, 7] = nan, inf, -inf
    leaves = [uv.requires_grad_(), uv_da.requires_grad_(), bias.requires_grad_()]
    out = texture(tex, *leaves, filter_mode=filter_mode)
    out.sum().backward()
    base, last = texture(tex, torch.full((1, 1, 1, 2), 0.4)).flatten(), tex.mean((0, 1, 2))
    assert not out[0, 0, :2].any()
    for pixel, expected in {2: base, 3: last, 4: last, 5: base, 6: last, 7: base}.items():
        torch.testing.assert_close(out[0, 0, pixel], expected)
    assert tex.grad.isfinite().all()
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()
        assert leaf.grad is None or not leaf.grad[0, 0, :2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uv_da": torch.zeros(1, 2, 2, 2)}, r"uv_da: got shape \(1, 2, 2, 2\); expected \(batch, height, width, 4\)"),
        ({"mip_level_bias": torch.zeros(1, 2)}, r"mip_level_bias: got shape \(1, 2\); expected \(batch, height, width"),
        ({"filter_mode": "linear-mipmap-linear", "uv_da": None}, "without uv_da and mip_level_bias"),
        ({"mip": torch.zeros(1, 4, 2, 1)}, "mip: got Tensor; expected a list"),
        ({"mip": [torch.zeros(1, 4, 4, 1)]}, r"mip\[0\]: got shape \(1, 4, 4, 1\); expected \(1, 4, 2, 1\)"),
        ({"tex": torch.zeros(1, 6, 4, 1)}, "tex: got 3 x 2 texels at mip level 1"),
    ],
)
def test_texture_names_wrong_pyramids(change, message):
    arguments = {"tex": torch.zeros(1, *SIZE, 1), "uv": torch.zeros(1, 2, 2, 2), "uv_da": torch.zeros(1, 2, 2, 4)}
    with pytest.raises(ShapeError, match=message):
        texture(**{**arguments, **change})
