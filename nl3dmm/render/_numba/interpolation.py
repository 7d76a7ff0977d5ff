"""Interpolation on CPU: numba kernels for one image each, and the autograd function around them."""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays, repeat, summed
from nl3dmm.render._pool import run_images


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
    rast_db: Float[Tensor, "batch height width _"] | None,
    diff_attrs: tuple[int, ...],
) -> tuple[Float[Tensor, "batch height width channels"], Float[Tensor, "batch height width _"] | None]:
    tri = tri.long()
    out = _Interpolate.apply(attr, rast, tri)
    if not diff_attrs:
        return out, None
    selected = attr if diff_attrs == tuple(range(attr.shape[2])) else attr.index_select(2, torch.tensor(diff_attrs))
    return out, _Differentiate.apply(selected, rast_db, rast.detach(), tri)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor) -> Tensor:
        attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.contiguous()
        out = attr.new_empty(*rast.shape[:3], attr.shape[2])
        a, r, t, to_out = arrays(repeat(attr, len(rast)), rast, tri, out)
        ctx.threads = torch.get_num_threads()
        run_images(lambda i: interpolate_image(a[i], r[i], t, to_out[i]), len(rast), ctx.threads)
        ctx.save_for_backward(attr, rast, tri)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        attr, rast, tri = ctx.saved_tensors
        want_attr, want_rast = ctx.needs_input_grad[:2]
        grad_attr = attr.new_empty(len(rast), *attr.shape[1:] if want_attr else (0, 0))
        grad_rast = rast.new_empty(len(rast), *rast.shape[1:] if want_rast else (0, 0, 0))
        a, r, t, from_out = arrays(repeat(attr, len(rast)), rast, tri, grad_out.contiguous())
        to_attr, to_rast = arrays(grad_attr, grad_rast)

        def image(i: int) -> None:
            interpolate_backward(a[i], r[i], t, from_out[i], to_attr[i], to_rast[i])

        run_images(image, len(rast), ctx.threads)
        return summed(grad_attr, len(attr)) if want_attr else None, grad_rast if want_rast else None, None


class _Differentiate(torch.autograd.Function):
    """Image-space derivatives of all channels."""

    @staticmethod
    def forward(ctx: Any, attr: Tensor, rast_db: Tensor, rast: Tensor, tri: Tensor) -> Tensor:
        attr, rast_db, rast, tri = attr.contiguous(), rast_db.contiguous(), rast.contiguous(), tri.contiguous()
        out = attr.new_empty(*rast.shape[:3], 2 * attr.shape[2])
        a, d, r, t, to_out = arrays(repeat(attr, len(rast)), rast_db, rast, tri, out)
        ctx.threads = torch.get_num_threads()
        run_images(lambda i: differentiate_image(a[i], d[i], r[i], t, to_out[i]), len(rast), ctx.threads)
        ctx.save_for_backward(attr, rast_db, rast, tri)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        attr, rast_db, rast, tri = ctx.saved_tensors
        want_attr, want_db = ctx.needs_input_grad[:2]
        grad_attr = attr.new_empty(len(rast) if want_attr else 0, *attr.shape[1:])
        grad_db = rast_db.new_empty(rast_db.shape if want_db else 0)
        a, d, r, t, from_out = arrays(repeat(attr, len(rast)), rast_db, rast, tri, grad_out.contiguous())
        to_attr, to_db = arrays(grad_attr, grad_db)

        def image(i: int) -> None:
            if want_attr:
                differentiate_backward_attr(d[i], r[i], t, from_out[i], to_attr[i])
            if want_db:
                differentiate_backward_db(a[i], r[i], t, from_out[i], to_db[i])

        run_images(image, len(rast), ctx.threads)
        return summed(grad_attr, len(attr)) if want_attr else None, grad_db if want_db else None, None, None


@kernel
@no_type_check
def triangle_index(number, triangles):
    """The last channel of ``rast`` as an index; -1 on the background and for what is no triangle."""
    return np.int64(number) - 1 if 1 <= number < triangles + 1 else np.int64(-1)


