"""Interpolation of vertex attributes in plain torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
) -> Float[Tensor, "batch height width channels"]:
    seen = (rast[..., 3] >= 1) & (rast[..., 3] < len(tri) + 1)
    triangle = torch.where(seen, rast[..., 3], 1).long() - 1
    if len(tri):
        seen = seen & ((tri >= 0) & (tri < attr.shape[1])).all(-1)[triangle]
    pixel = seen.nonzero(as_tuple=True)
    image = pixel[0] if len(attr) > 1 else torch.zeros_like(pixel[0])
    corners = attr[image[:, None], tri[triangle[pixel]]]
    u, v = rast[pixel][:, 0:1], rast[pixel][:, 1:2]
    values = u * corners[:, 0] + v * corners[:, 1] + (1 - u - v) * corners[:, 2]
    return attr.new_zeros(*rast.shape[:3], attr.shape[2]).index_put(pixel, values)
