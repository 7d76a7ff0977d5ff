"""Mipmapped texture fetch on CPU: numba kernels for one image each, and the autograd function around them.

All levels lie one after the other in one array (texels, channels); ``sizes`` holds height, width and first texel of
each. ``detail`` is the level of detail of each pixel, within the levels. A ``mask`` may be empty: all pixels count.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays, repeat, summed
from nl3dmm.render._numba._taps import is_finite, taps
from nl3dmm.render._pool import run_images


def fetch_levels(
    levels: list[Tensor],
    uv: Float[Tensor, "batch height width 2"],
    detail: Float[Tensor, "batch height width"],
    mask: Bool[Tensor, "batch _ _"],
    trilinear: bool,
    boundary: int,
) -> Float[Tensor, "batch height width channels"]:
    """Bilinear samples of the two levels around ``detail``, blended, or of the nearest one (halves go up)."""
    texels = torch.cat([level.flatten(1, 2) for level in levels], 1)
    first = np.cumsum([0] + [level.shape[1] * level.shape[2] for level in levels])
    sizes = np.array([(*level.shape[1:3], start) for level, start in zip(levels, first[:-1], strict=True)])
    return _MipTexture.apply(texels, uv, detail, mask, sizes, trilinear, boundary)


class _MipTexture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        texels: Tensor,
        uv: Tensor,
        detail: Tensor,
        mask: Tensor,
        sizes: np.ndarray,
        trilinear: bool,
        boundary: int,
    ) -> Tensor:
        uv, detail, mask = uv.contiguous(), detail.contiguous(), mask.contiguous()
        out = texels.new_empty(*uv.shape[:3], texels.shape[2])
        t, c, d, m, to_out = arrays(repeat(texels, len(uv)), uv, detail, mask, out)
        ctx.threads, ctx.choice = torch.get_num_threads(), (sizes, trilinear, boundary)
        run_images(lambda i: mip_image(t[i], c[i], d[i], m[i], *ctx.choice, to_out[i]), len(uv), ctx.threads)
        ctx.save_for_backward(texels, uv, detail, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        texels, uv, detail, mask = ctx.saved_tensors
        want_texels, want_uv, want_detail = ctx.needs_input_grad[:3]
        grad_texels = texels.new_empty(len(uv) if want_texels else 0, *texels.shape[1:])
        grad_uv, grad_detail = torch.empty_like(uv), torch.empty_like(detail)
        t, c, d, m, from_out = arrays(repeat(texels, len(uv)), uv, detail, mask, grad_out.contiguous())
        to_texels, to_uv, to_detail = arrays(grad_texels, grad_uv, grad_detail)

        def image(i: int) -> None:
            if want_texels:
                mip_backward_texels(c[i], d[i], m[i], *ctx.choice, from_out[i], to_texels[i])
            if want_uv or want_detail:
                mip_backward_position(t[i], c[i], d[i], m[i], *ctx.choice, from_out[i], to_uv[i], to_detail[i])

        run_images(image, len(uv), ctx.threads)
        grad = summed(grad_texels, len(texels)) if want_texels else None
        return grad, grad_uv if want_uv else None, grad_detail if want_detail else None, None, None, None, None


@kernel
@no_type_check
def lower_level(detail, levels, trilinear):
    """The first level to read, and the weight of the next one."""
    if trilinear:
        lower = min(np.int64(np.floor(detail)), max(levels - 2, 0))
        return lower, detail - lower
    return np.int64(np.floor(detail + 0.5)), 0.0 * detail


@kernel
@no_type_check
def corners(u, v, height, width, first, boundary):
    """Four texels of a level and their bilinear weights."""
    left, right, x0, x1, _, _ = taps(u, width, True, boundary)
    top, bottom, y0, y1, _, _ = taps(v, height, True, boundary)
    top, bottom = first + top * width, first + bottom * width
    return top + left, top + right, bottom + left, bottom + right, y0 * x0, y0 * x1, y1 * x0, y1 * x1


@kernel
@no_type_check
def mip_image(texels, uv, detail, mask, sizes, trilinear, boundary, out):
    out[:] = 0
    height, width, channels = out.shape
    real = texels.dtype.type
    for row in range(height):
        for column in range(width):
            u, v = uv[row, column, 0], uv[row, column, 1]
            if (mask.size == 0 or mask[row, column]) and is_finite(u, v):
                lower, upper_weight = lower_level(detail[row, column], sizes.shape[0], trilinear)
                for level in range(lower, lower + 2 if upper_weight > 0 else lower + 1):
                    weight = upper_weight if level > lower else 1 - upper_weight
                    rows, columns, first = sizes[level, 0], sizes[level, 1], sizes[level, 2]
                    i, j, k, m, a, b, c, d = corners(u, v, rows, columns, first, boundary)
                    a, b, c, d = real(weight * a), real(weight * b), real(weight * c), real(weight * d)
                    for channel in range(channels):
                        upper = a * texels[i, channel] + b * texels[j, channel]
                        under = c * texels[k, channel] + d * texels[m, channel]
                        out[row, column, channel] += upper + under


@kernel
@no_type_check
def mip_backward_texels(uv, detail, mask, sizes, trilinear, boundary, grad_out, grad_texels):
    grad_texels[:] = 0
    height, width, channels = grad_out.shape
    real = grad_texels.dtype.type
    for row in range(height):
        for column in range(width):
            u, v = uv[row, column, 0], uv[row, column, 1]
            if (mask.size == 0 or mask[row, column]) and is_finite(u, v):
                lower, upper_weight = lower_level(detail[row, column], sizes.shape[0], trilinear)
                for level in range(lower, lower + 2 if upper_weight > 0 else lower + 1):
                    weight = upper_weight if level > lower else 1 - upper_weight
                    rows, columns, first = sizes[level, 0], sizes[level, 1], sizes[level, 2]
                    i, j, k, m, a, b, c, d = corners(u, v, rows, columns, first, boundary)
                    a, b, c, d = real(weight * a), real(weight * b), real(weight * c), real(weight * d)
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_texels[i, channel] += a * grad
                        grad_texels[j, channel] += b * grad
                        grad_texels[k, channel] += c * grad
                        grad_texels[m, channel] += d * grad


@kernel
@no_type_check
def mip_backward_position(texels, uv, detail, mask, sizes, trilinear, boundary, grad_out, grad_uv, grad_detail):
    """Adjoint to ``uv`` and ``detail``; of the nearest level ``detail`` has none."""
    grad_uv[:] = 0
    grad_detail[:] = 0
    height, width, channels = grad_out.shape
    blends = trilinear and sizes.shape[0] > 1
    for row in range(height):
        for column in range(width):
            u, v = uv[row, column, 0], uv[row, column, 1]
            if (mask.size == 0 or mask[row, column]) and is_finite(u, v):
                lower, upper_weight = lower_level(detail[row, column], sizes.shape[0], trilinear)
                for level in range(lower, lower + 2 if blends else lower + 1):
                    weight = upper_weight if level > lower else 1 - upper_weight
                    left, right, x0, x1, slope_x0, slope_x1 = taps(u, sizes[level, 1], True, boundary)
                    top, bottom, y0, y1, slope_y0, slope_y1 = taps(v, sizes[level, 0], True, boundary)
                    top = sizes[level, 2] + top * sizes[level, 1]
                    bottom = sizes[level, 2] + bottom * sizes[level, 1]
                    grad_a = grad_b = grad_c = grad_d = texels.dtype.type(0)
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_a += grad * texels[top + left, channel]
                        grad_b += grad * texels[top + right, channel]
                        grad_c += grad * texels[bottom + left, channel]
                        grad_d += grad * texels[bottom + right, channel]
                    grad_left, grad_right = y0 * grad_a + y1 * grad_c, y0 * grad_b + y1 * grad_d
                    grad_top, grad_bottom = x0 * grad_a + x1 * grad_b, x0 * grad_c + x1 * grad_d
                    grad_uv[row, column, 0] += weight * (slope_x0 * grad_left + slope_x1 * grad_right)
                    grad_uv[row, column, 1] += weight * (slope_y0 * grad_top + slope_y1 * grad_bottom)
                    if blends:
                        value = y0 * grad_top + y1 * grad_bottom
                        grad_detail[row, column] += value if level > lower else -value
