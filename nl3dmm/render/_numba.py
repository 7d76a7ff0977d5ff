"""The three operations on CPU: autograd functions around the numba kernels, one image per task."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render import _numba_kernels as kernels
from nl3dmm.render import _numba_texture as fetch
from nl3dmm.render._pool import run_images
from nl3dmm.render._visibility_numba import visible_triangles

STABILISER = {torch.float32: 1e-6, torch.float64: 0.0}
BOUNDARY = {"clamp": fetch.CLAMP, "wrap": fetch.WRAP, "zero": fetch.ZERO}


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
        rast = pos.new_empty(len(pos), height, width, 4)
        scale = pos.new_tensor([8 * width, 8 * height])
        pos_array, tri_array, rast_array, scale_array = _arrays(pos, tri, rast, scale)

        def image(i: int) -> None:
            ids = np.empty((height, width), np.int64)
            visible_triangles(pos_array[i], tri_array, scale_array, ids)
            kernels.shade(pos_array[i], tri_array, ids, rast_array[i])

        ctx.threads = torch.get_num_threads()
        run_images(image, len(pos), ctx.threads)
        ctx.save_for_backward(pos, tri, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor) -> tuple[Tensor | None, ...]:
        pos, tri, rast = ctx.saved_tensors
        grad_pos = torch.empty_like(pos)
        p, t, r, from_rast, to_pos = _arrays(pos, tri, rast, grad_rast.contiguous(), grad_pos)
        stabiliser = STABILISER[pos.dtype]

        def image(i: int) -> None:
            kernels.rasterize_backward(p[i], t, r[i], from_rast[i], stabiliser, to_pos[i])

        run_images(image, len(pos), ctx.threads)
        return grad_pos, None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor) -> Tensor:
        attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.contiguous()
        out = attr.new_empty(*rast.shape[:3], attr.shape[2])
        a, r, t, to_out = _arrays(_repeat(attr, len(rast)), rast, tri, out)
        ctx.threads = torch.get_num_threads()
        run_images(lambda i: kernels.interpolate(a[i], r[i], t, to_out[i]), len(rast), ctx.threads)
        ctx.save_for_backward(attr, rast, tri)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        attr, rast, tri = ctx.saved_tensors
        want_attr, want_rast = ctx.needs_input_grad[:2]
        grad_attr = attr.new_empty(len(rast) if want_attr else 0, *attr.shape[1:])
        grad_rast = rast.new_empty(rast.shape if want_rast else 0)
        a, r, t, from_out = _arrays(_repeat(attr, len(rast)), rast, tri, grad_out.contiguous())
        to_attr, to_rast = _arrays(grad_attr, grad_rast)

        def image(i: int) -> None:
            if want_attr:
                kernels.interpolate_backward_attr(r[i], t, from_out[i], to_attr[i])
            if want_rast:
                kernels.interpolate_backward_rast(a[i], r[i], t, from_out[i], to_rast[i])

        run_images(image, len(rast), ctx.threads)
        return _summed(grad_attr, len(attr)) if want_attr else None, grad_rast if want_rast else None, None


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tex: Tensor, uv: Tensor, mask: Tensor, linear: bool, boundary: int) -> Tensor:
        tex, uv, mask = tex.contiguous(), uv.contiguous(), mask.contiguous()
        out = tex.new_empty(*uv.shape[:3], tex.shape[3])
        t, c, m, to_out = _arrays(_repeat(tex, len(uv)), uv, mask, out)
        ctx.threads, ctx.linear, ctx.boundary = torch.get_num_threads(), linear, boundary
        run_images(lambda i: fetch.texture(t[i], c[i], m[i], linear, boundary, to_out[i]), len(uv), ctx.threads)
        ctx.save_for_backward(tex, uv, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tex, uv, mask = ctx.saved_tensors
        want_tex, want_uv = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and ctx.linear
        linear, boundary = ctx.linear, ctx.boundary
        grad_tex = tex.new_empty(len(uv) if want_tex else 0, *tex.shape[1:])
        grad_uv = uv.new_empty(uv.shape if want_uv else 0)
        t, c, m, from_out = _arrays(_repeat(tex, len(uv)), uv, mask, grad_out.contiguous())
        to_tex, to_uv = _arrays(grad_tex, grad_uv)

        def image(i: int) -> None:
            if want_tex:
                fetch.texture_backward_tex(c[i], m[i], linear, boundary, from_out[i], to_tex[i])
            if want_uv:
                fetch.texture_backward_uv(t[i], c[i], m[i], boundary, from_out[i], to_uv[i])

        run_images(image, len(uv), ctx.threads)
        return _summed(grad_tex, len(tex)) if want_tex else None, grad_uv if want_uv else None, None, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def _repeat(tensor: Tensor, batch: int) -> Tensor:
    """Repeat a shared tensor along the batch axis without copying it."""
    return tensor.expand(batch, *tensor.shape[1:])


def _summed(grad: Tensor, batch: int) -> Tensor:
    """Sum the gradients of a shared tensor; numpy adds in the same order with any number of threads."""
    return grad if len(grad) == batch else torch.from_numpy(grad.numpy().sum(0, keepdims=True))
