"""Antialiasing on CPU: numba kernels for one image each, and the autograd function around them.

The discrete part, which edge lies between which two pixels, is found once per image (``crossed_pairs``). All that is
continuous is a function of that list. Everything is computed in homogeneous coordinates relative to the pair: where
an edge from a to b crosses the line of the two centres is a ratio of minors of its corners, and which way a triangle
faces is the sign of a determinant, so that corners behind the viewer need no division and no clipping.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays, repeat, summed
from nl3dmm.render._numba.interpolation import exist, triangle_index
from nl3dmm.render._pool import run_images
from nl3dmm.render._rules import COVERAGE_TOLERANCE, CROSSING_STABILISER
from nl3dmm.render.topology import Topology


def antialias(
    color: Float[Tensor, "batch height width channels"],
    rast: Float[Tensor, "batch height width 4"],
    pos: Float[Tensor, "pos_batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology: Topology,
    pos_gradient_boost: float,
) -> Float[Tensor, "batch height width channels"]:
    shared = pos[None] if pos.ndim == 2 else pos
    return _Antialias.apply(color, rast.detach(), shared, tri.long(), topology, pos_gradient_boost)


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology: Topology, boost: float
    ) -> Tensor:
        color, rast, pos, tri = (tensor.contiguous() for tensor in (color, rast, pos, tri))
        out = torch.empty_like(color)
        p, c, r, t, to_out = arrays(repeat(pos, len(color)), color, rast, tri, out)
        neighbour, winding = arrays(topology.neighbour, topology.winding)
        ctx.crossed = [np.empty((0, 3), np.int64)] * len(color)

        def image(i: int) -> None:
            ctx.crossed[i] = crossed_pairs(r[i], p[i], t, neighbour, winding)
            blend(c[i], p[i], ctx.crossed[i], to_out[i])

        ctx.threads, ctx.boost = torch.get_num_threads(), float(boost)
        run_images(image, len(color), ctx.threads)
        ctx.save_for_backward(color, pos)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        color, pos = ctx.saved_tensors
        want_color, _, want_pos = ctx.needs_input_grad[:3]
        grad_color = color.new_empty(color.shape if want_color else 0)
        grad_pos = pos.new_empty(len(color) if want_pos else 0, *pos.shape[1:])
        p, c, from_out = arrays(repeat(pos, len(color)), color, grad_out.contiguous())
        to_color, to_pos = arrays(grad_color, grad_pos)
        stabiliser = CROSSING_STABILISER[pos.dtype]

        def image(i: int) -> None:
            if want_color:
                blend_backward_color(p[i], ctx.crossed[i], from_out[i], to_color[i])
            if want_pos:
                blend_backward_pos(c[i], p[i], ctx.crossed[i], from_out[i], stabiliser, ctx.boost, to_pos[i])

        run_images(image, len(color), ctx.threads)
        return grad_color if want_color else None, None, summed(grad_pos, len(pos)) if want_pos else None, *[None] * 3


@kernel
@no_type_check
def crossed_pairs(rast, pos, tri, neighbour, winding):
    """Rows of (pair, a, b): the silhouette edge a - b lies between the two pixels of a pair.

    Pair ``2 * pixel`` is a pixel and its neighbour in the next column, ``2 * pixel + 1`` the one in the next row.
    """
    height, width = rast.shape[:2]
    outer = np.empty(tri.shape[0], np.uint8)
    silhouettes(pos, tri, neighbour, winding, outer)
    candidates = np.empty(2 * height * width, np.int64)
    crossed, count = np.empty((list_candidates(rast, outer, candidates), 3), np.int64), 0
    for candidate in candidates[: crossed.shape[0]]:
        pair, forward = candidate >> 1, candidate & 1
        row, column, next_row, next_column = pixels(pair, width)
        triangle = np.int64(rast[row, column, 3] if forward else rast[next_row, next_column, 3]) - 1
        corner = last_edge(pos, tri[triangle], pair, height, width, forward)
        if corner >= 0 and outer[triangle] >> corner & 1:
            crossed[count, 0] = pair
            crossed[count, 1] = tri[triangle, (corner + 1) % 3]
            crossed[count, 2] = tri[triangle, (corner + 2) % 3]
            count += 1
    return crossed[:count]


@kernel
@no_type_check
def pixels(pair, width):
    """Row and column of the first and of the second pixel."""
    row, column = (pair >> 1) // width, (pair >> 1) % width
    return row, column, row + (pair & 1), column + 1 - (pair & 1)


@kernel
@no_type_check
def list_candidates(rast, outer, candidates):
    """Fill ``2 * pair + forward``: the triangle on top has a silhouette edge; ``forward``: it is the first pixel's."""
    height, width, triangles = rast.shape[0], rast.shape[1], outer.shape[0]
    ids, count = np.empty((height, width), np.int64), 0
    for row in range(height):
        for column in range(width):
            ids[row, column] = triangle_index(rast[row, column, 3], triangles)
    for row in range(height):
        for column in range(width):
            for axis in range(2):
                next_row, next_column = row + axis, column + 1 - axis
                if next_row < height and next_column < width and ids[row, column] != ids[next_row, next_column]:
                    first, second = ids[row, column], ids[next_row, next_column]
                    forward = second < 0 or (first >= 0 and rast[row, column, 2] < rast[next_row, next_column, 2])
                    if outer[first if forward else second]:
                        candidates[count] = 4 * (row * width + column) + 2 * axis + forward
                        count += 1
    return count


