"""The similarity that lays points best on others in correspondence."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.types import TensorFields


@dataclass(frozen=True)
class Similarity(TensorFields):
    """``x -> scale * rotation @ x + translation``."""

    scale: Float[Tensor, " batch"]
    rotation: Float[Tensor, "batch 3 3"]  # proper
    translation: Float[Tensor, "batch 3"]

    def apply(self, points: Float[Tensor, "batch points 3"]) -> Float[Tensor, "batch points 3"]:
        return self.scale[:, None, None] * points @ self.rotation.mT + self.translation[:, None]


def similarity(points: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]) -> Similarity:
    """Least squares from ``points`` to ``target`` (Umeyama 1991); mirror images are not turned inside out."""
    centre, target_centre = points.mean(1, keepdim=True), target.mean(1, keepdim=True)
    source, goal = points - centre, target - target_centre
    u, s, vt = torch.linalg.svd(goal.mT @ source)
    sign = torch.det(u @ vt).sign()
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    rotation = u @ torch.diag_embed(flip) @ vt
    scale = (s * flip).sum(-1) / (source**2).sum((1, 2))
    return Similarity(scale, rotation, (target_centre - scale[:, None, None] * centre @ rotation.mT)[:, 0])


def similarity_aligned(
    points: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]
) -> Float[Tensor, "batch points 3"]:
    """``points`` moved onto ``target`` by the best rotation, translation and scale."""
    return similarity(points, target).apply(points)
