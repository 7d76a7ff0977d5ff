"""Texture pyramids, and which of their levels a pixel reads."""

from functools import reduce
from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.render._checks import check_real, check_texels

LEVELS_MAX = 16
_FOOTPRINT_RANGE = (1e-15, 1e9)  # texels; beyond it every texture reads its first or last level


@no_type_check  # so that a wrong argument always meets the checks
def texture_construct_mip(
    tex: Float[Tensor, "batch tex_height tex_width channels"], max_mip_level: int | None = None
) -> list[Float[Tensor, "batch _ _ channels"]]:
    """Levels 1, 2, ... down to one texel: means of 2 x 2 texels, or of 2 along an axis when the other has one texel.

    Raises:
        ShapeError: a level has an odd extent greater than 1; stop before it with ``max_mip_level``.
    """
    check_real("tex", tex, (None, None, None, None), "(batch, height, width, channels)")
    check_texels(tex)
    limit = LEVELS_MAX if max_mip_level is None else max_mip_level
    if not isinstance(limit, int) or limit < 0:
        raise ShapeError(f"max_mip_level: got {limit!r}; expected None or an integer >= 0. Correct it.")
    levels: list[Tensor] = []
    level = tex
    while len(levels) < limit and max(level.shape[1:3]) > 1:
        height, width = level.shape[1:3]
        if any(extent > 1 and extent % 2 for extent in (height, width)):
            raise ShapeError(
                f"tex: got {height} x {width} texels at mip level {len(levels)}; expected even numbers or 1. "
                f"Pass max_mip_level={len(levels)} or resize the texture."
            )
        level = _halved(_halved(level, 1), 2)
        levels.append(level)
    return levels


def level_of_detail(
    uv_da: Float[Tensor, "batch height width 4"] | None,
    mip_level_bias: Float[Tensor, "batch height width"] | None,
    tex_size: tuple[int, int],
    last: int,
) -> Float[Tensor, "batch height width"]:
    """``log2`` of the longer semi-axis of the pixel's footprint in texels, plus the bias, within [0, last].

    Nothing where the result is clamped has a gradient. NaN counts as 0. At least one of the arguments must be given.
    """
    terms = [] if uv_da is None else [_longer_semi_axis(uv_da, tex_size).log2()]
    terms += [] if mip_level_bias is None else [mip_level_bias.nan_to_num()]
    return reduce(torch.add, terms).clamp(0, last)


def _longer_semi_axis(
    uv_da: Float[Tensor, "batch height width 4"], tex_size: tuple[int, int]
) -> Float[Tensor, "batch height width"]:
    """The larger singular value of ``J = d(column, row) / d(X, Y)``: half the sum of two lengths."""
    height, width = tex_size
    least, most = _FOOTPRINT_RANGE
    a, b, c, d = (uv_da * uv_da.new_tensor([width, width, height, height])).nan_to_num(0, most, -most).unbind(-1)
    first = ((a + d).square() + (b - c).square()).clamp_min(least**2)  # a length of 0 would have a NaN gradient
    second = ((a - d).square() + (b + c).square()).clamp_min(least**2)
    return (first.sqrt() + second.sqrt()) / 2


def _halved(level: Float[Tensor, "batch tex_height tex_width channels"], axis: int) -> Tensor:
    """Means of pairs; written as a sum because ``avg_pool2d`` was measured to be five times slower."""
    if level.shape[axis] == 1:
        return level
    even, odd = level.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return (even + odd) / 2
