"""Light on CPU: numba kernels for one image each, and the autograd functions around them.

The loops over points and texels hold no branch and no call, so that the compiler makes vector instructions of them.
"""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.geometry.lighting import SH_SCALES, Encoding
from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays
from nl3dmm.render._numba._srgb import decode, decode_backward, encode, encode_backward
from nl3dmm.render._pool import run_images

_BLOCK = 128  # points at a time, each coordinate in its own row: 20 kB of float32 at most


def shade(
    normals: Float[Tensor, "batch points 3"], sh_coefficients: Float[Tensor, "batch 3 9"], least_length: float
) -> Float[Tensor, "batch points 3"]:
    return _Shade.apply(normals, sh_coefficients * sh_coefficients.new_tensor(SH_SCALES), least_length)


def light_albedo(
    albedo: Float[Tensor, "maps height width textures 3"],
    shading: Float[Tensor, "batch height width 3"],
    encoding: Encoding,
) -> Float[Tensor, "batch height width textures 3"]:
    return _LightAlbedo.apply(albedo, shading, encoding == "srgb")


class _Shade(torch.autograd.Function):
    """Sums of the nine polynomials of the normal: 1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2."""

    @staticmethod
    def forward(ctx: Any, normals: Tensor, weights: Tensor, least_length: float) -> Tensor:
        normals, weights = normals.contiguous(), weights.contiguous()
        out = torch.empty_like(normals)
        n, w, to_out = arrays(normals, weights, out)
        ctx.threads, ctx.least_length = torch.get_num_threads(), least_length
        run_images(lambda i: shade_image(n[i], w[i], least_length, to_out[i]), len(out), ctx.threads)
        ctx.save_for_backward(normals, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        normals, weights = ctx.saved_tensors
        want_normals, want_weights = ctx.needs_input_grad[:2]
        grad_normals, grad_weights = torch.empty_like(normals), torch.empty_like(weights)
        n, w, from_out = arrays(normals, weights, grad_out.contiguous())
        to_normals, to_weights = arrays(grad_normals, grad_weights)

        def image(i: int) -> None:
            if want_normals:
                shade_backward_normals(n[i], w[i], ctx.least_length, from_out[i], to_normals[i])
            if want_weights:
                shade_backward_weights(n[i], ctx.least_length, from_out[i], to_weights[i])

        run_images(image, len(normals), ctx.threads)
        return grad_normals if want_normals else None, grad_weights if want_weights else None, None


class _LightAlbedo(torch.autograd.Function):
    """One task per map: decoded once, it meets the shading of each image that wears it."""

    @staticmethod
    def forward(ctx: Any, albedo: Tensor, shading: Tensor, is_srgb: bool) -> Tensor:
        shading = shading.contiguous()
        maps, height, width, textures, _ = albedo.shape
        linear = albedo.new_empty(maps, height, textures, 3, width)
        out = shading.new_empty(len(shading), height, width, textures, 3)
        a, s, to_linear, to_out = arrays(albedo, shading, linear, out)

        def wear(i: int) -> None:
            decode_map(a[i], is_srgb, to_linear[i])
            for image in range(i, len(s), len(a)):
                light_image(to_linear[i], s[image], is_srgb, to_out[image])

        ctx.threads, ctx.is_srgb = torch.get_num_threads(), is_srgb
        run_images(wear, maps, ctx.threads)
        ctx.save_for_backward(albedo, shading, linear)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        albedo, shading, linear = ctx.saved_tensors
        grad_albedo, grad_shading = torch.empty_like(albedo), torch.empty_like(shading)
        a, s, li, from_out = arrays(albedo, shading, linear, grad_out.contiguous())
        to_albedo, to_shading = arrays(grad_albedo, grad_shading)

        def wear(i: int) -> None:
            to_linear = np.zeros_like(li[i])
            for image in range(i, len(s), len(a)):
                light_backward(li[i], s[image], ctx.is_srgb, from_out[image], to_linear, to_shading[image])
            decode_map_backward(a[i], li[i], ctx.is_srgb, to_linear, to_albedo[i])

        run_images(wear, len(albedo), ctx.threads)
        return grad_albedo, grad_shading, None


@kernel
@no_type_check
def direction(x, y, z, least_length):
    """The vector over its length, or over ``least_length`` where that is more, and one over the divisor.

    The vector itself if ``least_length`` is 0.
    """
    real = type(x)
    length = np.sqrt(x * x + y * y + z * z)
    divisor = real(least_length) if length < real(least_length) else length
    scale = real(1) / divisor if least_length > 0 else real(1)
    return x * scale, y * scale, z * scale, scale


@kernel
@no_type_check
def shade_image(normals, weights, least_length, out):
    w, three = weights, weights.dtype.type(3)  # a plain 3 is an int64: its product with a float32 is a float64
    planes = np.empty((6, _BLOCK), normals.dtype)  # x, y, z, red, green, blue
    for start in range(0, normals.shape[0], _BLOCK):
        count = min(_BLOCK, normals.shape[0] - start)
        for i in range(count):
            for c in range(3):
                planes[c, i] = normals[start + i, c]
        for i in range(count):
            x, y, z, _ = direction(planes[0, i], planes[1, i], planes[2, i], least_length)
            for c in range(3):
                along_x = x * (w[c, 3] + w[c, 4] * y + w[c, 7] * z + w[c, 8] * x)
                along_y = y * (w[c, 1] + w[c, 5] * z - w[c, 8] * y)
                along_z = z * (w[c, 2] + three * w[c, 6] * z)
                planes[3 + c, i] = w[c, 0] - w[c, 6] + along_x + along_y + along_z
        for i in range(count):
            for c in range(3):
                out[start + i, c] = planes[3 + c, i]


@kernel
@no_type_check
def shade_backward_normals(normals, weights, least_length, grad_out, grad_normals):
    w, real = weights, weights.dtype.type
    one, two, six = real(1), real(2), real(6)
    planes = np.empty((9, _BLOCK), normals.dtype)  # normal, gradient of the colour, gradient of the normal
    for start in range(0, normals.shape[0], _BLOCK):
        count = min(_BLOCK, normals.shape[0] - start)
        for i in range(count):
            for c in range(3):
                planes[c, i], planes[3 + c, i] = normals[start + i, c], grad_out[start + i, c]
        for i in range(count):
            x, y, z, scale = direction(planes[0, i], planes[1, i], planes[2, i], least_length)
            grad_x = grad_y = grad_z = real(0)
            for c in range(3):
                grad = planes[3 + c, i]
                grad_x += grad * (w[c, 3] + w[c, 4] * y + w[c, 7] * z + two * w[c, 8] * x)
                grad_y += grad * (w[c, 1] + w[c, 4] * x + w[c, 5] * z - two * w[c, 8] * y)
                grad_z += grad * (w[c, 2] + w[c, 5] * y + w[c, 7] * x + six * w[c, 6] * z)
            radial = x * grad_x + y * grad_y + z * grad_z  # lost where the vector was divided by its own length
            radial = radial if least_length > 0 and scale * real(least_length) < one else real(0)
            planes[6, i], planes[7, i] = (grad_x - radial * x) * scale, (grad_y - radial * y) * scale
            planes[8, i] = (grad_z - radial * z) * scale
        for i in range(count):
            for c in range(3):
                grad_normals[start + i, c] = planes[6 + c, i]


@kernel
@no_type_check
def shade_backward_weights(normals, least_length, grad_out, grad_weights):
    one, three = normals.dtype.type(1), normals.dtype.type(3)
    planes, grad = np.empty((9, _BLOCK), normals.dtype), np.empty((3, _BLOCK), normals.dtype)
    sums = np.zeros((3, 9, _BLOCK), normals.dtype)  # many short sums: vector instructions, and small rounding errors
    for start in range(0, normals.shape[0], _BLOCK):
        count = min(_BLOCK, normals.shape[0] - start)
        for i in range(count):
            for c in range(3):
                planes[c, i], grad[c, i] = normals[start + i, c], grad_out[start + i, c]
        for i in range(count):
            x, y, z, _ = direction(planes[0, i], planes[1, i], planes[2, i], least_length)
            planes[0, i], planes[1, i], planes[2, i], planes[3, i], planes[4, i] = one, y, z, x, x * y
            planes[5, i], planes[6, i], planes[7, i] = y * z, three * z * z - one, x * z
            planes[8, i] = x * x - y * y
        for c in range(3):
            for k in range(9):
                for i in range(count):
                    sums[c, k, i] += grad[c, i] * planes[k, i]
    for c in range(3):
        for k in range(9):
            total = 0.0
            for i in range(_BLOCK):
                total += sums[c, k, i]
            grad_weights[c, k] = total


@kernel
@no_type_check
def decode_map(albedo, is_srgb, linear):
    """(height, width, textures, 3) -> (height, textures, 3, width): the loops below run along rows of texels."""
    for row in range(linear.shape[0]):
        for texture in range(linear.shape[1]):
            for c in range(3):
                linear[row, texture, c] = albedo[row, :, texture, c]
        if is_srgb:
            decode(linear[row].ravel())


@kernel
@no_type_check
def decode_map_backward(albedo, linear, is_srgb, grad_linear, grad_albedo):
    """Overwrites ``grad_linear``."""
    encoded = np.empty(linear.shape[1:], linear.dtype)
    for row in range(linear.shape[0]):
        if is_srgb:
            for texture in range(linear.shape[1]):
                for c in range(3):
                    encoded[texture, c] = albedo[row, :, texture, c]
            decode_backward(encoded.ravel(), linear[row].ravel(), grad_linear[row].ravel())
        for texture in range(linear.shape[1]):
            for c in range(3):
                grad_albedo[row, :, texture, c] = grad_linear[row, texture, c]


@kernel
@no_type_check
def light_image(linear, shading, is_srgb, out):
    height, textures, _, width = linear.shape
    lit = np.empty((3, width), out.dtype)
    for row in range(height):
        for texture in range(textures):
            for c in range(3):
                for column in range(width):
                    lit[c, column] = linear[row, texture, c, column] * shading[row, column, c]
            if is_srgb:
                encode(lit.ravel())
            for column in range(width):
                for c in range(3):
                    out[row, column, texture, c] = lit[c, column]


@kernel
@no_type_check
def light_backward(linear, shading, is_srgb, grad_out, grad_linear, grad_shading):
    """Adds to ``grad_linear``, which several images share, and fills ``grad_shading``."""
    height, textures, _, width = linear.shape
    planes = (3, width)
    light, grad_light = np.empty(planes, linear.dtype), np.empty(planes, linear.dtype)
    lit, grad = np.empty(planes, linear.dtype), np.empty(planes, linear.dtype)
    for row in range(height):
        grad_light[:] = 0
        for column in range(width):
            for c in range(3):
                light[c, column] = shading[row, column, c]
        for texture in range(textures):
            for column in range(width):
                for c in range(3):
                    grad[c, column] = grad_out[row, column, texture, c]
            if is_srgb:
                for c in range(3):
                    for column in range(width):
                        lit[c, column] = linear[row, texture, c, column] * light[c, column]
                encode_backward(lit.ravel(), grad.ravel())
            for c in range(3):
                for column in range(width):
                    grad_linear[row, texture, c, column] += grad[c, column] * light[c, column]
                    grad_light[c, column] += grad[c, column] * linear[row, texture, c, column]
        for column in range(width):
            for c in range(3):
                grad_shading[row, column, c] = grad_light[c, column]
