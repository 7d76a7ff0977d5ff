"""Hostile meshes and arguments: a clear error or a defined image and finite gradients, the same from both backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nl3dmm.errors import ShapeError
from nl3dmm.render import interpolate, rasterize

BACKENDS = ("numba", "torch")
faults = settings(max_examples=60, deadline=None, derandomize=True)

dtypes = st.sampled_from([torch.float32, torch.float64])
resolutions = st.tuples(st.integers(1, 5), st.integers(1, 5))
plain = st.floats(-2, 2, width=32) | st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])
hostile = plain | st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e-30, -1e-38, 1e30, -3e38])


batches = st.integers(0, 2)


@st.composite
def meshes(draw, coordinates=hostile, batch=batches):
    """Positions (batch, vertices, 4) and triangles, some with indices that do not exist or the same one twice."""
    images, vertices, triangles = draw(batch), draw(st.integers(0, 7)), draw(st.integers(0, 9))
    count = images * vertices * 4
    values = draw(st.lists(coordinates, min_size=count, max_size=count))
    pos = torch.tensor(values, dtype=draw(dtypes)).view(images, vertices, 4)
    if draw(st.booleans()):
        pos[..., 3] = 1
    index = st.integers(0, max(vertices - 1, 0)) | st.sampled_from([-1, vertices, 2**31 - 1, -(2**31)])
    corners = draw(st.lists(index, min_size=3 * triangles, max_size=3 * triangles))
    return pos, torch.tensor(corners, dtype=draw(st.sampled_from([torch.int32, torch.int64]))).view(-1, 3)


def render(backend, pos, tri, resolution, ranges=None):
    """All outputs with derivatives, and the gradients of positions and attributes."""
    pos = pos.clone().requires_grad_()
    attr = torch.linspace(-1, 1, 3 * pos.shape[-2], dtype=pos.dtype).view(-1, 3).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NL3DMM_RENDER", backend)
        rast, rast_db = rasterize(None, pos, tri, resolution, ranges=ranges, grad_db=True)
        out, out_da = interpolate(attr, rast, tri, rast_db, "all")
        (out.square().sum() + out_da.sum() + rast_db.sum()).backward()
    return {
        "rast": rast.detach(),
        "rast_db": rast_db.detach(),
        "out": out.detach(),
        "out_da": out_da.detach(),
        "gradient of pos": pos.grad,
        "gradient of attr": attr.grad,
    }


def check_defined(results, triangles):
    for name, values in results.items():
        assert values.isfinite().all(), name
    u, v, depth, number = results["rast"].unbind(-1)
    assert ((u >= 0) & (v >= 0) & (u + v <= 1 + 1e-6) & (depth.abs() <= 1)).all()
    assert torch.isin(number, torch.arange(triangles + 1)).all()
    for name in ("rast", "rast_db", "out", "out_da"):
        assert not results[name][number == 0].any(), name


def check_all(pos, tri, resolution, ranges=None):
    numba, plain_torch = (render(backend, pos, tri, resolution, ranges) for backend in BACKENDS)
    check_defined(numba, len(tri))
    check_defined(plain_torch, len(tri))
    assert torch.equal(numba["rast"][..., 3], plain_torch["rast"][..., 3])
    for name in ("rast", "rast_db", "out", "out_da"):
        one, other = numba[name], plain_torch[name]
        scale = float(one.abs().max()) if one.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(scale, 1), msg=name)
    return numba


@faults
@given(meshes(), resolutions)
def test_any_mesh_gives_a_defined_image_and_finite_gradients(mesh, resolution):
    check_all(*mesh, resolution)


@faults
@given(meshes(plain), resolutions)
def test_degenerate_and_clipped_meshes(mesh, resolution):
    check_all(*mesh, resolution)


@faults
@given(meshes(plain), resolutions)
def test_nothing_behind_the_viewer_is_drawn(mesh, resolution):
    pos, tri = mesh
    pos[..., 3] = -pos[..., 3].abs()
    results = check_all(pos, tri, resolution)
    assert not any(values.any() for values in results.values())


@faults
@given(meshes(batch=st.just(1)), resolutions, st.data())
def test_any_ranges_of_any_mesh(mesh, resolution, data):
    pos, tri = mesh
    firsts = data.draw(st.lists(st.integers(0, len(tri)), max_size=3))
    ranges = [[first, data.draw(st.integers(0, len(tri) - first))] for first in firsts]
    ranges = torch.tensor(ranges, dtype=torch.int32).view(-1, 2)
    numbers = check_all(pos[0], tri, resolution, ranges)["rast"][..., 3]
    for image, (first, count) in zip(numbers, ranges.tolist(), strict=True):
        assert ((image == 0) | ((image > first) & (image <= first + count))).all()


@faults
@given(
    st.lists(hostile | st.sampled_from([1.0, 2.0, 3.0, 2.5, 1e20, -1e20]), min_size=6, max_size=6),
    st.lists(st.integers(-1, 4), min_size=6, max_size=6),
    dtypes,
)
def test_any_number_in_the_place_of_a_triangle_index(numbers, corners, dtype):
    rast = torch.full((1, 2, 3, 4), 0.25, dtype=dtype)
    rast[..., 3] = torch.tensor(numbers, dtype=dtype).view(1, 2, 3)
    attr = torch.rand(1, 4, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    results = []
    for backend in BACKENDS:
        leaves = [leaf.clone().requires_grad_() for leaf in (attr, rast, torch.ones_like(rast))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NL3DMM_RENDER", backend)
            parts = interpolate(leaves[0], leaves[1], torch.tensor(corners).view(2, 3), leaves[2], "all")
            results.append([*parts, *torch.autograd.grad(sum(part.square().sum() for part in parts), leaves)])
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


shapes = st.lists(st.integers(0, 4), max_size=4)
any_dtypes = st.sampled_from([torch.float16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool])


@faults
@given(shapes | st.just([1, 3, 4]), any_dtypes, shapes | st.just([1, 3]), any_dtypes, st.sampled_from(BACKENDS))
def test_any_shape_and_type_works_or_is_named(pos_shape, pos_dtype, tri_shape, tri_dtype, backend):
    pos, tri = torch.zeros(pos_shape, dtype=pos_dtype), torch.zeros(tri_shape, dtype=tri_dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NL3DMM_RENDER", backend)
        valid = pos.ndim == 3 and pos.shape[2] == 4 and pos_dtype in (torch.float32, torch.float64)
        valid = valid and tri.ndim == 2 and tri.shape[1] == 3 and tri_dtype in (torch.int32, torch.int64)
        if valid:
            rast, _ = rasterize(None, pos, tri, (2, 3))
            out, _ = interpolate(pos, rast, tri)
            assert rast.shape == out.shape == (len(pos), 2, 3, 4)
            assert not rast.any()
        else:
            with pytest.raises(ShapeError, match=r"(pos|tri): got .*; expected .*\."):
                rasterize(None, pos, tri, (2, 3))