@kernel
@no_type_check
def silhouettes(pos, tri, neighbour, winding, outer):
    """Bit k: the edge opposite to corner k is a border or its two triangles are not both seen from the same side."""
    facing = np.empty(tri.shape[0], np.int8)
    face(pos, tri, facing)
    for triangle in range(tri.shape[0]):
        bits = 0
        for corner in range(3):
            other = neighbour[triangle, corner]
            inner = other >= 0 and facing[triangle] * facing[max(other, 0)] * winding[triangle, corner] > 0
            bits |= 0 if inner else 1 << corner
        outer[triangle] = bits


@kernel
@no_type_check
def face(pos, tri, facing):
    """Which side of each triangle the viewer is on, 1 or -1; 0 for those edge-on, not finite or that do not exist."""
    for triangle in range(tri.shape[0]):
        i, j, k = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
        volume = 0.0
        if exist(i, j, k, pos.shape[0]):
            xi, yi, wi = np.float64(pos[i, 0]), np.float64(pos[i, 1]), np.float64(pos[i, 3])
            xj, yj, wj = np.float64(pos[j, 0]), np.float64(pos[j, 1]), np.float64(pos[j, 3])
            xk, yk, wk = np.float64(pos[k, 0]), np.float64(pos[k, 1]), np.float64(pos[k, 3])
            volume = xi * (yj * wk - yk * wj) + yi * (wj * xk - wk * xj) + wi * (xj * yk - xk * yj)
            depths = np.float64(pos[i, 2]) + np.float64(pos[j, 2]) + np.float64(pos[k, 2])
            volume = volume if np.isfinite(volume + 0 * depths) else 0.0
        facing[triangle] = (volume > 0) - (volume < 0)


@kernel
@no_type_check
def last_edge(pos, corners, pair, height, width, forward):
    """The edge where the line of a pair's centres leaves a triangle, as the opposite corner; -1 if it is no use."""
    best, reach = -1, -np.inf
    if exist(corners[0], corners[1], corners[2], pos.shape[0]):
        for corner in range(3):
            xa, ya, wa = aligned(pos[corners[(corner + 1) % 3]], pair, height, width)
            xb, yb, wb = aligned(pos[corners[(corner + 2) % 3]], pair, height, width)
            rise = wa * yb - wb * ya
            if (ya < 0) != (yb < 0) and rise * (yb - ya) > 0:  # they straddle the line, and meet it before the viewer
                crossing = (xa * yb - xb * ya) / rise
                if (crossing if forward else -crossing) > reach:
                    reach = crossing if forward else -crossing
                    usable = (
                        abs(rise) >= abs(wa * xb - wb * xa)
                        and -COVERAGE_TOLERANCE <= crossing <= 1 + COVERAGE_TOLERANCE
                    )
                    best = corner if usable else -1
    return best


