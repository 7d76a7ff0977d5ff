"""Meshes: normals."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

# mm^2, twice an area: the float32 noise of coordinates of 100 mm on edges of 1 mm. Shorter sums have no direction, and
# dividing by them would let one collapsed triangle outweigh all other gradients.
_LEAST_NORMAL = 1e-4


def triangle_normals(
    vertices: Float[Tensor, "batch vertices 3"], triangles: Int[Tensor, "triangles 3"]
) -> Float[Tensor, "batch triangles 3"]:
    """Outward normals, twice the triangle's area long (counter-clockwise triangles seen from outside)."""
    # index_select: its backward is one index_add, three times faster than that of indexing.
    first, second, third = (vertices.index_select(1, triangles[:, corner]) for corner in range(3))
    return torch.linalg.cross(second - first, third - first)


def vertex_normals(
    vertices: Float[Tensor, "batch vertices 3"], triangles: Int[Tensor, "triangles 3"]
) -> Float[Tensor, "batch vertices 3"]:
    """Area-weighted unit normals; zero where no triangle with an area touches the vertex. Unit: millimetres."""
    normals = triangle_normals(vertices, triangles)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(1, triangles[:, corner], normals)
    return F.normalize(total, dim=-1, eps=_LEAST_NORMAL)
