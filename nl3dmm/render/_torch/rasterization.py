"""Rasterization in plain torch."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.render._torch.visibility import visible_triangles

STABILISER = {torch.float32: 1e-6, torch.float64: 0.0}  # keeps gradients of triangles seen edge-on finite


def rasterize(
    ctx: Any, pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], height: int, width: int
) -> Float[Tensor, "batch {height} {width} 4"]:
    ids = visible_triangles(pos.detach(), tri, height, width)
    pixel = (ids >= 0).nonzero(as_tuple=True)
    image, row, column = pixel
    triangle = ids[pixel]
    corners = pos[image[:, None], tri[triangle]].double()
    centre = torch.stack([(2 * column + 1).double() / width - 1, (2 * row + 1).double() / height - 1], -1)
    u, v, depth = _barycentrics(corners, centre, STABILISER[pos.dtype])
    values = torch.stack([u, v, depth, triangle + 1.0], -1).to(pos.dtype)
    return pos.new_zeros(len(pos), height, width, 4).index_put(pixel, values)


def _barycentrics(
    corners: Float[Tensor, "pixels 3 4"], centre: Float[Tensor, "pixels 2"], stabiliser: float
) -> tuple[Float[Tensor, " pixels"], Float[Tensor, " pixels"], Float[Tensor, " pixels"]]:
    """Perspective-correct u, v and z / w; gradients to u, v only, which ignore the clamps."""
    x, y = (corners[..., :2] - centre[:, None] * corners[..., 3:]).unbind(-1)
    a, b = x[:, [1, 2, 0]], y[:, [2, 0, 1]]
    weights = a * b - x[:, [2, 0, 1]] * y[:, [1, 2, 0]]
    total = weights.sum(1)
    stable = total + torch.where(total >= 0, stabiliser, -stabiliser)
    smooth = weights[:, :2] / torch.where(stable == 0, 1, stable)[:, None]
    with torch.no_grad():
        exact = weights / torch.where(total == 0, torch.inf, total)[:, None]
        exact[:, 2] = 1 - exact[:, 0] - exact[:, 1]
        z, w = ((exact[:, :, None] * corners[..., 2:]).sum(1)).unbind(-1)
        depth = torch.where(w == 0, 0, z / w).clamp(-1, 1)
        clamped = exact[:, :2].clamp(0, 1)
        clamped = clamped / clamped.sum(1, keepdim=True).clamp(min=1)
    u, v = _StraightThrough.apply(clamped, smooth).unbind(-1)
    return u, v, depth


class _StraightThrough(torch.autograd.Function):
    """The first argument's value with the second argument's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, smooth: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
