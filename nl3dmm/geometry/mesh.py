"""Meshes: normals."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

# mm^2, twice an area: the float32 noise of coordinates of 100 mm on edges of 1 mm. Shorter sums have no direction, and
# dividing by them would let one collapsed triangle outweigh all other gradients.
LEAST_NORMAL = 1e-4


def triangle_normals(
    vertices: Float[Tensor, "batch vertices 3"], triangles: Int[Tensor, "triangles 3"]
) -> Float[Tensor, "batch triangles 3"]:
    """Outward normals, twice the triangle's area long (counter-clockwise triangles seen from outside)."""
    # One row per vertex holds all batch elements: two to four times faster than to gather in each of them, as is
    # index_select, whose backward is one index_add, than indexing.
    rows, size = vertices.transpose(0, 1).flatten(1), (len(vertices), 3)
    first, second, third = (rows.index_select(0, triangles[:, corner]).unflatten(1, size) for corner in range(3))
    return torch.linalg.cross(second - first, third - first).transpose(0, 1)


def vertex_normals(
    vertices: Float[Tensor, "batch vertices 3"], triangles: Int[Tensor, "triangles 3"]
) -> Float[Tensor, "batch vertices 3"]:
    """Area-weighted unit normals; zero where no triangle with an area touches the vertex. Unit: millimetres."""
    normals = triangle_normals(vertices, triangles).transpose(0, 1).flatten(1)
    total = normals.new_zeros(vertices.shape[1], normals.shape[1])
    for corner in range(3):
        total = total.index_add(0, triangles[:, corner], normals)
    unit = F.normalize(total.unflatten(1, (len(vertices), 3)), dim=-1, eps=LEAST_NORMAL)
    return unit.transpose(0, 1).contiguous()
