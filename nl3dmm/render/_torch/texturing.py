"""Texture fetch in plain torch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
