"""How near pictures of fitted faces are to the photo."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.data.crop import hull_mask
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.losses.pixels import masked_mean, pixel_distance
from nl3dmm.model import Face, FaceModel, Geometry


def landmark_region(target: FitTarget) -> Bool[Tensor, "batch height width"] | None:
    """The pixels that the landmarks enclose, where there are any."""
    if target.landmarks is None:
        return None
    hulls = [hull_mask(points, target.image.shape[-1]) for points in target.landmarks.cpu()]
    return torch.stack(hulls).to(target.image.device)


@torch.no_grad()
def photometric_errors(
    model: FaceModel,
    image: Float[Tensor, "batch 3 height width"],
    estimates: list[tuple[Face, Geometry]],
    region: Bool[Tensor, "batch height width"] | None = None,
    mask: Bool[Tensor, "batch height width"] | None = None,
) -> list[Float[Tensor, " batch"]]:
    """l2,1 of (S, A) of several estimates over one region of pixels; what an estimate does not cover is black there.

    Without a region: all pixels that any of the estimates covers. Of either only those count that ``mask`` shows.
    """
    size = (image.shape[-2], image.shape[-1])
    pictures, covered = [], torch.zeros_like(image[:, 0], dtype=torch.bool)
    for face, geometry in estimates:
        drawn = model.render_final(face, geometry, size)
        pictures.append(drawn.images[:, 0].clamp(0, 1))
        covered = covered | drawn.mask
    region = covered if region is None else region
    region = region if mask is None else region & mask
    return [masked_mean(pixel_distance(picture, image), region) for picture in pictures]
