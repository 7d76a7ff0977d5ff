"""The embedded template: a complete face model written from closed forms, no third-party data."""

import numpy as np
import torch
from torch import Tensor

from nl3dmm.assets.expression import expression_fields
from nl3dmm.assets.fields import Array
from nl3dmm.assets.identity import identity_fields
from nl3dmm.assets.landmarks import EMBEDDED_PATHWAYS, landmark_uv, pathway_boxes
from nl3dmm.assets.layout import chart, texel_centers
from nl3dmm.assets.regions import face_regions
from nl3dmm.assets.surface import face_surface
from nl3dmm.assets.template import FaceTemplate, grid_point, grid_triangles
from nl3dmm.errors import AssetError

PROVENANCE = {"source": "nl3dmm embedded closed forms", "licence": "Apache-2.0", "version": "1"}


def embedded_template(uv_size: tuple[int, int] = (64, 80)) -> FaceTemplate:
    """The procedural face on a UV grid of ``uv_size`` (rows, columns): vertex k is texel k.

    Args:
        uv_size: at least (32, 32), both even; the face looks the same at every density.
    """
    rows, columns = uv_size
    if rows < 32 or columns < 32 or rows % 2 or columns % 2:
        raise AssetError(f"uv_size: got {uv_size}; expected even numbers >= 32 (rows, columns). Choose e.g. (64, 80).")
    u, v = texel_centers(uv_size)
    points = face_surface(*chart(u, v))
    mask = torch.ones(uv_size, dtype=torch.bool)
    triangles = grid_triangles(mask)
    texel_triangle, texel_barycentric = _grid_texels(triangles, rows, columns)
    uv_points = landmark_uv()
    corners, weights = zip(*(grid_point(float(a), float(b), uv_size) for a, b in uv_points), strict=True)
    expressions = expression_fields(u, v)
    return FaceTemplate(
        name="embedded",
        vertices=_tensor(points).reshape(-1, 3),
        triangles=triangles,
        uv=_tensor(np.stack([u, v], -1)).reshape(-1, 2),
        uv_size=uv_size,
        uv_mask=mask,
        texel_triangle=texel_triangle,
        texel_barycentric=texel_barycentric,
        is_uv_grid=True,
        landmark_vertices=torch.tensor(corners),
        landmark_weights=torch.tensor(weights, dtype=torch.float64).float(),
        mirror=torch.arange(rows * columns).reshape(uv_size).flip(1).reshape(-1),
        regions={name: _tensor(region, half=True) for name, region in face_regions(u, v).items()},
        boxes=pathway_boxes(uv_points, uv_size, EMBEDDED_PATHWAYS),
        identity_basis=_tensor(np.stack(identity_fields(u, v)), half=True).flatten(1, 2),
        expression_basis=_tensor(np.stack(list(expressions.values())), half=True).flatten(1, 2),
        expression_names=tuple(expressions),
        provenance=PROVENANCE,
    )


def _grid_texels(triangles: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The first triangle at each vertex, with all weight on that vertex."""
    first = torch.full((rows * columns,), len(triangles))
    first.scatter_reduce_(0, triangles.reshape(-1), torch.arange(len(triangles)).repeat_interleave(3), "amin")
    weights = (triangles[first] == torch.arange(rows * columns)[:, None]).float()
    return first.reshape(rows, columns), weights.reshape(rows, columns, 3)


def _tensor(values: Array, half: bool = False) -> Tensor:
    """float32; ``half`` rounds through float16, so that files store half the bytes without loss."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).float()
    return tensor.half().float() if half else tensor
