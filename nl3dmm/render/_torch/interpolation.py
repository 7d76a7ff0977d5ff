"""Interpolation of vertex attributes in plain torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
    rast_db: Float[Tensor, "batch height width _"] | None,
    diff_attrs: tuple[int, ...],
) -> tuple[Float[Tensor, "batch height width channels"], Float[Tensor, "batch height width _"] | None]:
    seen = (rast[..., 3] >= 1) & (rast[..., 3] < len(tri) + 1)
    triangle = torch.where(seen, rast[..., 3], 1).long() - 1
    if len(tri):
        seen = seen & ((tri >= 0) & (tri < attr.shape[1])).all(-1)[triangle]
    pixel = seen.nonzero(as_tuple=True)
    image = pixel[0] if len(attr) > 1 else torch.zeros_like(pixel[0])
    corners = attr[image[:, None], tri[triangle[pixel]]]
    u, v = rast[pixel][:, 0:1], rast[pixel][:, 1:2]
    values = u * corners[:, 0] + v * corners[:, 1] + (1 - u - v) * corners[:, 2]
    out = attr.new_zeros(*rast.shape[:3], attr.shape[2]).index_put(pixel, values)
    if rast_db is None or not diff_attrs:
        return out, None
    wanted = corners[..., list(diff_attrs)]
    along = wanted[:, :2] - wanted[:, 2:]  # (pixels, u and v, channels)
    slopes = torch.einsum("pua,puc->pca", rast_db[pixel].unflatten(1, (2, 2)), along).flatten(1)
    return out, attr.new_zeros(*rast.shape[:3], slopes.shape[1]).index_put(pixel, slopes)
