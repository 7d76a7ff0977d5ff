"""Rasterization in plain torch."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.render._rules import EDGE_ON, WEIGHT_STABILISER
from nl3dmm.render._torch.visibility import visible_triangles


def rasterize(
    ctx: Any,
    pos: Float[Tensor, "batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    height: int,
    width: int,
    ranges: Int[Tensor, "batch 2"] | None,
    grad_db: bool | None,
) -> tuple[Float[Tensor, "batch {height} {width} 4"], Float[Tensor, "batch {height} {width} 4"] | None]:
    ids = _ids(pos.detach(), tri, height, width, ranges)
    pixel = (ids >= 0).nonzero(as_tuple=True)
    image, row, column = pixel
    triangle = ids[pixel]
    corners = (pos[image[:, None], tri[triangle]] if ranges is None else pos[tri[triangle]]).double()
    centre = torch.stack([(2 * column + 1).double() / width - 1, (2 * row + 1).double() / height - 1], -1)
    weights = _weights(corners, centre)
    total, exact_total = _total(weights, WEIGHT_STABILISER[pos.dtype]), _total(weights.detach(), 0.0)
    uv = weights[:, :2] / total[:, None]
    exact_uv, depth = _exact(weights.detach(), exact_total, corners.detach())
    values = torch.cat([_StraightThrough.apply(exact_uv, uv), depth[:, None], triangle[:, None] + 1.0], -1)
    background = pos.new_zeros(*ids.shape, 4)
    rast = background.index_put(pixel, values.to(pos.dtype))
    if grad_db is None:
        return rast, None
    slopes = _slopes(corners) * 2 / torch.tensor([width, height], device=pos.device)
    exact = _derivatives(slopes.detach(), exact_uv, exact_total)
    rast_db = _StraightThrough.apply(exact, _derivatives(slopes, uv, total) if grad_db else exact)
    return rast, background.index_put(pixel, rast_db.to(pos.dtype))


def _ids(
    pos: Tensor, tri: Int[Tensor, "triangles 3"], height: int, width: int, ranges: Int[Tensor, "batch 2"] | None
) -> Int[Tensor, "batch {height} {width}"]:
    """Index of the triangle at each pixel, -1 where there is none; in range mode one image after the other."""
    if ranges is None:
        return visible_triangles(pos, tri, height, width)
    images = [torch.full((0, height, width), -1, device=pos.device)]
    for first, count in ranges.tolist():
        own = visible_triangles(pos[None], tri[first : first + count], height, width)
        images.append(torch.where(own < 0, -1, own + first))
    return torch.cat(images)


def _weights(corners: Float[Tensor, "pixels 3 4"], centre: Float[Tensor, "pixels 2"]) -> Float[Tensor, "pixels 3"]:
    """Homogeneous barycentric weights."""
    x, y = (corners[..., :2] - centre[:, None] * corners[..., 3:]).unbind(-1)
    return x[:, [1, 2, 0]] * y[:, [2, 0, 1]] - x[:, [2, 0, 1]] * y[:, [1, 2, 0]]


def _slopes(corners: Float[Tensor, "pixels 3 4"]) -> Float[Tensor, "pixels 3 2"]:
    """How the weights change along NDC x and y: they are linear."""
    corners = corners[..., [0, 1, 3]]
    return torch.linalg.cross(corners[:, [1, 2, 0]], corners[:, [2, 0, 1]])[..., :2]


def _total(weights: Float[Tensor, "pixels 3"], stabiliser: float) -> Float[Tensor, " pixels"]:
    """The divisor that makes the weights sum to one, infinite where there is none."""
    total = weights.sum(1)
    total = total + torch.where(total >= 0, stabiliser, -stabiliser)
    return torch.where(total.abs() <= EDGE_ON, torch.inf, total)


def _exact(
    weights: Float[Tensor, "pixels 3"], total: Float[Tensor, " pixels"], corners: Float[Tensor, "pixels 3 4"]
) -> tuple[Float[Tensor, "pixels 2"], Float[Tensor, " pixels"]]:
    """Perspective-correct u, v, clamped into the triangle, and z / w."""
    uv = weights[:, :2] / total[:, None]
    shares = torch.cat([uv, 1 - uv[:, :1] - uv[:, 1:]], 1)
    z, w = (shares[:, :, None] * corners[..., 2:]).sum(1).unbind(-1)
    depth = torch.where(w == 0, 0, z / w).clamp(-1, 1)
    uv = uv.clamp(0, 1)
    return uv / uv.sum(1, keepdim=True).clamp(min=1), depth


def _derivatives(
    slopes: Float[Tensor, "pixels 3 2"], uv: Float[Tensor, "pixels 2"], total: Float[Tensor, " pixels"]
) -> Float[Tensor, "pixels 4"]:
    """du/dX, du/dY, dv/dX, dv/dY by the quotient rule."""
    return ((slopes[:, :2] - uv[:, :, None] * slopes.sum(1, keepdim=True)) / total[:, None, None]).flatten(1)


class _StraightThrough(torch.autograd.Function):
    """The first argument's value with the second argument's gradient: clamps are ignored."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, smooth: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
