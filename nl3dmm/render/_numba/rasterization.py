"""Rasterization on CPU: numba kernels for one image each, and the autograd function around them.

``rast`` is (height, width, 4): u, v, z / w and triangle index + 1. Kernels fill their outputs, zeros included: torch's
own parallel fill waits for all its threads, which on a busy machine costs more than the whole kernel.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import STABILISER, arrays
from nl3dmm.render._numba.visibility import visible_triangles
from nl3dmm.render._pool import run_images


def rasterize(
    ctx: Any, pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], height: int, width: int
) -> Float[Tensor, "batch {height} {width} 4"]:
    return _Rasterize.apply(pos, tri.long(), height, width)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pos: Tensor, tri: Tensor, height: int, width: int) -> Tensor:
        pos, tri = pos.contiguous(), tri.contiguous()
        rast = pos.new_empty(len(pos), height, width, 4)
        scale = pos.new_tensor([8 * width, 8 * height])
        pos_array, tri_array, rast_array, scale_array = arrays(pos, tri, rast, scale)

        def image(i: int) -> None:
            ids = np.empty((height, width), np.int64)
            visible_triangles(pos_array[i], tri_array, scale_array, ids)
            shade(pos_array[i], tri_array, ids, rast_array[i])

        ctx.threads = torch.get_num_threads()
        run_images(image, len(pos), ctx.threads)
        ctx.save_for_backward(pos, tri, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor) -> tuple[Tensor | None, ...]:
        pos, tri, rast = ctx.saved_tensors
        grad_pos = torch.empty_like(pos)
        p, t, r, from_rast, to_pos = arrays(pos, tri, rast, grad_rast.contiguous(), grad_pos)
        stabiliser = STABILISER[pos.dtype]

        def image(i: int) -> None:
            rasterize_backward(p[i], t, r[i], from_rast[i], stabiliser, to_pos[i])

        run_images(image, len(pos), ctx.threads)
        return grad_pos, None, None, None


@kernel
@no_type_check
def shade(pos, tri, ids, rast):
    """Fill ``rast`` from the unsnapped clip-space corners of the visible triangles."""
    height, width = ids.shape
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            u = v = depth = 0.0
            triangle = ids[row, column]
            if triangle >= 0:
                x = (2.0 * column + 1.0) / width - 1.0
                p0, p1, p2 = pos[tri[triangle, 0]], pos[tri[triangle, 1]], pos[tri[triangle, 2]]
                a, b, c, _ = edge_weights(p0, p1, p2, x, y)
                total = a + b + c
                u, v = (a / total, b / total) if total != 0 else (0.0, 0.0)
                z = u * p0[2] + v * p1[2] + (1 - u - v) * p2[2]
                w = u * p0[3] + v * p1[3] + (1 - u - v) * p2[3]
                depth = min(max(z / w, -1.0), 1.0) if w != 0 else 0.0
                u, v = min(max(u, 0.0), 1.0), min(max(v, 0.0), 1.0)
                total = max(u + v, 1.0)
                u, v = u / total, v / total
            rast[row, column, 0] = u
            rast[row, column, 1] = v
            rast[row, column, 2] = depth
            rast[row, column, 3] = triangle + 1


@kernel
@no_type_check
def edge_weights(p0, p1, p2, x, y):
    """Homogeneous barycentric weights at NDC (x, y), in float64, and the offsets they were made of."""
    x0, y0 = p0[0] - x * p0[3], p0[1] - y * p0[3]
    x1, y1 = p1[0] - x * p1[3], p1[1] - y * p1[3]
    x2, y2 = p2[0] - x * p2[3], p2[1] - y * p2[3]
    return x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0, (x0, y0, x1, y1, x2, y2)


@kernel
@no_type_check
def rasterize_backward(pos, tri, rast, grad_rast, stabiliser, grad_pos):
    """Adjoint of (u, v) before their clamps; ``stabiliser`` bounds the gradient of triangles seen edge-on."""
    grad_pos[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            grad_u, grad_v = grad_rast[row, column, 0], grad_rast[row, column, 1]
            if rast[row, column, 3] > 0 and (grad_u != 0 or grad_v != 0):
                x = (2.0 * column + 1.0) / width - 1.0
                triangle = np.int64(rast[row, column, 3]) - 1
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                a, b, c, (x0, y0, x1, y1, x2, y2) = edge_weights(pos[i], pos[j], pos[k], x, y)
                total = a + b + c
                total += stabiliser if total >= 0 else -stabiliser
                scale = 1 / total if total != 0 else 0.0
                mean = (grad_u * a + grad_v * b) * scale
                grad_a, grad_b, grad_c = (grad_u - mean) * scale, (grad_v - mean) * scale, -mean * scale
                add_corner(grad_pos[i], grad_c * y1 - grad_b * y2, grad_b * x2 - grad_c * x1, x, y)
                add_corner(grad_pos[j], grad_a * y2 - grad_c * y0, grad_c * x0 - grad_a * x2, x, y)
                add_corner(grad_pos[k], grad_b * y0 - grad_a * y1, grad_a * x1 - grad_b * x0, x, y)


@kernel
@no_type_check
def add_corner(grad_corner, grad_x, grad_y, x, y):
    grad_corner[0] += grad_x
    grad_corner[1] += grad_y
    grad_corner[3] -= x * grad_x + y * grad_y
