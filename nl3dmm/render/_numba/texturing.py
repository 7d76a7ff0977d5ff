"""Texture fetch on CPU: numba kernels for one image each, and the autograd function around them.

A kernel's ``mask`` may be empty: all pixels count.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays, repeat, summed
from nl3dmm.render._numba._taps import BOUNDARY, CLAMP, inner_taps, is_finite, taps
from nl3dmm.render._numba.mipmapping import fetch_levels
from nl3dmm.render._pool import run_images
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
    tex = levels[0]
    mask = mask if mask is not None else uv.new_empty((uv.shape[0], 0, 0), dtype=torch.bool)
    if "mipmap" in filter_mode:
        detail = level_of_detail(uv_da, mip_level_bias, (tex.shape[1], tex.shape[2]), len(levels) - 1)
        return fetch_levels(levels, uv, detail, mask, filter_mode == "linear-mipmap-linear", BOUNDARY[boundary_mode])
    return _Texture.apply(tex, uv, mask, filter_mode == "linear", BOUNDARY[boundary_mode])


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tex: Tensor, uv: Tensor, mask: Tensor, linear: bool, boundary: int) -> Tensor:
        tex, uv, mask = tex.contiguous(), uv.contiguous(), mask.contiguous()
        out = tex.new_empty(*uv.shape[:3], tex.shape[3])
        t, c, m, to_out = arrays(repeat(tex, len(uv)), uv, mask, out)
        ctx.threads, ctx.linear, ctx.boundary = torch.get_num_threads(), linear, boundary
        run_images(lambda i: texture_image(t[i], c[i], m[i], linear, boundary, to_out[i]), len(uv), ctx.threads)
        ctx.save_for_backward(tex, uv, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tex, uv, mask = ctx.saved_tensors
        want_tex, want_uv = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and ctx.linear
        grad_tex = tex.new_empty(len(uv), *tex.shape[1:] if want_tex else (0, 0, 0))
        grad_uv = uv.new_empty(len(uv), *uv.shape[1:] if want_uv else (0, 0, 0))
        t, c, m, from_out = arrays(repeat(tex, len(uv)), uv, mask, grad_out.contiguous())
        to_tex, to_uv = arrays(grad_tex, grad_uv)

        def image(i: int) -> None:
            texture_backward(t[i], c[i], m[i], ctx.linear, ctx.boundary, from_out[i], to_tex[i], to_uv[i])

        run_images(image, len(uv), ctx.threads)
        return summed(grad_tex, len(tex)) if want_tex else None, grad_uv if want_uv else None, None, None, None


@kernel
@no_type_check
def texture_image(tex, uv, mask, linear, boundary, out):
    """Sample the pixels that are in the mask and have finite coordinates."""
    height, width, channels = out.shape
    real, is_inner = tex.dtype.type, linear and boundary == CLAMP
    for row in range(height):
        for column in range(width):
            if (mask.size == 0 or mask[row, column]) and is_finite(uv[row, column, 0], uv[row, column, 1]):
                if is_inner:
                    left, right, x0, x1, _ = inner_taps(uv[row, column, 0], tex.shape[1])
                    top, bottom, y0, y1, _ = inner_taps(uv[row, column, 1], tex.shape[0])
                else:
                    left, right, x0, x1, _, _ = taps(uv[row, column, 0], tex.shape[1], linear, boundary)
                    top, bottom, y0, y1, _, _ = taps(uv[row, column, 1], tex.shape[0], linear, boundary)
                a, b, c, d = real(y0 * x0), real(y0 * x1), real(y1 * x0), real(y1 * x1)
                for channel in range(channels):
                    upper = a * tex[top, left, channel] + b * tex[top, right, channel]
                    lower = c * tex[bottom, left, channel] + d * tex[bottom, right, channel]
                    out[row, column, channel] = upper + lower
            else:
                for channel in range(channels):
                    out[row, column, channel] = 0


@kernel
@no_type_check
def texture_backward(tex, uv, mask, linear, boundary, grad_out, grad_tex, grad_uv):
    """Adjoints of the texture and, with linear filtering, of ``uv``; an empty one is not wanted."""
    grad_tex[:] = 0
    grad_uv[:] = 0
    height, width, channels = grad_out.shape
    real, is_inner = tex.dtype.type, linear and boundary == CLAMP
    want_tex, want_uv = grad_tex.size > 0, grad_uv.size > 0
    for row in range(height):
        for column in range(width):
            if (mask.size == 0 or mask[row, column]) and is_finite(uv[row, column, 0], uv[row, column, 1]):
                if is_inner:
                    left, right, x0, x1, free_x = inner_taps(uv[row, column, 0], tex.shape[1])
                    top, bottom, y0, y1, free_y = inner_taps(uv[row, column, 1], tex.shape[0])
                    slope_x1, slope_y1 = free_x * 1.0 * tex.shape[1], free_y * 1.0 * tex.shape[0]
                    slope_x0, slope_y0 = -slope_x1, -slope_y1
                else:
                    left, right, x0, x1, slope_x0, slope_x1 = taps(uv[row, column, 0], tex.shape[1], linear, boundary)
                    top, bottom, y0, y1, slope_y0, slope_y1 = taps(uv[row, column, 1], tex.shape[0], linear, boundary)
                if want_tex:
                    a, b, c, d = real(y0 * x0), real(y0 * x1), real(y1 * x0), real(y1 * x1)
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_tex[top, left, channel] += a * grad
                        grad_tex[top, right, channel] += b * grad
                        grad_tex[bottom, left, channel] += c * grad
                        grad_tex[bottom, right, channel] += d * grad
                if want_uv:
                    grad_a = grad_b = grad_c = grad_d = real(0)
                    for channel in range(channels):
                        grad = grad_out[row, column, channel]
                        grad_a += grad * tex[top, left, channel]
                        grad_b += grad * tex[top, right, channel]
                        grad_c += grad * tex[bottom, left, channel]
                        grad_d += grad * tex[bottom, right, channel]
                    grad_left, grad_right = y0 * grad_a + y1 * grad_c, y0 * grad_b + y1 * grad_d
                    grad_top, grad_bottom = x0 * grad_a + x1 * grad_b, x0 * grad_c + x1 * grad_d
                    grad_uv[row, column, 0] = slope_x0 * grad_left + slope_x1 * grad_right
                    grad_uv[row, column, 1] = slope_y0 * grad_top + slope_y1 * grad_bottom
