"""Find the face of a photo with the model itself: the crop whose encoder estimate explains the picture best."""

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.data.crop import Crop, crop_from_landmarks
from nl3dmm.geometry.camera import project
from nl3dmm.model import Face, FaceModel

_SCALES = 6  # crop sides from the photo's shorter side downwards, a factor of sqrt(2) apart
_LEAST_SIDE = 40.0  # photo px
_STRIDE = 0.25  # of the crop's side
_BATCH = 32
_REFINEMENTS = 3


def find_face(model: FaceModel, photo: Float[Tensor, "3 height width"]) -> Crop:
    """The best of a pyramid of square crops, then re-centred on its own estimate a few times.

    Analysis by synthesis: no detector and no download. It wants one clearly visible face.
    """
    size = model.config.image_size
    candidates = _candidates(photo, size)
    scores = torch.cat([_score(model, photo, candidates[i : i + _BATCH]) for i in range(0, len(candidates), _BATCH)])
    best = candidates[int(scores.argmax())]
    score = float(scores.max())
    for _ in range(_REFINEMENTS):
        refined = _recentred(model, photo, best)
        refined_score = float(_score(model, photo, [refined]))
        if refined_score <= score:
            break
        best, score = refined, refined_score
    return best


def _candidates(photo: Tensor, size: int) -> list[Crop]:
    height, width = photo.shape[-2:]
    crops, side = [], float(min(height, width)) * 1.2
    for _ in range(_SCALES):
        if side < _LEAST_SIDE and crops:
            break
        for top in _starts(height, side):
            crops += [Crop(left, top, size / side, size) for left in _starts(width, side)]
        side /= 2**0.5
    return crops


def _starts(length: int, side: float) -> list[float]:
    free = length - side
    count = max(1, round(abs(free) / (side * _STRIDE)) + 1) if free > 0 else 1
    return [free / 2] if count == 1 else [free * index / (count - 1) for index in range(count)]


@torch.no_grad()
def _score(model: FaceModel, photo: Tensor, crops: list[Crop]) -> Float[Tensor, " crops"]:
    """Explained variance, less for estimates that do not fill their crop as faces in training did."""
    pictures = torch.stack([crop.image(photo) for crop in crops]).to(model.device)
    face = model.encode(pictures)
    offset = (face.camera.translation.norm(dim=-1) / (pictures.shape[-1] / 2)).clamp_max(1)
    misfit = (face.camera.scale / model.mean_scale).log().abs()
    return explained_variance(model, pictures, face) - 0.3 * offset - 0.3 * misfit


@torch.no_grad()
def _recentred(model: FaceModel, photo: Tensor, crop: Crop) -> Crop:
    """The crop that the estimated landmarks ask for; the old one if that would leave the photo."""
    face = model.encode(crop.image(photo)[None].to(model.device))
    vertices = model.decode(face.latents).vertices_final
    landmarks, _ = project(face.camera, model.template.landmarks(vertices))
    framed = crop_from_landmarks(crop.points_to_photo(landmarks[0].cpu()), crop.size)
    side, (height, width) = framed.size / framed.scale, photo.shape[-2:]
    centre = (framed.left + side / 2, framed.top + side / 2)
    return framed if 0 < centre[0] < width and 0 < centre[1] < height else crop


@torch.no_grad()
def explained_variance(
    model: FaceModel, image: Float[Tensor, "batch 3 height width"], face: Face
) -> Float[Tensor, " batch"]:
    """1 - squared error / colour variance over the drawn face: 1 is perfect, 0 as good as one flat colour."""
    geometry = model.decode(face.latents)
    size = (image.shape[-2], image.shape[-1])
    drawn = model.render(face, geometry.vertices_final, geometry.maps.albedo_final[:, None], size)
    weight = drawn.mask[:, None].float()
    count = weight.sum((2, 3)).clamp_min(1)
    mean = (image * weight).sum((2, 3)) / count
    total = (((image - mean[..., None, None]) ** 2) * weight).sum((1, 2, 3))
    error = (((image - drawn.images[:, 0].clamp(0, 1)) ** 2) * weight).sum((1, 2, 3))
    return torch.where(total > 0, 1 - error / total.clamp_min(1e-6), torch.zeros_like(total))
