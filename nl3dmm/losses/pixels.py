"""Image losses: per-sample values; the objective weights and reduces them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPS = 1e-6


def masked_mean(
    values: Float[Tensor, "batch height width"], mask: Bool[Tensor, "batch height width"]
) -> Float[Tensor, " batch"]:
    """Mean over the True pixels of each sample; 0 where a mask is empty."""
    weight = mask.to(values.dtype)
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1)


def pixel_distance(
    image: Float[Tensor, "batch 3 height width"], target: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch height width"]:
    """Euclidean colour distance per pixel; its gradient at equality is 0."""
    return torch.sqrt(((image - target) ** 2).sum(1) + _EPS**2) - _EPS


def l21(
    image: Float[Tensor, "batch 3 height width"],
    target: Float[Tensor, "batch 3 height width"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, " batch"]:
    """l2,1 photometric loss (paper equation 4): mean over the mask of the colour distance."""
    return masked_mean(pixel_distance(image, target), mask)


def gradient_difference(
    image: Float[Tensor, "batch 3 height width"],
    target: Float[Tensor, "batch 3 height width"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, " batch"]:
    """l1 distance of the horizontal and of the vertical image differences, added (ablation of paper section 4.1).

    Each is the mean over channels and over the neighbours that are both in the mask. (The released code takes the
    vertical differences twice.)
    """
    error, total = image - target, image.new_zeros(len(image))
    for axis in (2, 3):
        size = error.shape[axis] - 1
        both = mask.narrow(axis - 1, 0, size) & mask.narrow(axis - 1, 1, size)
        total = total + masked_mean(error.diff(dim=axis).abs().mean(1), both)
    return total


def feature_distance(
    features: list[Float[Tensor, "batch _ _ _"]],
    target_features: list[Float[Tensor, "batch _ _ _"]],
    weights: Sequence[float] | None = None,
    relative: bool = True,
) -> Float[Tensor, " batch"]:
    """Perceptual loss (paper equation 5): mean squared distance, weighted (default 1 each) and summed over layers.

    If ``relative``, each layer is divided by the target's mean square over the batch, so that every layer weighs
    alike whatever the network's scale.
    """
    total = features[0].new_zeros(len(features[0]))
    weights = [1.0] * len(features) if weights is None else weights
    for feature, target, weight in zip(features, target_features, weights, strict=True):
        distance = ((feature - target) ** 2).mean((1, 2, 3))
        if relative:
            distance = distance / (target**2).mean().clamp_min(_EPS).detach()
        total = total + weight * distance
    return total