@kernel
@no_type_check
def exist(i, j, k, vertices):
    return min(i, j, k) >= 0 and max(i, j, k) < vertices


@kernel
@no_type_check
def interpolate_image(attr, rast, tri, out):
    out[:] = 0
    height, width, channels = out.shape
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, attr.shape[0]):
                    u, v = rast[row, column, 0], rast[row, column, 1]
                    w = rast.dtype.type(1) - u - v
                    for channel in range(channels):
                        out[row, column, channel] = u * attr[i, channel] + v * attr[j, channel] + w * attr[k, channel]


@kernel
@no_type_check
def interpolate_backward(attr, rast, tri, grad_out, grad_attr, grad_rast):
    """Adjoints of the attributes and of u, v; an empty one is not wanted."""
    grad_attr[:] = 0
    grad_rast[:] = 0
    height, width, channels = grad_out.shape
    want_attr, want_rast = grad_attr.size > 0, grad_rast.size > 0
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, attr.shape[0]):
                    if want_attr:
                        u, v = rast[row, column, 0], rast[row, column, 1]
                        w = rast.dtype.type(1) - u - v
                        for channel in range(channels):
                            grad = grad_out[row, column, channel]
                            grad_attr[i, channel] += u * grad
                            grad_attr[j, channel] += v * grad
                            grad_attr[k, channel] += w * grad
                    if want_rast:
                        grad_u = grad_v = rast.dtype.type(0)
                        for channel in range(channels):
                            grad = grad_out[row, column, channel]
                            grad_u += grad * (attr[i, channel] - attr[k, channel])
                            grad_v += grad * (attr[j, channel] - attr[k, channel])
                        grad_rast[row, column, 0] = grad_u
                        grad_rast[row, column, 1] = grad_v


@kernel
@no_type_check
def differentiate_image(attr, rast_db, rast, tri, out):
    """dA/dX, dA/dY of each channel in turn."""
    out[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, attr.shape[0]):
                    u_x, u_y = rast_db[row, column, 0], rast_db[row, column, 1]
                    v_x, v_y = rast_db[row, column, 2], rast_db[row, column, 3]
                    for channel in range(attr.shape[1]):
                        along_u = attr[i, channel] - attr[k, channel]
                        along_v = attr[j, channel] - attr[k, channel]
                        out[row, column, 2 * channel] = u_x * along_u + v_x * along_v
                        out[row, column, 2 * channel + 1] = u_y * along_u + v_y * along_v


@kernel
@no_type_check
def differentiate_backward_attr(rast_db, rast, tri, grad_out, grad_attr):
    grad_attr[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, grad_attr.shape[0]):
                    u_x, u_y = rast_db[row, column, 0], rast_db[row, column, 1]
                    v_x, v_y = rast_db[row, column, 2], rast_db[row, column, 3]
                    for channel in range(grad_attr.shape[1]):
                        grad_x, grad_y = grad_out[row, column, 2 * channel], grad_out[row, column, 2 * channel + 1]
                        grad_u, grad_v = u_x * grad_x + u_y * grad_y, v_x * grad_x + v_y * grad_y
                        grad_attr[i, channel] += grad_u
                        grad_attr[j, channel] += grad_v
                        grad_attr[k, channel] -= grad_u + grad_v


@kernel
@no_type_check
def differentiate_backward_db(attr, rast, tri, grad_out, grad_db):
    grad_db[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, attr.shape[0]):
                    for channel in range(attr.shape[1]):
                        grad_x, grad_y = grad_out[row, column, 2 * channel], grad_out[row, column, 2 * channel + 1]
                        along_u = attr[i, channel] - attr[k, channel]
                        along_v = attr[j, channel] - attr[k, channel]
                        grad_db[row, column, 0] += grad_x * along_u
                        grad_db[row, column, 1] += grad_y * along_u
                        grad_db[row, column, 2] += grad_x * along_v
                        grad_db[row, column, 3] += grad_y * along_v
