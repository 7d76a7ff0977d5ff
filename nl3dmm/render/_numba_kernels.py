"""Numba kernels of the three operations and their adjoints, each for one image.

``rast`` is (height, width, 4): u, v, z / w and triangle index + 1. Kernels fill their outputs, zeros included: torch's
own parallel fill waits for all its threads, which on a busy machine costs more than the whole kernel.
"""

from typing import no_type_check

import numpy as np

from nl3dmm.render._jit import kernel


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
def interpolate(attr, rast, tri, out):
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
def interpolate_backward_attr(rast, tri, grad_out, grad_attr):
    grad_attr[:] = 0
    height, width, channels = grad_out.shape
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, grad_attr.shape[0]):
                    u, v = rast[row, column, 0], rast[row, column, 1]
                    w = rast.dtype.type(1) - u - v
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_attr[i, channel] += u * grad
                        grad_attr[j, channel] += v * grad
                        grad_attr[k, channel] += w * grad


@kernel
@no_type_check
def interpolate_backward_rast(attr, rast, tri, grad_out, grad_rast):
    grad_rast[:] = 0
    height, width, channels = grad_out.shape
    for row in range(height):
        for column in range(width):
            triangle = triangle_index(rast[row, column, 3], tri.shape[0])
            if triangle >= 0:
                i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
                if exist(i, j, k, attr.shape[0]):
                    grad_u = grad_v = rast.dtype.type(0)
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_u += grad * (attr[i, channel] - attr[k, channel])
                        grad_v += grad * (attr[j, channel] - attr[k, channel])
                    grad_rast[row, column, 0] = grad_u
                    grad_rast[row, column, 1] = grad_v