@kernel
@no_type_check
def aligned(vertex, pair, height, width):
    """Homogeneous pixel coordinates: the first centre of the pair is the origin, the second one is (1, 0)."""
    pixel = pair >> 1
    x = 0.5 * width * vertex[0] + (0.5 * width - 0.5 - pixel % width) * vertex[3]
    y = 0.5 * height * vertex[1] + (0.5 * height - 0.5 - pixel // width) * vertex[3]
    along, across = (y, x) if pair & 1 else (x, y)
    return along, across, np.float64(vertex[3])


@kernel
@no_type_check
def share(a, b, pair, height, width):
    """What the first pixel of a pair takes from the second one; if negative, the second takes from the first."""
    xa, ya, wa = aligned(a, pair, height, width)
    xb, yb, wb = aligned(b, pair, height, width)
    return 0.5 - min(max((xa * yb - xb * ya) / (wa * yb - wb * ya), 0.0), 1.0)


@kernel
@no_type_check
def blend(color, pos, crossed, out):
    """Each pixel may take from up to four neighbours; their shares are added in the order of ``crossed``."""
    out[:] = color
    height, width, channels = color.shape
    for index in range(crossed.shape[0]):
        pair, i, j = crossed[index]
        row, column, next_row, next_column = pixels(pair, width)
        alpha = color.dtype.type(share(pos[i], pos[j], pair, height, width))
        to_row, to_column = (row, column) if alpha > 0 else (next_row, next_column)
        for channel in range(channels):
            step = color[next_row, next_column, channel] - color[row, column, channel]
            out[to_row, to_column, channel] += alpha * step


@kernel
@no_type_check
def blend_backward_color(pos, crossed, grad_out, grad_color):
    grad_color[:] = grad_out
    height, width, channels = grad_out.shape
    for index in range(crossed.shape[0]):
        pair, i, j = crossed[index]
        row, column, next_row, next_column = pixels(pair, width)
        alpha = grad_out.dtype.type(share(pos[i], pos[j], pair, height, width))
        to_row, to_column = (row, column) if alpha > 0 else (next_row, next_column)
        for channel in range(channels):
            grad = alpha * grad_out[to_row, to_column, channel]
            grad_color[next_row, next_column, channel] += grad
            grad_color[row, column, channel] -= grad


@kernel
@no_type_check
def blend_backward_pos(color, pos, crossed, grad_out, stabiliser, boost, grad_pos):
    """Adjoint of the crossings, ``boost`` times; none where a crossing is outside of its pair."""
    grad_pos[:] = 0
    height, width, channels = color.shape
    for index in range(crossed.shape[0]):
        pair, i, j = crossed[index]
        row, column, next_row, next_column = pixels(pair, width)
        alpha = share(pos[i], pos[j], pair, height, width)
        to_row, to_column = (row, column) if alpha > 0 else (next_row, next_column)
        if abs(alpha) < 0.5:
            grad = 0.0
            for channel in range(channels):
                step = color[next_row, next_column, channel] - color[row, column, channel]
                grad -= step * grad_out[to_row, to_column, channel]
            xa, ya, wa = aligned(pos[i], pair, height, width)
            xb, yb, wb = aligned(pos[j], pair, height, width)
            rise = wa * yb - wb * ya
            crossing = (xa * yb - xb * ya) / rise
            rise += stabiliser * abs(wa * wb) if rise > 0 else -stabiliser * abs(wa * wb)
            scale = boost * grad / rise
            add_corner(grad_pos[i], yb * scale, (crossing * wb - xb) * scale, crossing, pair, (height, width))
            add_corner(grad_pos[j], -ya * scale, (xa - crossing * wa) * scale, crossing, pair, (height, width))


@kernel
@no_type_check
def add_corner(grad_vertex, grad_along, grad_across, crossing, pair, size):
    """Adjoint of ``aligned``; the gradient of w is always ``-crossing`` times that of the coordinate along the pair."""
    pixel, (height, width) = pair >> 1, size
    grad_x, grad_y = (grad_across, grad_along) if pair & 1 else (grad_along, grad_across)
    grad_vertex[0] += 0.5 * width * grad_x
    grad_vertex[1] += 0.5 * height * grad_y
    grad_vertex[3] += (0.5 * width - 0.5 - pixel % width) * grad_x + (0.5 * height - 0.5 - pixel // width) * grad_y
    grad_vertex[3] -= crossing * grad_along
