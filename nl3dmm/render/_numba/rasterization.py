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
from nl3dmm.render._numba._arrays import arrays
from nl3dmm.render._numba.interpolation import triangle_index
from nl3dmm.render._numba.visibility import visible_triangles
from nl3dmm.render._pool import run_images
from nl3dmm.render._rules import EDGE_ON, WEIGHT_STABILISER


def rasterize(
    ctx: Any,
    pos: Float[Tensor, "batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    height: int,
    width: int,
    ranges: Int[Tensor, "batch 2"] | None,
    grad_db: bool | None,
) -> tuple[Float[Tensor, "batch {height} {width} 4"], Float[Tensor, "batch {height} {width} 4"] | None]:
    return _Rasterize.apply(pos, tri.long(), height, width, None if ranges is None else ranges.tolist(), grad_db)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, tri: Tensor, height: int, width: int, ranges: list | None, grad_db: bool | None
    ) -> tuple[Tensor, Tensor | None]:
        pos, tri = pos.contiguous(), tri.contiguous()
        batch = len(pos if ranges is None else ranges)
        rast = pos.new_empty(batch, height, width, 4)
        rast_db = pos.new_empty(0 if grad_db is None else batch, height, width, 4)
        scale = pos.new_tensor([8 * width, 8 * height])
        p, t, to_rast, to_db, scale_array = arrays(pos, tri, rast, rast_db, scale)

        def image(i: int) -> None:
            own, triangles, first = _mesh(i, len(p), t, ranges)
            ids = np.empty((height, width), np.int64)
            visible_triangles(p[own], triangles, scale_array, ids)
            shade(p[own], triangles, first, ids, to_rast[i])
            if grad_db is not None:
                differentiate(p[own], triangles, ids, to_db[i])

        ctx.threads, ctx.ranges = torch.get_num_threads(), ranges
        run_images(image, batch, ctx.threads)
        ctx.save_for_backward(pos, tri, rast)
        ctx.set_materialize_grads(False)
        if grad_db is False:
            ctx.mark_non_differentiable(rast_db)
        return rast, None if grad_db is None else rast_db

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rast: Tensor | None, grad_db: Tensor | None) -> tuple[Tensor | None, ...]:
        pos, tri, rast = ctx.saved_tensors
        grad_pos = torch.empty_like(pos)
        grad_rast = torch.zeros_like(rast) if grad_rast is None else grad_rast.contiguous()
        p, t, r, from_rast, to_pos = arrays(pos, tri, rast, grad_rast, grad_pos)
        from_db = None if grad_db is None else grad_db.contiguous().numpy()
        stabiliser, parts = WEIGHT_STABILISER[pos.dtype], {}

        def image(i: int) -> None:
            own, triangles, first = _mesh(i, len(p), t, ctx.ranges)
            scene = p[own], triangles, first, r[i], from_rast[i]
            to_own = to_pos[own] if ctx.ranges is None else np.empty_like(p[own])
            if from_db is None:
                rasterize_backward(*scene, stabiliser, to_own)
            else:
                derivatives_backward(*scene, from_db[i], stabiliser, to_own)
            parts[i] = own, to_own

        run_images(image, len(rast), ctx.threads)
        if ctx.ranges is not None:
            to_pos[:] = 0
            for i in range(len(rast)):  # always in this order: the sum does not depend on the number of threads
                own, to_own = parts[i]
                to_pos[own] += to_own
        return grad_pos, None, None, None, None, None


def _mesh(image: int, length: int, tri: np.ndarray, ranges: list | None) -> tuple[int | slice, np.ndarray, int]:
    """Where an image's vertices are in ``pos``, its triangles as indices into these, and its first triangle.

    In range mode an image costs what its own mesh costs, however long ``pos`` is.
    """
    if ranges is None:
        return image, tri, 0
    first, count = ranges[image]
    triangles = tri[first : first + count]
    low, high = (max(int(triangles.min()), 0), min(int(triangles.max()) + 1, length)) if count else (0, 0)
    return slice(low, max(low, high)), triangles - low, first


