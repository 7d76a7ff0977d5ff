"""Texture fetch in plain torch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render.mipmaps import level_of_detail


def texture(
    levels: list[Tensor],
    uv: Float[Tensor, "batch height width 2"],
    uv_da: Float[Tensor, "batch height width 4"] | None,
    mip_level_bias: Float[Tensor, "batch height width"] | None,
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    tex, detail = levels[0], None
    seen = uv.isfinite().all(-1) if mask is None else uv.isfinite().all(-1) & mask
    if "mipmap" in filter_mode:
        detail = level_of_detail(uv_da, mip_level_bias, (tex.shape[1], tex.shape[2]), len(levels) - 1)
    pixel = seen.nonzero(as_tuple=True)
    image = pixel[0] if len(tex) > 1 else torch.zeros_like(pixel[0])
    if detail is None:
        values = _fetch(tex, image, uv[pixel], filter_mode == "linear", boundary_mode)
    else:
        values = _fetch_levels(levels, image, uv[pixel], detail[pixel], filter_mode, boundary_mode)
    return tex.new_zeros(*uv.shape[:3], tex.shape[3]).index_put(pixel, values)


def _fetch_levels(
    levels: list[Tensor],
    image: Int[Tensor, " pixels"],
    uv: Float[Tensor, "pixels 2"],
    detail: Float[Tensor, " pixels"],
    filter_mode: str,
    boundary_mode: str,
) -> Float[Tensor, "pixels channels"]:
    """Weighted mean of the two levels around ``detail``, or the nearest level (halves go up)."""
    trilinear = filter_mode == "linear-mipmap-linear"
    lower = (detail.detach() + (0 if trilinear else 0.5)).floor().clamp_max(max(len(levels) - 1 - trilinear, 0))
    upper_weight = detail - lower
    values = uv.new_zeros(len(uv), levels[0].shape[3])
    for number, tex in enumerate(levels):
        weight = torch.where(lower == number, 1 - upper_weight, upper_weight) if trilinear else torch.ones_like(detail)
        is_read = (lower == number) | (lower + trilinear == number)
        (reader,) = is_read.nonzero(as_tuple=True)
        fetched = _fetch(tex, image[reader], uv[reader], True, boundary_mode)
        values = values.index_add(0, reader, weight[reader, None] * fetched)
    return values


def _fetch(
    tex: Float[Tensor, "tex_batch tex_height tex_width channels"],
    image: Int[Tensor, " pixels"],
    uv: Float[Tensor, "pixels 2"],
    linear: bool,
    boundary_mode: str,
) -> Float[Tensor, "pixels channels"]:
    column, column_weight = _taps(uv[:, 0], tex.shape[2], linear, boundary_mode)
    row, row_weight = _taps(uv[:, 1], tex.shape[1], linear, boundary_mode)
    texels = tex[image[:, None, None], row[:, :, None], column[:, None, :]]  # (pixels, row taps, column taps, channels)
    weights = (row_weight[:, :, None] * column_weight[:, None, :]).to(tex.dtype)
    return (weights[..., None] * texels).sum((1, 2))


def _taps(
    coordinate: Float[Tensor, " pixels"], size: int, linear: bool, boundary_mode: str
) -> tuple[Int[Tensor, "pixels taps"], Float[Tensor, "pixels taps"]]:
    """Texel indices along one axis and their weights, zero where a texel does not exist."""
    position = coordinate.double()
    if boundary_mode == "wrap":
        position = position - position.floor()
    position = position * size - (0.5 if linear else 0)
    if boundary_mode != "wrap":
        position = position.clamp(*((0, size - 1) if boundary_mode == "clamp" else (-1, size)))
    first = position.detach().floor()
    if linear:
        index = torch.stack([first, first + 1], -1).long()
        weight = torch.stack([1 - (position - first), position - first], -1)
    else:
        index, weight = first.long()[:, None], torch.ones_like(first)[:, None]
    if boundary_mode == "wrap":
        return index % size, weight
    weight = torch.where((index >= 0) & (index < size), weight, 0) if boundary_mode == "zero" else weight
    return index.clamp(0, size - 1), weight
