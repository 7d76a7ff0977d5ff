"""Whom to believe of how a face is turned: the encoder or the landmarks."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.fitting.optimise import Progress, optimise_faces
from nl3dmm.fitting.photometric import landmark_region, photometric_errors
from nl3dmm.fitting.stages import FitConfig
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.geometry.camera import project
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, FaceModel
from nl3dmm.types import Camera

# Half crop sizes that landmarks may be off by: our detector's by 6 % of the eyes' distance, others by what people mean
# by a contour. Pulled further, the shape gets worse than the encoder's.
FOUND_TOLERANCE, GIVEN_TOLERANCE = 0.06, 0.02
_WORSE = 1.03  # of the encoder's photometric error: from here on a pose contradicts the photo
_NOTHING = 1e3  # half crop sizes: a tolerance within which everything lies


@dataclass(frozen=True)
class PosedFaces:
    """Where to start from, what to aim at, and whose landmarks are not to be believed."""

    start: Face
    target: FitTarget
    contradicted: Bool[Tensor, " batch"]


def pose_faces(
    model: FaceModel,
    target: FitTarget,
    start: Face,
    found: Bool[Tensor, " batch"],
    config: FitConfig,
    progress: Progress = lambda step, steps, loss: None,
) -> PosedFaces:
    """Cameras by landmarks where it takes them.

    Landmarks that were given set the pose. Found ones do where the encoder's pose is not near them anyway and theirs
    does not make the picture worse; if it does they are left out, for then it is the detector that erred.

    Args:
        target: with landmarks.
        found: whose landmarks are a detector's.
        config: its ``landmark_steps`` are taken.
    """
    landmarks = target.landmarks
    if landmarks is None:
        raise TypeError("target: got no landmarks")
    size = target.image.shape[-1]
    tolerance = torch.where(found, FOUND_TOLERANCE, GIVEN_TOLERANCE).to(target.image)
    steps = replace(config, steps=config.landmark_steps, landmark=1.0, proxy_steps=0, detail_steps=0)
    posed = optimise_faces(model, replace(target, landmark_tolerance=0.0), start, steps, progress=progress).face
    with torch.no_grad():
        geometry = model.decode(start.latents)
        pixels, _ = project(start.camera, model.template.landmarks(geometry.vertices_final))
        apart = landmark_distance(pixels, landmarks) > tolerance * size / 2
        both = [(start, geometry), (replace(start, camera=posed.camera), geometry)]
        before, after = photometric_errors(model, target.image, both, landmark_region(target), target.mask)
    contradicted = found & apart & (after > _WORSE * before)
    turned = _choose(~found | (apart & ~contradicted), posed.camera, start.camera)
    tolerance = torch.where(contradicted, _NOTHING, tolerance)
    return PosedFaces(replace(start, camera=turned), replace(target, landmark_tolerance=tolerance), contradicted)


def _choose(first: Bool[Tensor, " batch"], one: Camera, other: Camera) -> Camera:
    """Of each face one or the other."""

    def pick(a: Float[Tensor, "batch ..."], b: Float[Tensor, "batch ..."]) -> Tensor:
        return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

    return Camera(**{name: pick(value, getattr(other, name)) for name, value in vars(one).items()})
