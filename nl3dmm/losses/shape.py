"""Shape losses on landmarks, UV maps of positions and their residuals: per-sample values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.losses.pixels import masked_mean

_EPS = 1e-8


def landmark_distance(
    landmarks: Float[Tensor, "batch landmarks 2"],
    target: Float[Tensor, "batch landmarks 2"],
    tolerance: Float[Tensor, " batch"] | float = 0.0,
) -> Float[Tensor, " batch"]:
    """Mean Euclidean distance beyond the tolerance, in the unit of the points.

    Paper equation 7 has the squared distance; the distance itself lets a few wrong landmarks pull less.
    """
    distance = torch.sqrt(((landmarks - target) ** 2).sum(-1) + _EPS)
    return (distance - torch.as_tensor(tolerance).to(distance).reshape(-1, 1)).clamp_min(0).mean(-1)


def laplacian_smoothness(
    shape_map: Float[Tensor, "batch 3 uv_height uv_width"], mask: Bool[Tensor, "uv_height uv_width"]
) -> Float[Tensor, " batch"]:
    """Mean squared UV Laplacian over texels whose four neighbours are all in the mask.

    Paper equation 10, where it is printed without the square; the released code squares it.
    """
    centre = shape_map[:, :, 1:-1, 1:-1]
    neighbours = (
        shape_map[:, :, :-2, 1:-1] + shape_map[:, :, 2:, 1:-1] + shape_map[:, :, 1:-1, :-2] + shape_map[:, :, 1:-1, 2:]
    )
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return masked_mean(((centre - neighbours / 4) ** 2).sum(1), inner.expand(len(shape_map), -1, -1))


def residual_magnitude(
    residual: Float[Tensor, "batch channels uv_height uv_width"], mask: Bool[Tensor, "uv_height uv_width"]
) -> Float[Tensor, " batch"]:
    """l1 norm of a residual (paper equation 14), averaged over channels and the mask.

    The released code takes the shape's over vertices and the albedo's over all texels; on a template whose vertices
    are texels, vertices and texels of the mask are the same points.
    """
    return masked_mean(residual.abs().mean(1), mask.expand(len(residual), -1, -1))


def residual_soft_symmetry(
    residual: Float[Tensor, "batch 3 uv_height uv_width"], hidden: Bool[Tensor, "batch uv_height uv_width"]
) -> Float[Tensor, " batch"]:
    """Depth residual of hidden texels against the mirrored side, which is held fixed (paper equation 16).

    ``hidden`` marks texels that cannot be seen; only the z component (out of the face) is compared.
    """
    depth = residual[:, 2]
    return masked_mean((depth - depth.flip(-1).detach()).abs(), hidden)
