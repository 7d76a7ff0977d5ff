"""Light by the renderer's backends: kernels against plain torch, known values, odd inputs."""

from inspect import unwrap

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.nn import functional as F

from nl3dmm.errors import ShapeError
from nl3dmm.geometry import lighting
from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.render import light_albedo, shade
from nl3dmm.render._numba._srgb import decode, decode_backward, encode, encode_backward
from nl3dmm.render.scene import Surface, render_textures

# Largest difference of float32 kernels to float64, measured on these inputs: 2e-6 of the largest value.
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.float64: {"atol": 1e-11, "rtol": 1e-11}}
DTYPES = list(TOLERANCE)
ENCODINGS = ("none", "srgb")


@pytest.fixture(params=["numba", "torch"])
def backend(request, monkeypatch):
    monkeypatch.setenv("NL3DMM_RENDER", request.param)
    return request.param


def random_light(points: int = 300, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Unit normals and coefficients of two images; the number of points is no multiple of a block."""
    normals = F.normalize(torch.randn(2, points, 3, dtype=torch.float64), dim=-1)
    return [value.to(dtype).requires_grad_() for value in (normals, torch.randn(2, 3, 9, dtype=torch.float64))]


def random_texels(
    maps: int = 2, batch: int = 4, textures: int = 2, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Albedo beyond both ends of [0, 1], shading of both signs; no value is at a kink of the sRGB curve."""
    albedo = 1.3 * torch.rand(maps, textures, 3, 5, 7, dtype=torch.float64) - 0.1
    shading = 2 * torch.rand(batch, 5, 7, 3, dtype=torch.float64) - 0.3
    return [value.to(dtype).requires_grad_() for value in (albedo, shading)]


def lit(albedo: torch.Tensor, shading: torch.Tensor, encoding: str) -> torch.Tensor:
    """With the maps as they lie in the memory of a model: (maps, textures, 3, height, width)."""
    return light_albedo(albedo.permute(0, 3, 4, 1, 2), shading, encoding)


def with_gradients(function, *leaves: torch.Tensor) -> list[torch.Tensor]:
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *grad(out, leaves, weights)]


