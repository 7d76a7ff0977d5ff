"""Augmentation of ``FaceBatch``es: what is known of a face moves with its picture.

Each step is a pure function of a batch and of ``Draws``, so that an augmented sample too is a function of
``(seed, index)``. Hair, glasses and what else hides a face: ``data.dressing``; pictures without faces:
``synthetic.clutter``.
"""

import math
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.assets.landmarks import MIRROR_68
from nl3dmm.config import check_range
from nl3dmm.data.dressing import add_glasses, add_hair, add_objects, replace_background
from nl3dmm.errors import ShapeError
from nl3dmm.geometry.plane import PlaneSimilarity, similarity_onto
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import Camera, FaceBatch

_ODD_IN_X = (3, 4, 7)  # spherical harmonics x, xy, xz
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the motion, strength of the colour changes, and how probable each of the others is."""

    turn: float = 30.0  # degrees, uniform in +-turn about the image's centre
    zoom: float = 0.2  # the scale is uniform in 1 +- zoom
    shift: float = 0.08  # of the image's size, uniform in +-shift
    mirror: float = 0.5
    background: float = 0.5
    hair: float = 0.5
    glasses: float = 0.2
    objects: float = 0.25
    colour: float = 1.0  # 1: strong but still a photo; 0: none
    grey: float = 0.25
    shadow: float = 0.3
    blur: float = 0.4
    jpeg: float = 0.3
    noise: float = 0.035  # largest deviation

    def __post_init__(self) -> None:
        limits = {"turn": 180.0, "zoom": 0.9, "shift": 1.0, "colour": 3.0}
        for item in fields(self):
            check_range(f"augment.{item.name}", getattr(self, item.name), 0, limits.get(item.name, 1.0))


def augment(
    batch: FaceBatch, config: AugmentConfig, draws: Draws, vertex_mirror: Int[Tensor, " vertices"] | None = None
) -> FaceBatch:
    """Moved, mirrored, dressed, coloured and degraded, in this order.

    Args:
        batch: square or not; with landmarks if anything is to be drawn on the faces.
        vertex_mirror: the template's ``mirror``; needed to mirror a batch with vertices.
    """
    moved = mirror(move(batch, config, draws), draws.chance(config.mirror) > 0, vertex_mirror)
    return degrade(colour(dress(moved, config, draws), config, draws), config, draws)


def move(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """A random similarity about the image's centre; beyond the picture its edge is repeated."""
    size = batch.image.shape[-1]
    centre = torch.full((len(batch.image), 2), size / 2)
    angle = draws.uniform(-config.turn, config.turn) * math.pi / 180
    scale = draws.uniform(1 - config.zoom, 1 + config.zoom)
    target = centre + draws.uniform(-config.shift, config.shift, 2) * size
    return transformed(batch, similarity_onto(centre, target, scale, angle))


def transformed(batch: FaceBatch, motion: PlaneSimilarity) -> FaceBatch:
    """All that is known in pixels or in the camera's frame, moved; the size of the pictures stays.

    Raises:
        ShapeError: the pictures are not square.
    """
    height, width = batch.image.shape[-2:]
    if height != width:
        raise ShapeError(f"batch.image: got {width} x {height} px; expected squares. Crop the photos first.")
    mask = batch.mask
    if mask is not None:
        mask = motion.pictures(mask[:, None].float(), width, "zeros")[:, 0] > 0.5
    return replace(
        batch,
        image=motion.pictures(batch.image, width),
        landmarks=None if batch.landmarks is None else motion.points(batch.landmarks),
        mask=mask,
        camera=None if batch.camera is None else motion.camera(batch.camera),
        sh_coefficients=_turned_light(batch.sh_coefficients, motion.angle),
    )


def mirror(batch: FaceBatch, chosen: Tensor, vertex_mirror: Int[Tensor, " vertices"] | None = None) -> FaceBatch:
    """Exchange left and right of the chosen samples, of the persons too: the 68 points and the vertices keep their
    meaning.

    Raises:
        ShapeError: the batch has vertices and ``vertex_mirror`` is missing.
    """
    if batch.vertices is not None and vertex_mirror is None:
        raise ShapeError("vertex_mirror: got None; expected the template's mirror, as the batch has vertices. Pass it.")
    width = batch.image.shape[-1]
    other = replace(
        batch,
        image=batch.image.flip(-1),
        mask=None if batch.mask is None else batch.mask.flip(-1),
        landmarks=None if batch.landmarks is None else mirrored_points(batch.landmarks, width),
        camera=None if batch.camera is None else _mirrored_camera(batch.camera, width),
        sh_coefficients=None if batch.sh_coefficients is None else _mirrored_light(batch.sh_coefficients),
        vertices=None if batch.vertices is None else batch.vertices[:, vertex_mirror] * _flip(batch.vertices),
        albedo=None if batch.albedo is None else batch.albedo.flip(-1),
    )
    return _where(chosen, other, batch)