@kernel
@no_type_check
def shade(pos, tri, first, ids, rast):
    """Fill ``rast`` from the unsnapped clip-space corners of the visible triangles."""
    height, width = ids.shape
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            u = v = depth = number = 0.0
            triangle = ids[row, column]
            if triangle >= 0:
                x = (2.0 * column + 1.0) / width - 1.0
                p0, p1, p2 = pos[tri[triangle, 0]], pos[tri[triangle, 1]], pos[tri[triangle, 2]]
                a, b, c, _ = edge_weights(p0, p1, p2, x, y)
                total = a + b + c
                u, v = (a / total, b / total) if abs(total) > EDGE_ON else (0.0, 0.0)
                z = u * p0[2] + v * p1[2] + (1 - u - v) * p2[2]
                w = u * p0[3] + v * p1[3] + (1 - u - v) * p2[3]
                depth = min(max(z / w, -1.0), 1.0) if w != 0 else 0.0
                u, v = clamped(u, v)
                number = triangle + first + 1
            rast[row, column, 0] = u
            rast[row, column, 1] = v
            rast[row, column, 2] = depth
            rast[row, column, 3] = number


@kernel
@no_type_check
def clamped(u, v):
    """Into the triangle: coverage is decided at 1/16 pixel, so a sample may lie outside of the triangle it shows."""
    u, v = min(max(u, 0.0), 1.0), min(max(v, 0.0), 1.0)
    total = max(u + v, 1.0)
    return u / total, v / total


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
def rasterize_backward(pos, tri, first, rast, grad_rast, stabiliser, grad_pos):
    """Adjoint of (u, v) before their clamps; ``stabiliser`` bounds the gradient of triangles seen edge-on."""
    grad_pos[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            grad_u, grad_v = grad_rast[row, column, 0], grad_rast[row, column, 1]
            triangle = triangle_index(rast[row, column, 3] - first, tri.shape[0])
            if triangle >= 0 and (grad_u != 0 or grad_v != 0):
                x = (2.0 * column + 1.0) / width - 1.0
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                a, b, c, (x0, y0, x1, y1, x2, y2) = edge_weights(pos[i], pos[j], pos[k], x, y)
                total = a + b + c
                total += stabiliser if total >= 0 else -stabiliser
                scale = 1 / total if abs(total) > EDGE_ON else 0.0
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


@kernel
@no_type_check
def shifted(corner, x, y):
    """(x, y, w) of a corner after the shear that brings NDC (x, y) to the origin.

    The cross product of two corners is then the slope along x, the slope along y and the value of the weight of the
    third corner.
    """
    w = np.float64(corner[3])
    return corner[0] - x * w, corner[1] - y * w, w


@kernel
@no_type_check
def cross(p, q):
    return p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]


@kernel
@no_type_check
def differentiate(pos, tri, ids, rast_db):
    """Fill du/dX, du/dY, dv/dX, dv/dY per pixel, at the clamped u, v."""
    height, width = ids.shape
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            x = (2.0 * column + 1.0) / width - 1.0
            u_x = u_y = v_x = v_y = 0.0
            triangle = ids[row, column]
            if triangle >= 0:
                p = shifted(pos[tri[triangle, 0]], x, y)
                q = shifted(pos[tri[triangle, 1]], x, y)
                r = shifted(pos[tri[triangle, 2]], x, y)
                a, b, c = cross(q, r), cross(r, p), cross(p, q)
                total_x, total_y, total = a[0] + b[0] + c[0], a[1] + b[1] + c[1], a[2] + b[2] + c[2]
                if abs(total) > EDGE_ON:
                    u, v = clamped(a[2] / total, b[2] / total)
                    u_x, u_y = (a[0] - u * total_x) / total, (a[1] - u * total_y) / total
                    v_x, v_y = (b[0] - v * total_x) / total, (b[1] - v * total_y) / total
            rast_db[row, column, 0] = u_x * 2 / width
            rast_db[row, column, 1] = u_y * 2 / height
            rast_db[row, column, 2] = v_x * 2 / width
            rast_db[row, column, 3] = v_y * 2 / height


