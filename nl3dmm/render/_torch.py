"""The three operations in plain torch with autograd: fallback on any device and oracle of the kernels' gradients."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render._visibility_torch import visible_triangles

STABILISER = {torch.float32: 1e-6, torch.float64: 0.0}


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


def texture(
    tex: Float[Tensor, "tex_batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    seen = uv.isfinite().all(-1) if mask is None else uv.isfinite().all(-1) & mask
    pixel = seen.nonzero(as_tuple=True)
    image = pixel[0] if len(tex) > 1 else torch.zeros_like(pixel[0])
    column, column_weight = _taps(uv[pixel][:, 0], tex.shape[2], filter_mode, boundary_mode)
    row, row_weight = _taps(uv[pixel][:, 1], tex.shape[1], filter_mode, boundary_mode)
    texels = tex[image[:, None, None], row[:, :, None], column[:, None, :]]  # (pixels, row taps, column taps, channels)
    weights = (row_weight[:, :, None] * column_weight[:, None, :]).to(tex.dtype)
    values = (weights[..., None] * texels).sum((1, 2))
    return tex.new_zeros(*uv.shape[:3], tex.shape[3]).index_put(pixel, values)


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


def _taps(
    coordinate: Float[Tensor, " pixels"], size: int, filter_mode: str, boundary_mode: str
) -> tuple[Int[Tensor, "pixels taps"], Float[Tensor, "pixels taps"]]:
    """Texel indices along one axis and their weights, zero where a texel does not exist."""
    position = coordinate.double()
    if boundary_mode == "wrap":
        position = position - position.floor()
    position = position * size - (0.5 if filter_mode == "linear" else 0)
    if boundary_mode != "wrap":
        position = position.clamp(*((0, size - 1) if boundary_mode == "clamp" else (-1, size)))
    first = position.detach().floor()
    if filter_mode == "linear":
        index = torch.stack([first, first + 1], -1).long()
        weight = torch.stack([1 - (position - first), position - first], -1)
    else:
        index, weight = first.long()[:, None], torch.ones_like(first)[:, None]
    if boundary_mode == "wrap":
        return index % size, weight
    weight = torch.where((index >= 0) & (index < size), weight, 0) if boundary_mode == "zero" else weight
    return index.clamp(0, size - 1), weight
