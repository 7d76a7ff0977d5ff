"""Image losses: per-sample values; the objective weights and reduces them."""

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


def feature_distance(
    features: list[Float[Tensor, "batch _ _ _"]], target_features: list[Float[Tensor, "batch _ _ _"]]
) -> Float[Tensor, " batch"]:
    """Perceptual loss (paper equation 5): mean squared distance, summed over layers.

    Each layer is divided by the target's mean square, so that every layer weighs alike whatever the network's scale.
    """
    total = features[0].new_zeros(len(features[0]))
    for feature, target in zip(features, target_features, strict=True):
        scale = (target**2).mean().clamp_min(_EPS).detach()
        total = total + ((feature - target) ** 2).mean((1, 2, 3)) / scale
    return total
