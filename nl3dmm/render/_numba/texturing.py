"""Texture fetch on CPU: numba kernels for one image each, and the autograd function around them.

A kernel's ``mask`` may be empty: all pixels count.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays, repeat, summed
from nl3dmm.render._pool import run_images

CLAMP, WRAP, ZERO = 0, 1, 2
_BOUNDARY = {"clamp": CLAMP, "wrap": WRAP, "zero": ZERO}


def texture(
    tex: Float[Tensor, "tex_batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    mask = mask if mask is not None else uv.new_empty((uv.shape[0], 0, 0), dtype=torch.bool)
    return _Texture.apply(tex, uv, mask, filter_mode == "linear", _BOUNDARY[boundary_mode])


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
        linear, boundary = ctx.linear, ctx.boundary
        grad_tex = tex.new_empty(len(uv) if want_tex else 0, *tex.shape[1:])
        grad_uv = uv.new_empty(uv.shape if want_uv else 0)
        t, c, m, from_out = arrays(repeat(tex, len(uv)), uv, mask, grad_out.contiguous())
        to_tex, to_uv = arrays(grad_tex, grad_uv)

        def image(i: int) -> None:
            if want_tex:
                texture_backward_tex(c[i], m[i], linear, boundary, from_out[i], to_tex[i])
            if want_uv:
                texture_backward_uv(t[i], c[i], m[i], boundary, from_out[i], to_uv[i])

        run_images(image, len(uv), ctx.threads)
        return summed(grad_tex, len(tex)) if want_tex else None, grad_uv if want_uv else None, None, None, None


@kernel
@no_type_check
def taps(coordinate, size, linear, boundary):
    """Two texel indices along one axis, their weights, and the slopes of the weights.

    A texel that does not exist (boundary ``zero``) is another texel with weight and slope 0.
    """
    position = np.float64(coordinate)
    if boundary == WRAP:
        position -= np.floor(position)
    position = position * size - (0.5 if linear else 0.0)
    slope = 1.0 * size if linear else 0.0
    low, high = (0.0, size - 1.0) if boundary == CLAMP else (-1.0, 1.0 * size)
    if position < low or position > high:
        position, slope = min(max(position, low), high), 0.0
    base = np.floor(position)
    first = np.int64(base)
    second = first + 1 if linear else first
    second_weight = position - base if linear else 1.0
    first_weight, first_slope, second_slope = 1.0 - second_weight, -slope, slope
    if boundary == ZERO:
        if first < 0 or first >= size:
            first, first_weight, first_slope = 0, 0.0, 0.0
        if second < 0 or second >= size:
            second, second_weight, second_slope = 0, 0.0, 0.0
    else:
        if first < 0:
            first += size
        if first >= size:
            first -= size
        if second >= size:
            second = 0 if boundary == WRAP else size - 1
    return first, second, first_weight, second_weight, first_slope, second_slope


@kernel
@no_type_check
def is_finite(u, v):
    return np.isfinite(u) and np.isfinite(v)


@kernel
@no_type_check
def texture_image(tex, uv, mask, linear, boundary, out):
    """Sample the pixels that are in the mask and have finite coordinates."""
    height, width, channels = out.shape
    real = tex.dtype.type
    for row in range(height):
        for column in range(width):
            if (mask.size == 0 or mask[row, column]) and is_finite(uv[row, column, 0], uv[row, column, 1]):
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
def texture_backward_tex(uv, mask, linear, boundary, grad_out, grad_tex):
    grad_tex[:] = 0
    height, width, channels = grad_out.shape
    real = grad_tex.dtype.type
    for row in range(height):
        for column in range(width):
            if (mask.size == 0 or mask[row, column]) and is_finite(uv[row, column, 0], uv[row, column, 1]):
                left, right, x0, x1, _, _ = taps(uv[row, column, 0], grad_tex.shape[1], linear, boundary)
                top, bottom, y0, y1, _, _ = taps(uv[row, column, 1], grad_tex.shape[0], linear, boundary)
                a, b, c, d = real(y0 * x0), real(y0 * x1), real(y1 * x0), real(y1 * x1)
                for channel in range(channels):
                    grad = grad_out[row, column, channel]
                    grad_tex[top, left, channel] += a * grad
                    grad_tex[top, right, channel] += b * grad
                    grad_tex[bottom, left, channel] += c * grad
                    grad_tex[bottom, right, channel] += d * grad


@kernel
@no_type_check
def texture_backward_uv(tex, uv, mask, boundary, grad_out, grad_uv):
    """Adjoint of linear sampling to ``uv``; nearest sampling has none."""
    grad_uv[:] = 0
    height, width, channels = grad_out.shape
    for row in range(height):
        for column in range(width):
            if (mask.size == 0 or mask[row, column]) and is_finite(uv[row, column, 0], uv[row, column, 1]):
                left, right, x0, x1, slope_x0, slope_x1 = taps(uv[row, column, 0], tex.shape[1], True, boundary)
                top, bottom, y0, y1, slope_y0, slope_y1 = taps(uv[row, column, 1], tex.shape[0], True, boundary)
                grad_a = grad_b = grad_c = grad_d = tex.dtype.type(0)
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
