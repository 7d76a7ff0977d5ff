"""How a face is turned, from its 68 landmarks alone."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.assets.embedded import embedded_template
from nl3dmm.geometry.camera import camera_from_matrix


def yaw_of(points: Float[Tensor, "68 2"]) -> float:
    """Degrees, of the weak-perspective camera that lays the embedded face's inner points best on these (px).

    Positive turns to image right. Within a few degrees up to 70; points that are not those of a face give any angle.
    """
    model = _inner_points()
    target = points[17:] * points.new_tensor([1, -1])
    solution = torch.linalg.lstsq(model - model.mean(0), target - target.mean(0)).solution.T
    scale = solution.norm() / 2**0.5
    logits = (solution / scale - torch.eye(2, 3)).flatten()[None]
    camera = camera_from_matrix(torch.cat([logits, torch.zeros(1, 2)], 1), (1, 1), 1.0)
    forward = camera.rotation[0, :, 2]
    return float(torch.atan2(forward[0], forward[2]).rad2deg())


@cache
def _inner_points() -> Float[Tensor, "51 3"]:
    """Brows to mouth, mm."""
    template = embedded_template((32, 32))
    return template.landmarks(template.vertices[None])[0, 17:]