def dress(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Another background, hair, glasses and objects; ``mask`` loses what they hide. Without landmarks, nothing."""
    if batch.landmarks is None:
        return batch
    batch = replace_background(batch, draws, draws.chance(config.background))
    batch = add_hair(batch, draws, draws.chance(config.hair))
    batch = add_glasses(batch, draws, draws.chance(config.glasses))
    return add_objects(batch, draws, draws.chance(config.objects))


def colour(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Shadows, gain per channel, saturation, contrast, brightness and gamma; some pictures grey."""
    strength, picture = config.colour, batch.image
    shade = F.interpolate(draws.uniform(0, 1, 1, 3, 3), picture.shape[-2:], mode="bilinear", align_corners=False)
    depth = draws.uniform(0, 0.7, 1, 1, 1) * draws.chance(config.shadow, 1, 1, 1)
    picture = picture * (1 - depth * shade)
    grey = (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    saturation = 1 + strength * draws.uniform(-0.7, 0.3, 1, 1, 1)
    saturation = saturation * (1 - draws.chance(config.grey, 1, 1, 1))
    picture = grey + (picture - grey) * saturation.clamp_min(0)
    gain = torch.exp(strength * (draws.normal(0.1, 0.3, 3, 1, 1) * (saturation > 0) + draws.normal(0.15, 0.4, 1, 1, 1)))
    contrast = torch.exp(strength * draws.uniform(-0.7, 0.4, 1, 1, 1))
    level = picture.mean((1, 2, 3), keepdim=True)
    picture = level + (picture * gain - level) * contrast + strength * draws.normal(0.08, 0.2, 1, 1, 1)
    gamma = torch.exp(strength * draws.uniform(-0.5, 0.5, 1, 1, 1))
    return replace(batch, image=picture.clamp(1e-4, 1) ** gamma)


def degrade(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Fewer pixels or blur, JPEG, and noise."""
    picture = _blurred(batch.image, draws, config.blur)
    grain = draws.normal(1.0, 3.0, *picture.shape[1:]) * draws.uniform(0, config.noise, 1, 1, 1)
    picture = (picture + grain * draws.chance(0.7, 1, 1, 1)).clamp(0, 1)
    return replace(batch, image=_as_jpeg(picture, draws, config.jpeg))


def _blurred(picture: Tensor, draws: Draws, probability: float) -> Tensor:
    """Up to a third of the pixels in each direction, back by repetition or smoothly; or a small mean filter."""
    kind = draws.uniform(0, 4).long()
    wanted = draws.chance(probability)
    size = picture.shape[-2:]
    fewer = draws.uniform(0.3, 0.8)
    result = picture.clone()
    for row in wanted.nonzero()[:, 0].tolist():
        one = picture[row : row + 1]
        if kind[row] == 0:
            result[row] = F.avg_pool2d(one, 3, 1, 1, count_include_pad=False)[0]
            continue
        small_size = [max(8, round(side * float(fewer[row]))) for side in size]
        small = F.interpolate(one, small_size, mode="bilinear", antialias=True, align_corners=False)
        mode = "nearest" if kind[row] == 1 else "bilinear"
        result[row] = F.interpolate(small, size, mode=mode)[0]
    return result


def _as_jpeg(picture: Tensor, draws: Draws, probability: float) -> Tensor:
    """Through an encoder and a decoder at a quality between 10 and 80."""
    quality = draws.uniform(10, 80)
    result = picture.clone()
    for row in draws.chance(probability).nonzero()[:, 0].tolist():
        levels = (picture[row].flip(0) * 255).round().to(torch.uint8).permute(1, 2, 0)  # OpenCV's B, G, R
        _, code = cv2.imencode(".jpg", levels.contiguous().numpy(), [cv2.IMWRITE_JPEG_QUALITY, int(quality[row])])
        decoded = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
        result[row] = torch.from_numpy(decoded).permute(2, 0, 1).flip(0).float() / 255
    return result


def _flip(values: Tensor) -> Tensor:
    return values.new_tensor([-1.0, 1.0, 1.0])


def mirrored_points(points: Float[Tensor, "batch 68 2"], width: int) -> Float[Tensor, "batch 68 2"]:
    """Landmarks (px) of a face in the mirror image of its picture."""
    flipped = torch.stack([width - points[..., 0], points[..., 1]], -1)
    return flipped[:, torch.from_numpy(MIRROR_68)]


def _mirrored_camera(camera: Camera, width: int) -> Camera:
    flip = _flip(camera.rotation)
    principal_point = camera.principal_point * camera.principal_point.new_tensor([-1, 1])
    return replace(
        camera,
        rotation=flip[:, None] * camera.rotation * flip,
        translation=camera.translation * camera.translation.new_tensor([-1, 1]),
        principal_point=principal_point + principal_point.new_tensor([width, 0]),
    )


def _mirrored_light(light: Tensor) -> Tensor:
    sign = light.new_ones(9)
    sign[list(_ODD_IN_X)] = -1
    return light * sign


def _turned_light(light: Tensor | None, angle: Tensor) -> Tensor | None:
    """Light lives in the camera's frame, where a picture that turns clockwise turns y towards x."""
    if light is None:
        return None
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    c2, s2 = (2 * angle).cos()[:, None], (2 * angle).sin()[:, None]
    one, y, z, x, xy, yz, zz, xz, xx_yy = light.unbind(-1)
    first = (one, c * y - s * x, z, c * x + s * y)
    second = (c2 * xy - s2 * xx_yy, c * yz - s * xz, zz, c * xz + s * yz, c2 * xx_yy + s2 * xy)
    return torch.stack([*first, *second], -1)


def _where(chosen: Tensor, yes, no):
    """Samples of ``yes`` where chosen, else of ``no``, field by field."""
    picked = {}
    for item in fields(no):
        first, second = getattr(yes, item.name), getattr(no, item.name)
        if isinstance(second, Camera):
            picked[item.name] = _where(chosen, first, second)
        elif isinstance(second, Tensor):
            picked[item.name] = torch.where(chosen.view(-1, *[1] * (second.ndim - 1)), first, second)
    return replace(no, **picked)
