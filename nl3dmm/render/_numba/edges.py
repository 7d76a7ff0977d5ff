"""Silhouette edges of a mesh on CPU: the part of edge-walk antialiasing that looks at every triangle."""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays
from nl3dmm.render._pool import run_images


def turning_edges(
    pos: Float[Tensor, "batch vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    triangles: Int[Tensor, "edges 2"],
    winding: Int[Tensor, " edges"],
    w_min: float,
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"], Int[Tensor, "found 2"]]:
    """Twin of ``silhouette._turning_edges``."""
    p, t, of_edge, wound = arrays(pos.contiguous(), tri.contiguous(), triangles, winding)
    found = [np.empty(0, np.int64)] * len(pos)
    facing = [np.empty((0, 2), np.int8)] * len(pos)

    def image(i: int) -> None:
        whole = np.empty(len(tri), np.int8)
        face(p[i], t, p.dtype.type(w_min), whole)
        index = np.empty(len(winding), np.int64)  # memory is taken only where it is written to
        found[i] = index[: turning(whole, of_edge, wound, index)].copy()
        facing[i] = whole[of_edge[found[i]]]

    run_images(image, len(pos), torch.get_num_threads())
    images = np.repeat(np.arange(len(pos)), [len(index) for index in found])
    return torch.from_numpy(images), torch.from_numpy(np.concatenate(found)), torch.from_numpy(np.concatenate(facing))


@kernel
@no_type_check
def face(pos, tri, w_min, facing):
    """1 or -1, the winding of each triangle in the image; 0 if it is not drawn."""
    vertices = pos.shape[0]
    points = np.empty((vertices, 2), pos.dtype)
    for vertex in range(vertices):
        x, y, z, w = pos[vertex]
        if w > w_min and np.isfinite(x) and np.isfinite(y) and np.isfinite(z) and np.isfinite(w):
            points[vertex, 0], points[vertex, 1] = x / w, y / w
        else:
            points[vertex, 0], points[vertex, 1] = np.nan, np.nan
    for triangle in range(tri.shape[0]):
        a, b, c = tri[triangle, 0], tri[triangle, 1], tri[triangle, 2]
        if min(a, b, c) >= 0 and max(a, b, c) < vertices:
            ax, ay = points[a, 0], points[a, 1]
            first = (points[b, 0] - ax) * (points[c, 1] - ay)
            second = (points[c, 0] - ax) * (points[b, 1] - ay)
            facing[triangle] = np.int8(first > second) - np.int8(first < second)
        else:
            facing[triangle] = 0


@kernel
@no_type_check
def turning(facing, triangles, winding, found):
    """Enter the edges whose triangles face differently, and count them."""
    count = 0
    for edge in range(winding.size):
        if facing[triangles[edge, 0]] != facing[triangles[edge, 1]] * winding[edge]:
            found[count] = edge
            count += 1
    return count
