"""The three operations on CPU: autograd functions around the numba kernels, one image per task."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render import _numba_kernels as kernels
from nl3dmm.render import _numba_texture as texture_kernels
from nl3dmm.render._pool import run_images
from nl3dmm.render._visibility_numba import visible_triangles

STABILISER = {torch.float32: 1e-6, torch.float64: 0.0}
BOUNDARY = {"clamp": texture_kernels.CLAMP, "wrap": texture_kernels.WRAP, "zero": texture_kernels.ZERO}


def rasterize(
    ctx: Any, pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], height: int, width: int
) -> Float[Tensor, "batch {height} {width} 4"]:
    return _Rasterize.apply(pos, tri.long(), height, width)


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
) -> Float[Tensor, "batch height width channels"]:
    return _Interpolate.apply(attr, rast, tri.long())


def texture(
    tex: Float[Tensor, "tex_batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    mask = mask if mask is not None else uv.new_empty((uv.shape[0], 0, 0), dtype=torch.bool)
    return _Texture.apply(tex, uv, mask, filter_mode == "linear", BOUNDARY[boundary_mode])


def warmup(dtype: torch.dtype) -> None:
    """Run each kernel once on a tiny scene."""
    pos = torch.tensor([[[-1, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]], dtype=dtype, requires_grad=True)
    tri = torch.tensor([[0, 1, 2]])
    rast = rasterize(None, pos, tri, 4, 4)
    uv = interpolate(pos[..., :2], rast, tri)
    tex = torch.zeros(1, 2, 2, 1, dtype=dtype, requires_grad=True)
    texture(tex, uv, "linear", "clamp", None).sum().backward()


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pos: Tensor, tri: Tensor, height: int, width: int) -> Tensor:
        pos, tri = pos.contiguous(), tri.contiguous()
        rast = pos.new_empty(pos.shape[0], height, width, 4)
        scale = np.array([8 * width, 8 * height], _array(pos).dtype)
        pos_array, tri_array, rast_array = _array(pos), _array(tri), _array(rast)

        def image(i: int) -> None:
            ids = np.empty((height, width), np.int64)
            visible_triangles(pos_array[i], tri_array, scale, ids)
            kernels.shade(pos_array[i], tri_array, ids, rast_array[i])

        ctx.threads = torch.get_num_threads()
        run_images(image, len(pos), ctx.threads)
        ctx.save_for_backward(pos, tri, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor) -> tuple[Tensor | None, ...]:
        pos, tri, rast = ctx.saved_tensors
        grad_pos = torch.zeros_like(pos)
        arrays = [_array(tensor) for tensor in (pos, rast, grad_rast.contiguous(), grad_pos)]
        tri, stabiliser = _array(tri), STABILISER[pos.dtype]

        def image(i: int) -> None:
            pos, rast, grad_rast, grad_pos = (array[i] for array in arrays)
            kernels.rasterize_backward(pos, tri, rast, grad_rast, stabiliser, grad_pos)

        run_images(image, len(pos), ctx.threads)
        return grad_pos, None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor) -> Tensor:
        attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.contiguous()
        out = attr.new_zeros(*rast.shape[:3], attr.shape[2])
        attr_array, rast_array, tri_array, out_array = _array(_expand(attr, len(rast))), _array(rast), _array(tri), _array(out)

        def image(i: int) -> None:
            kernels.interpolate(attr_array[i], rast_array[i], tri_array, out_array[i])

        ctx.threads = torch.get_num_threads()
        run_images(image, len(rast), ctx.threads)
        ctx.save_for_backward(attr, rast, tri)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        attr, rast, tri = ctx.saved_tensors
        want_attr, want_rast = ctx.needs_input_grad[:2]
        grad_attr = attr.new_zeros(len(rast), *attr.shape[1:]) if want_attr else None
        grad_rast = torch.zeros_like(rast) if want_rast else None
        attr_array, rast_array, tri_array = _array(_expand(attr, len(rast))), _array(rast), _array(tri)
        grad_array = _array(grad_out.contiguous())

        def image(i: int) -> None:
            if grad_attr is not None:
                kernels.interpolate_backward_attr(rast_array[i], tri_array, grad_array[i], _array(grad_attr)[i])
            if grad_rast is not None:
                arrays = attr_array[i], rast_array[i], tri_array, grad_array[i], _array(grad_rast)[i]
                kernels.interpolate_backward_rast(*arrays)

        run_images(image, len(rast), ctx.threads)
        return _reduce(grad_attr, len(attr)), grad_rast, None


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tex: Tensor, uv: Tensor, mask: Tensor, linear: bool, boundary: int) -> Tensor:
        tex, uv, mask = tex.contiguous(), uv.contiguous(), mask.contiguous()
        out = tex.new_zeros(*uv.shape[:3], tex.shape[3])
        tex_array, uv_array, mask_array, out_array = _array(_expand(tex, len(uv))), _array(uv), _array(mask), _array(out)

        def image(i: int) -> None:
            texture_kernels.texture(tex_array[i], uv_array[i], mask_array[i], linear, boundary, out_array[i])

        ctx.threads, ctx.linear, ctx.boundary = torch.get_num_threads(), linear, boundary
        run_images(image, len(uv), ctx.threads)
        ctx.save_for_backward(tex, uv, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tex, uv, mask = ctx.saved_tensors
        want_tex, want_uv = ctx.needs_input_grad[:2]
        grad_tex = tex.new_zeros(len(uv), *tex.shape[1:]) if want_tex else None
        grad_uv = torch.zeros_like(uv) if want_uv else None
        tex_array, uv_array, mask_array = _array(_expand(tex, len(uv))), _array(uv), _array(mask)
        grad_array = _array(grad_out.contiguous())

        def image(i: int) -> None:
            where = uv_array[i], mask_array[i]
            if grad_tex is not None:
                arrays = grad_array[i], _array(grad_tex)[i]
                texture_kernels.texture_backward_tex(*where, ctx.linear, ctx.boundary, *arrays)
            if grad_uv is not None and ctx.linear:
                arrays = grad_array[i], _array(grad_uv)[i]
                texture_kernels.texture_backward_uv(tex_array[i], *where, ctx.boundary, *arrays)

        run_images(image, len(uv), ctx.threads)
        return _reduce(grad_tex, len(tex)), grad_uv, None, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _expand(tensor: Tensor, batch: int) -> Tensor:
    """Repeat a shared tensor along the batch axis without copying it."""
    return tensor.detach().expand(batch, *tensor.shape[1:])


def _reduce(grad: Tensor | None, batch: int) -> Tensor | None:
    """Sum the images' gradients of a shared tensor, always in the same order."""
    if grad is None or len(grad) == batch:
        return grad
    total = torch.zeros_like(grad[0])
    for image in grad:
        total += image
    return total[None]