def assert_all_close(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        scale = max(other.abs().flatten().tolist(), default=0) or 1
        torch.testing.assert_close(one.double() / scale, other.double() / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("points", [0, 1, 300])
def test_shading_is_basis_times_coefficients(backend, points, dtype):
    leaves = random_light(points)
    expected = with_gradients(lambda n, k: lighting.sh_basis(n) @ k.transpose(1, 2), *leaves)
    found = with_gradients(shade, *(value.detach().to(dtype).requires_grad_() for value in leaves))
    assert_all_close(found, expected, dtype)


def test_gradient_of_the_light_is_accurate_for_many_points():
    leaves = random_light(50000)
    expected = with_gradients(lambda n, k: lighting.sh_basis(n) @ k.transpose(1, 2), *leaves)
    found = with_gradients(shade, *(value.detach().float().requires_grad_() for value in leaves))
    assert (found[2] - expected[2]).abs().max() < 2e-6 * expected[2].abs().max()


def test_normals_of_any_length(backend):
    unit, coefficients = random_light()
    expected = shade(unit, coefficients)
    torch.testing.assert_close(shade(3 * unit, coefficients, least_length=0.1), expected)
    torch.testing.assert_close(shade(0.01 * unit, coefficients, least_length=0.1), shade(0.1 * unit, coefficients))
    zero = torch.zeros_like(unit)
    torch.testing.assert_close(shade(zero, coefficients, least_length=0.1), shade(zero, coefficients))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_agree_with_torch(monkeypatch, dtype):
    """Some normals are longer than the least length and some shorter."""
    leaves, results = [0.5 * torch.randn(2, 300, 3, dtype=dtype), torch.randn(2, 3, 9, dtype=dtype)], []
    for name in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", name)
        inputs = (value.clone().requires_grad_() for value in leaves)
        results.append(with_gradients(lambda n, k: shade(n, k, least_length=0.5), *inputs))
    assert_all_close(*results, dtype)


def test_gradcheck_of_shading(backend):
    normals = torch.tensor([[[0.3, -0.4, 0.8], [2, 1, -3], [0.1, 0.2, -0.1]]], dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(1, 3, 9, dtype=torch.float64, requires_grad=True)
    assert gradcheck(shade, (normals, coefficients))
    assert gradcheck(lambda n, k: shade(n, k, least_length=0.5), (normals, coefficients))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("maps", "batch", "textures"), [(4, 4, 1), (2, 4, 2), (1, 4, 3), (0, 0, 2)])
def test_each_element_wears_its_map(backend, encoding, maps, batch, textures, dtype):
    """Against one map per element and albedo, shading and texture in the layout of ``geometry.lighting``."""

    def plainly(albedo, shading):
        worn = albedo.repeat(batch // max(maps, 1), 1, 1, 1, 1)
        light = shading.permute(0, 3, 1, 2)[:, None]
        return lighting.light_albedo(worn, light, encoding).permute(0, 3, 4, 1, 2)

    leaves = random_texels(maps, batch, textures)
    expected = with_gradients(plainly, *leaves)
    leaves = [value.detach().to(dtype).requires_grad_() for value in leaves]
    assert_all_close(with_gradients(lambda a, s: lit(a, s, encoding), *leaves), expected, dtype)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_memory_layout_changes_nothing(encoding):
    albedo, shading = random_texels(dtype=torch.float32)
    as_pixels = albedo.detach().permute(0, 3, 4, 1, 2).contiguous().requires_grad_()
    apart = shading.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()
    found = with_gradients(lambda a, s: light_albedo(a, s.permute(0, 2, 3, 1), encoding), as_pixels, apart)
    expected = with_gradients(lambda a, s: lit(a, s, encoding), albedo, shading)
    assert found[0].equal(expected[0])
    assert found[1].permute(0, 3, 4, 1, 2).equal(expected[1])
    assert found[2].permute(0, 2, 3, 1).equal(expected[2])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gradcheck_of_lit_albedo(backend, encoding):
    albedo, shading = random_texels(maps=1, batch=2)
    inputs = (albedo[..., :2, :2].detach().requires_grad_(), shading[:, :2, :2].detach().requires_grad_())
    assert gradcheck(lambda a, s: lit(a, s, encoding), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 6e-7), (torch.float64, 2e-12)])
@pytest.mark.parametrize(
    ("curve", "adjoint", "reference"),
    [(decode, decode_backward, lighting.decode_srgb), (encode, encode_backward, lighting.encode_srgb)],
)
def test_srgb_curves_and_slopes(curve, adjoint, reference, dtype, tolerance):
    """From deep in the toe over both kinks, which belong to the toe, to far above white."""
    kinks = torch.tensor([0.04045, 0.0031308], dtype=dtype)
    steps = torch.cat([-torch.logspace(-6, 1, 500), torch.zeros(1), torch.logspace(-6, 4, 5000)]).to(dtype)
    values = torch.cat([steps, kinks, kinks.nextafter(kinks + 1)]).requires_grad_()
    (slopes,) = grad(reference(values).sum(), values)
    exact = reference(values.detach().double())
    found, gradient = values.detach().clone(), torch.ones_like(values)
    curve(found.numpy())
    assert ((found - exact).abs() <= tolerance * (exact.abs() + 0.1)).all()
    inputs = (values.detach().numpy(), found.numpy()) if curve is decode else (values.detach().numpy(),)
    adjoint(*inputs, gradient.numpy())
    torch.testing.assert_close(gradient, slopes, rtol=3 * tolerance, atol=0)


def test_black_albedo_and_negative_light(backend):
    """The toe: what is encoded and decoded in a straight line is as if it were not."""
    albedo = torch.tensor([0.0, 0.03, -0.2]).view(1, 1, 3, 1, 1).requires_grad_()
    shading = torch.tensor([0.7, -0.5, 0.9]).view(1, 1, 1, 3).requires_grad_()
    out = lit(albedo, shading, "srgb")
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, -0.015, -0.18]))
    gradients = grad(out.sum(), (albedo, shading))
    torch.testing.assert_close(gradients[0].flatten(), torch.tensor([0.7, -0.5, 0.9]))
    torch.testing.assert_close(gradients[1].flatten(), torch.tensor([0.0, 0.03, -0.2]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_at_its_point(backend, value):
    normals, coefficients = (leaf.detach().clone() for leaf in random_light(dtype=torch.float32))
    normals[0, 7, 1] = value
    out, to_normals, to_light = with_gradients(shade, normals.requires_grad_(), coefficients.requires_grad_())
    for found in (out, to_normals):
        spoilt = ~found.isfinite().all(-1)
        assert not spoilt[1].any()
        assert set(spoilt[0].nonzero()[:, 0].tolist()) <= {7}
    assert not out[0, 7].isfinite().all()
    assert to_light[1].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_not_finite_stays_at_its_texel(backend, encoding, value):
    albedo, shading = (leaf.detach().clone() for leaf in random_texels(dtype=torch.float32))
    albedo[1, 0, 2, 3, 4] = value  # worn by images 1 and 3
    shading[0, 1, 2, 0] = value
    out, to_albedo, to_shading = with_gradients(
        lambda a, s: lit(a, s, encoding), albedo.requires_grad_(), shading.requires_grad_()
    )
    spoilt = {(1, 3, 4, 0, 2), (3, 3, 4, 0, 2), (0, 1, 2, 0, 0), (0, 1, 2, 1, 0)}
    assert {tuple(index) for index in (~out.isfinite()).nonzero().tolist()} == spoilt
    reached = {tuple(index) for index in (~to_albedo.isfinite()).nonzero().tolist()}
    assert reached <= {(1, 0, 2, 3, 4), (0, 0, 0, 1, 2), (0, 1, 0, 1, 2)}
    reached = {tuple(index) for index in (~to_shading.isfinite()).nonzero().tolist()}
    assert reached <= {(1, 3, 4, 2), (3, 3, 4, 2), (0, 1, 2, 0)}


def test_one_and_two_threads_give_the_same_bits():
    results = []
    normals, coefficients = random_light(1000, torch.float32)
    albedo, shading = random_texels(2, 6, dtype=torch.float32)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = with_gradients(lambda n, k: shade(n, k, least_length=0.1), normals, coefficients)
            results.append(found + with_gradients(lambda a, s: lit(a, s, "srgb"), albedo, shading))
    finally:
        torch.set_num_threads(1)
    assert all(one.equal(other) for one, other in zip(*results, strict=True))


def test_only_the_wanted_gradients_are_made():
    normals, coefficients = random_light()
    for leaf, other in ((normals, coefficients), (coefficients, normals)):
        leaf.requires_grad_()
        other.requires_grad_(False)
        shade(normals, coefficients).sum().backward()
        assert leaf.grad is not None
        assert other.grad is None
        leaf.grad = None


@pytest.mark.parametrize("domain", ["uv", "vertex", "screen"])
def test_a_map_may_be_worn_by_several_meshes(backend, patch, domain):
    vertices, triangles, uv = patch
    surface = Surface(triangles, uv.float(), (4, 4))
    meshes = torch.cat([vertices, 0.8 * vertices, 0.9 * vertices, vertices]).float()
    zero = torch.zeros(4)
    camera = weak_perspective(
        rotation_from_euler(zero, zero + 0.3, zero), torch.zeros(4, 2), zero + 0.5, torch.full((4, 2), 6.0)
    )
    albedos, light = torch.rand(2, 2, 3, 4, 4), lighting.white_light(4) + 0.1 * torch.randn(4, 3, 9)
    shared, repeated = (
        render_textures(meshes, maps, camera, light, surface, (12, 12), "srgb", domain).images
        for maps in (albedos, albedos.repeat(2, 1, 1, 1, 1))
    )
    assert shared.equal(repeated)


def test_wrong_numbers_of_maps_are_named(patch):
    vertices, triangles, uv = patch
    surface = Surface(triangles, uv.float(), (4, 4))
    zero = torch.zeros(3)
    camera = weak_perspective(rotation_from_euler(zero, zero, zero), torch.zeros(3, 2), zero + 0.5, torch.zeros(3, 2))
    meshes, light = vertices.float().expand(3, -1, -1), lighting.white_light(3)
    for maps in (0, 2, 6):
        inputs = (meshes, torch.rand(maps, 1, 3, 4, 4), camera, light, surface, (12, 12), "srgb")
        with pytest.raises(ShapeError, match=f"albedos: got batch {maps}; expected a divisor of 3"):
            unwrap(render_textures)(*inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normals": torch.zeros(2, 4)}, r"normals: got shape \(2, 4\); expected \(batch, points, 3\)"),
        ({"normals": torch.zeros(2, 4, 3).half()}, "normals: got torch.float16; expected float32 or float64"),
        ({"sh_coefficients": torch.zeros(2, 9, 3)}, r"sh_coefficients: got shape \(2, 9, 3\); expected \(2, 3, 9\)"),
        ({"sh_coefficients": torch.zeros(1, 3, 9)}, r"sh_coefficients: got shape \(1, 3, 9\); expected \(2, 3, 9\)"),
        ({"sh_coefficients": torch.zeros(2, 3, 9).double()}, "sh_coefficients: got torch.float64 on cpu; expected"),
    ],
)
def test_shade_names_wrong_arguments(change, message):
    with pytest.raises(ShapeError, match=message):
        shade(**{"normals": torch.zeros(2, 4, 3), "sh_coefficients": torch.zeros(2, 3, 9), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"albedo": torch.zeros(4, 2, 3, 5, 7)}, r"albedo: got shape .*; expected \(maps, 5, 7, textures, 3\) like"),
        ({"albedo": torch.zeros(3, 5, 7, 2, 3)}, "albedo: got batch 3; expected a divisor of 4"),
        ({"albedo": torch.zeros(4, 5, 7, 2, 3).double()}, "albedo: got torch.float64 on cpu; expected torch.float32"),
        ({"shading": torch.zeros(4, 3, 5, 7)}, r"shading: got shape .*; expected \(batch, height, width, 3\)"),
        ({"encoding": "gamma"}, "encoding: got 'gamma'; expected one of none, srgb"),
    ],
)
def test_light_albedo_names_wrong_arguments(change, message):
    arguments = {"albedo": torch.zeros(4, 5, 7, 2, 3), "shading": torch.zeros(4, 5, 7, 3), "encoding": "srgb"}
    with pytest.raises(ShapeError, match=message):
        light_albedo(**{**arguments, **change})