@kernel
@no_type_check
def derivatives_backward(pos, tri, first, rast, grad_rast, grad_db, stabiliser, grad_pos):
    """Adjoint of (u, v) and of their derivatives before the clamps."""
    grad_pos[:] = 0
    height, width = rast.shape[:2]
    for row in range(height):
        y = (2.0 * row + 1.0) / height - 1.0
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3] - first, tri.shape[0])
            if triangle >= 0:
                x = (2.0 * column + 1.0) / width - 1.0
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                p, q, r = shifted(pos[i], x, y), shifted(pos[j], x, y), shifted(pos[k], x, y)
                grad_u, grad_v = grad_rast[row, column, 0], grad_rast[row, column, 1]
                grad_u_x, grad_u_y = grad_db[row, column, 0] * 2 / width, grad_db[row, column, 1] * 2 / height
                grad_v_x, grad_v_y = grad_db[row, column, 2] * 2 / width, grad_db[row, column, 3] * 2 / height
                grad_a, grad_b, grad_c = weight_gradients(
                    cross(q, r),
                    cross(r, p),
                    cross(p, q),
                    (grad_u_x, grad_u_y, grad_u),
                    (grad_v_x, grad_v_y, grad_v),
                    stabiliser,
                )
                add_shifted(grad_pos[i], cross(grad_b, r), cross(q, grad_c), x, y)
                add_shifted(grad_pos[j], cross(grad_c, p), cross(r, grad_a), x, y)
                add_shifted(grad_pos[k], cross(grad_a, q), cross(p, grad_b), x, y)


@kernel
@no_type_check
def weight_gradients(a, b, c, grad_u, grad_v, stabiliser):
    """From (slope along x, slope along y, value) of u and v to those of the three weights."""
    total_x, total_y, total = a[0] + b[0] + c[0], a[1] + b[1] + c[1], a[2] + b[2] + c[2]
    total += stabiliser if total >= 0 else -stabiliser
    scale = 1 / total if abs(total) > EDGE_ON else 0.0
    u, v = a[2] * scale, b[2] * scale
    u_x, u_y = (a[0] - u * total_x) * scale, (a[1] - u * total_y) * scale
    v_x, v_y = (b[0] - v * total_x) * scale, (b[1] - v * total_y) * scale
    # of u = a / total, of u_x = (a_x - u total_x) / total, and so on
    to_a_x, to_a_y, to_b_x, to_b_y = grad_u[0] * scale, grad_u[1] * scale, grad_v[0] * scale, grad_v[1] * scale
    to_u = grad_u[2] - to_a_x * total_x - to_a_y * total_y
    to_v = grad_v[2] - to_b_x * total_x - to_b_y * total_y
    to_total_x, to_total_y = -to_a_x * u - to_b_x * v, -to_a_y * u - to_b_y * v
    to_total = -(to_u * u + to_v * v) * scale - (to_a_x * u_x + to_a_y * u_y + to_b_x * v_x + to_b_y * v_y)
    return (
        (to_a_x + to_total_x, to_a_y + to_total_y, to_u * scale + to_total),
        (to_b_x + to_total_x, to_b_y + to_total_y, to_v * scale + to_total),
        (to_total_x, to_total_y, to_total),
    )


@kernel
@no_type_check
def add_shifted(grad_corner, one, other, x, y):
    """Undo the shear of ``shifted``."""
    add_corner(grad_corner, one[0] + other[0], one[1] + other[1], x, y)
    grad_corner[3] += one[2] + other[2]
