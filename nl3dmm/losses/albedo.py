"""Albedo regularisers: per-sample values."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.losses.pixels import masked_mean

_EPS = 1e-6
_WORD = 0xFFFFFFFF


def albedo_symmetry(
    albedo: Float[Tensor, "batch 3 uv_height uv_width"], mask: Bool[Tensor, "uv_height uv_width"], dead_zone: float = 0
) -> Float[Tensor, " batch"]:
    """l1 distance to the mirrored map (paper equation 8), averaged over channels and texels with a mirror image.

    Differences below ``dead_zone`` (released code) are free.
    """
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
    ``|A_i - A_j|^power`` over visible 4-neighbours with weights ``exp(-sharpness |c_i - c_j|)``; sharpness and power
    are the released code's, in which the weights cancel by mistake.
    """
    reference = reference_chroma.detach()
    down = _constancy_along(albedo, reference, visible, 2, sharpness, power)
    right = _constancy_along(albedo, reference, visible, 3, sharpness, power)
    return (down[0] + right[0]) / (down[1] + right[1]).clamp_min(1)


def random_pairs(
    texels: Int[Tensor, " texels"], index: Int[Tensor, " batch"], step: int, pairs: int = 20
) -> Int[Tensor, "batch 2 pairs"]:
    """Pairs drawn from ``texels``: a function of sample, step and pair, equal in any batch and on any device."""
    draw = torch.arange(2 * pairs, device=index.device)
    state = _scramble(_scramble(_scramble(index.long()) + step)[:, None] + draw)
    return texels[state % len(texels)].unflatten(1, (2, pairs))


def _scramble(value: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """An integer hash of 32 bits: neighbouring values give unrelated ones."""
    value = value & _WORD
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & _WORD
    return value ^ (value >> 16)


def pair_constancy(
    albedo: Float[Tensor, "batch 3 uv_height uv_width"], pairs: Int[Tensor, "batch 2 pairs"], dead_zone: float = 0.01
) -> Float[Tensor, " batch"]:
    """Skin has one colour: l1 distance of pairs of texels, numbered row by row (released code, not in the paper).

    Differences of a channel below ``dead_zone`` are free. (The released code writes ``max(difference, dead_zone)``:
    the same gradient, with a minimum of ``dead_zone`` instead of 0.)
    """
    chosen = pairs.flatten(1)[:, None].expand(-1, 3, -1)
    first, second = albedo.flatten(2).gather(2, chosen).chunk(2, 2)
    return ((first - second).abs() - dead_zone).clamp_min(0).mean((1, 2))
