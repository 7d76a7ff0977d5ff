"""Which triangle is seen at each pixel, one image at a time: integer coverage and a fixed-point depth buffer.

The rules (snapping, ties, clipping) are those of ``_torch/visibility.py``; both must name the same triangle everywhere.
Coordinates are in 1/16 pixel with the centre of pixel (0, 0) at the origin, so pixel centres are multiples of 16.
"""

from typing import no_type_check

import numpy as np

from nl3dmm.render._jit import kernel
from nl3dmm.render._rules import DEPTH_MAX, DEPTH_ROUNDING, LARGEST

NOT_PROJECTABLE = 64
POLYGON_MAX = 36  # 3 corners grow at most by half at each of the six planes, even if rounding breaks convexity


@kernel
@no_type_check
def visible_triangles(pos, tri, scale, ids):
    """Fill ``ids`` with nearest triangles' indices or -1; ``scale`` is 8 * (width, height) in the dtype of ``pos``."""
    vertices = pos.shape[0]
    points = np.empty((vertices + POLYGON_MAX, 3), np.int64)  # behind the vertices: corners of a clipped triangle
    codes = np.empty(vertices, np.uint8)
    for vertex in range(vertices):
        codes[vertex] = outside_planes(pos[vertex])
        if codes[vertex] == 0:
            snap(pos[vertex], scale, points[vertex])
    depth = np.full(ids.shape, DEPTH_MAX, np.uint32)
    ids[:] = -1
    fill(pos, tri, codes, points, scale, depth, ids)


@kernel
@no_type_check
def fill(pos, tri, codes, points, scale, depth, ids):
    """Enter all triangles into the depth buffer; where depths are equal the later triangle wins."""
    vertices = pos.shape[0]
    for triangle in range(tri.shape[0]):
        a, b, c = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
        parts = 0
        if min(a, b, c) >= 0 and max(a, b, c) < vertices:
            together = codes[a] | codes[b] | codes[c]
            if together == 0:
                parts = 1
            elif together < NOT_PROJECTABLE and codes[a] & codes[b] & codes[c] == 0:
                parts = clip(pos, a, b, c, scale, points) - 2
                a, b, c = vertices, vertices + 1, vertices + 2
        for part in range(parts):
            b, c = b + min(part, 1), c + min(part, 1)
            xa, ya, xb, yb, xc, yc = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
            za, zb, zc = points[a, 2], points[b, 2], points[c, 2]
            area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
            if area < 0:
                xb, yb, zb, xc, yc, zc, area = xc, yc, zc, xb, yb, zb, -area
            first_column, last_column = centres(xa, xb, xc, ids.shape[1])
            first_row, last_row = centres(ya, yb, yc, ids.shape[0])
            if area == 0 or first_column > last_column:
                continue
            gradient_b, gradient_c = (zb - za) / np.float64(area), (zc - za) / np.float64(area)
            open_a, open_b, open_c = is_open(xb, yb, xc, yc), is_open(xc, yc, xa, ya), is_open(xa, ya, xb, yb)
            for row in range(first_row, last_row + 1):
                edge_a = (xc - xb) * (row * 16 - yb) - (yc - yb) * (first_column * 16 - xb)
                edge_b = (xa - xc) * (row * 16 - yc) - (ya - yc) * (first_column * 16 - xc)
                edge_c = (xb - xa) * (row * 16 - ya) - (yb - ya) * (first_column * 16 - xa)
                for column in range(first_column, last_column + 1):
                    if ((edge_a - open_a) | (edge_b - open_b) | (edge_c - open_c)) >= 0:
                        z = np.int64(za + (edge_b * gradient_b + edge_c * gradient_c) + DEPTH_ROUNDING)
                        if z <= depth[row, column]:
                            depth[row, column], ids[row, column] = z, triangle
                    edge_a -= (yc - yb) * 16
                    edge_b -= (ya - yc) * 16
                    edge_c -= (yb - ya) * 16


@kernel
@no_type_check
def centres(a, b, c, size):
    """First and last of the pixel centres 0, 16, ... within the extent of three coordinates."""
    return max((min(a, b, c) + 15) >> 4, 0), min(max(a, b, c) >> 4, size - 1)


@kernel
@no_type_check
def is_open(x_from, y_from, x_to, y_to):
    """1 where samples on the edge of a counter-clockwise triangle are not its own: right and upper-row edges."""
    return 0 if y_to < y_from or (y_to == y_from and x_to > x_from) else 1


@kernel
@no_type_check
def outside_planes(vertex):
    """One bit per plane of the view volume that the vertex is outside of, or NOT_PROJECTABLE."""
    x, y, z, w = vertex
    if not (abs(x) <= LARGEST and abs(y) <= LARGEST and abs(z) <= LARGEST and abs(w) <= LARGEST):
        return NOT_PROJECTABLE
    if x == 0 and y == 0 and z == 0 and w == 0:
        return NOT_PROJECTABLE
    code = (x < -w) | (x > w) << 1 | (y < -w) << 2 | (y > w) << 3 | (z < -w) << 4 | (z > w) << 5
    return code


@kernel
@no_type_check
def snap(vertex, scale, point):
    """Project to 1/16 pixel (nearest, ties to even) and 32-bit depth."""
    w, one = vertex[3], vertex.dtype.type(1)  # a plain 1.0 would turn the products into float64
    x, y = min(max(vertex[0] / w, -one), one), min(max(vertex[1] / w, -one), one)
    z = np.float64(min(max(vertex[2] / w, -one), one))
    point[0] = np.int64(np.rint(x * scale[0])) + np.int64(scale[0]) - 8
    point[1] = np.int64(np.rint(y * scale[1])) + np.int64(scale[1]) - 8
    point[2] = np.int64(np.rint((z * 0.5 + 0.5) * DEPTH_MAX))


@kernel
@no_type_check
def clip(pos, a, b, c, scale, points):
    """Cut a triangle at the six planes; count the corners left, which are snapped into ``points`` behind all others."""
    polygon = np.empty((2, POLYGON_MAX, 4), pos.dtype)
    polygon[0, 0], polygon[0, 1], polygon[0, 2] = pos[a], pos[b], pos[c]
    corners = 3
    for plane in range(6):
        axis, side = plane >> 1, plane & 1
        before, after = polygon[side], polygon[1 - side]
        kept = 0
        for corner in range(corners):
            here, there = before[corner], before[(corner + 1) % corners]
            here_distance = here[3] - here[axis] if side else here[3] + here[axis]
            there_distance = there[3] - there[axis] if side else there[3] + there[axis]
            if here_distance >= 0:
                after[kept] = here
                kept += 1
            # always from inside to outside: both triangles of a shared edge cut it at the same point
            if here_distance >= 0 and there_distance < 0:
                after[kept] = cut(here, there, here_distance, there_distance)
                kept += 1
            elif here_distance < 0 and there_distance >= 0:
                after[kept] = cut(there, here, there_distance, here_distance)
                kept += 1
        corners = kept
    for corner in range(corners):
        if not polygon[0, corner, 3] > 0:
            return 0
        snap(polygon[0, corner], scale, points[pos.shape[0] + corner])
    return corners


@kernel
@no_type_check
def cut(inside, outside, inside_distance, outside_distance):
    """The point of a segment that lies on a plane."""
    return inside + inside_distance / (inside_distance - outside_distance) * (outside - inside)
