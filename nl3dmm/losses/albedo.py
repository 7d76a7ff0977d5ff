"""Albedo and light regularisers: per-sample values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.losses.pixels import masked_mean

_EPS = 1e-6


def albedo_symmetry(
    albedo: Float[Tensor, "batch 3 uv_height uv_width"], mask: Bool[Tensor, "uv_height uv_width"], dead_zone: float = 0
) -> Float[Tensor, " batch"]:
    """l1 distance to the mirrored map (paper equation 8); differences below ``dead_zone`` are free."""
    difference = (albedo - albedo.flip(-1)).abs().mean(1)
    return masked_mean((difference - dead_zone).clamp_min(0), (mask & mask.flip(-1)).expand(len(albedo), -1, -1))


def chroma(colour: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Colour divided by the sum of its channels: what stays the same under white light of any brightness."""
    return colour / colour.sum(1, keepdim=True).clamp_min(1e-2)


def _constancy_along(albedo: Tensor, reference: Tensor, mask: Tensor, axis: int, sharpness: float, power: float):
    """Weighted sum of |difference|^power over neighbour pairs along one axis, and the sum of weights."""
    size = albedo.shape[axis]
    pair = [(value.narrow(axis, 0, size - 1), value.narrow(axis, 1, size - 1)) for value in (albedo, reference)]
    both = mask.narrow(axis - 1, 0, size - 1) & mask.narrow(axis - 1, 1, size - 1)
    weight = torch.exp(-sharpness * ((pair[1][0] - pair[1][1]) ** 2).sum(1).sqrt()) * both
    squared = ((pair[0][0] - pair[0][1]) ** 2).sum(1)
    distance = (squared + _EPS) ** (power / 2) - _EPS ** (power / 2)
    return (weight * distance).sum((1, 2)), weight.sum((1, 2))


def albedo_constancy(
    albedo: Float[Tensor, "batch 3 uv_height uv_width"],
    reference_chroma: Float[Tensor, "batch 3 uv_height uv_width"],
    visible: Bool[Tensor, "batch uv_height uv_width"],
    sharpness: float = 15.0,
    power: float = 0.8,
) -> Float[Tensor, " batch"]:
    """Piecewise-constant albedo (paper equation 9): neighbours of equal image chroma should have equal albedo.

    ``reference_chroma`` comes from the input image in UV space and carries no gradient. The weighted mean of
    ``|A_i - A_j|^power`` over visible 4-neighbours with weights ``exp(-sharpness |c_i - c_j|)``.
    """
    reference = reference_chroma.detach()
    down = _constancy_along(albedo, reference, visible, 2, sharpness, power)
    right = _constancy_along(albedo, reference, visible, 3, sharpness, power)
    return (down[0] + right[0]) / (down[1] + right[1]).clamp_min(1)


def white_shading(shading: Float[Tensor, "batch points 3"]) -> Float[Tensor, " batch"]:
    """Light is white on average: squared deviation of the mean shading's channels from their mean."""
    mean = shading.mean(1)
    return ((mean - mean.mean(1, keepdim=True)) ** 2).mean(1)
