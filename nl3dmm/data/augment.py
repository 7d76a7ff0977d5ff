"""Augmentation of ``FaceBatch``es: what is known of a face moves with its picture.

Each step is a pure function of a batch and of ``Draws``, so that an augmented sample too is a function of
``(seed, index)``, whatever its batch is. How truth moves: ``data.motion``; hair, glasses and what else hides a face:
``data.dressing``.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.data.dressing import add_glasses, add_hair, add_objects, replace_background
from nl3dmm.data.motion import changed, mirror, transformed
from nl3dmm.geometry.plane import PlaneSimilarity, similarity_onto
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch, concatenate

_LUMA = (0.299, 0.587, 0.114)
_GRAIN = 2**18  # places where the grain of a picture may begin
_GRAINY = 0.7  # share of the pictures with grain
Change = Callable[[FaceBatch, Draws], FaceBatch]


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


NONE = AugmentConfig(**{item.name: 0.0 for item in fields(AugmentConfig)})
# Mild: photos differ by themselves. Never grey: no light explains it, so it would be learned as albedo. The motion
# stays within the margin of stored crops.
PHOTOS = AugmentConfig(
    turn=3.0,
    zoom=0.03,
    shift=0.02,
    background=0.0,
    hair=0.0,
    glasses=0.05,
    objects=0.15,
    colour=0.3,
    grey=0.0,
    shadow=0.1,
    blur=0.15,
    jpeg=0.15,
    noise=0.015,
)


def augment(
    batch: FaceBatch, config: AugmentConfig, draws: Draws, vertex_mirror: Int[Tensor, " vertices"] | None = None
) -> FaceBatch:
    """Moved, then ``alter``ed.

    Args:
        batch: with landmarks if anything is to be drawn on the faces; square if anything moves.
        vertex_mirror: the template's ``mirror``; needed to mirror a batch with vertices.
    """
    if config.turn or config.zoom or config.shift:
        batch = move(batch, config, draws)
    return alter(batch, config, draws, vertex_mirror)


def alter(
    batch: FaceBatch, config: AugmentConfig, draws: Draws, vertex_mirror: Int[Tensor, " vertices"] | None = None
) -> FaceBatch:
    """Mirrored, dressed, coloured and degraded, in this order; sample by sample, whose pictures fit into the cache."""

    def altered(row: int) -> FaceBatch:
        own, one = draws[torch.tensor([row])], batch[row]
        if config.mirror:
            one = mirror(one, own.chance(config.mirror) > 0, vertex_mirror)
        return degrade(colour(dress(one, config, own), config, own), config, own)

    return concatenate([altered(row) for row in range(len(batch.image))])


def move(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """A random similarity; beyond the picture its edge is repeated."""
    return transformed(batch, random_motion(config, draws, batch.image.shape[-1]))


def random_motion(config: AugmentConfig, draws: Draws, size: int) -> PlaneSimilarity:
    """About the centre of squares of ``size`` px."""
    angle = draws.uniform(-config.turn, config.turn) * math.pi / 180
    scale = draws.uniform(1 - config.zoom, 1 + config.zoom)
    shift = draws.uniform(-config.shift, config.shift, 2)
    return similarity_onto(torch.full_like(shift, size / 2), (0.5 + shift) * size, scale, angle)


def dress(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Another background, hair, glasses and objects; ``mask`` loses what they hide. Without landmarks, nothing."""
    if batch.landmarks is None:
        return batch
    batch = _for_some(batch, draws, config.background, replace_background)
    batch = _for_some(batch, draws, config.hair, add_hair)
    batch = _for_some(batch, draws, config.glasses, add_glasses)
    return _for_some(batch, draws, config.objects, add_objects)


def colour(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Shadows, gain per channel, saturation, contrast, brightness and gamma; some pictures grey."""
    batch = _for_some(batch, draws, config.shadow, _shaded)
    strength, picture = config.colour, batch.image
    if not (strength or config.grey):
        return batch
    saturation = 1 + strength * draws.uniform(-0.7, 0.3, 1)
    saturation = saturation.clamp_min(0) * (1 - draws.chance(config.grey, 1))
    gain = torch.exp(strength * (draws.normal(0.1, 0.3, 3) * (saturation > 0) + draws.normal(0.15, 0.4, 1)))
    contrast = torch.exp(strength * draws.uniform(-0.7, 0.4, 1))
    luma = picture.new_tensor(_LUMA).expand(3, 3)
    mix = luma + (torch.eye(3).to(picture) - luma) * saturation[..., None]
    level = (mix @ picture.mean((2, 3))[..., None]).mean(1)
    shift = level * (1 - contrast) + strength * draws.normal(0.08, 0.2, 1)
    mixed = torch.baddbmm(shift[..., None].expand(-1, 3, 1), mix * (contrast * gain)[..., None], picture.flatten(2))
    gamma = torch.exp(strength * draws.uniform(-0.5, 0.5, 1, 1))
    return replace(batch, image=mixed.clamp_(1e-4, 1).pow_(gamma).view_as(picture))


def degrade(batch: FaceBatch, config: AugmentConfig, draws: Draws) -> FaceBatch:
    """Fewer pixels or blur, noise, and JPEG."""
    batch = _for_some(batch, draws, config.blur, _blurred)
    grainy = functools.partial(_grainy, most=config.noise)
    batch = _for_some(batch, draws, _GRAINY if config.noise else 0.0, grainy)
    return _for_some(batch, draws, config.jpeg, _as_jpeg)


def _for_some(batch: FaceBatch, draws: Draws, probability: float, change: Change) -> FaceBatch:
    """``change`` where a coin says so; other samples cost nothing and draw no further number."""
    if not probability:
        return batch
    return changed(batch, draws.chance(probability) > 0, lambda some, rows: change(some, draws[rows]))


def _shaded(batch: FaceBatch, draws: Draws) -> FaceBatch:
    shade = F.interpolate(draws.uniform(0, 1, 1, 3, 3), batch.image.shape[-2:], mode="bilinear", align_corners=False)
    return replace(batch, image=batch.image * (1 - draws.uniform(0, 0.7, 1, 1, 1) * shade))


def _blurred(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """Up to a third of the pixels in each direction, back by repetition or smoothly; or a small mean filter."""
    kind, fewer = draws.uniform(0, 4).long().tolist(), draws.uniform(0.3, 0.8).tolist()
    pictures = zip(batch.image.numpy(), kind, fewer, strict=True)
    channels = [_coarser(channel, how, share) for picture, how, share in pictures for channel in picture]
    return replace(batch, image=torch.from_numpy(np.stack(channels)).view_as(batch.image))


def _coarser(channel: Float[np.ndarray, "height width"], kind: int, share: float) -> Float[np.ndarray, "height width"]:
    """By OpenCV, which takes a fifth of the time."""
    if kind == 0:
        return cv2.blur(channel, (3, 3))
    height, width = channel.shape
    small = cv2.resize(channel, [max(8, round(side * share)) for side in (width, height)], interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST if kind == 1 else cv2.INTER_LINEAR)


def _grainy(batch: FaceBatch, draws: Draws, most: float) -> FaceBatch:
    """Gaussian noise, the stretch of a fixed long row that begins at a random place."""
    length = batch.image[0].numel()
    start, deviation = draws.uniform(0, _GRAIN).long().tolist(), draws.uniform(0, most).tolist()
    rows = [_grain(length)[first : first + length] * scale for first, scale in zip(start, deviation, strict=True)]
    return replace(batch, image=torch.stack(rows).view_as(batch.image).add_(batch.image).clamp_(0, 1))


@functools.lru_cache(2)
def _grain(length: int) -> Float[Tensor, " values"]:
    values = np.random.default_rng(0).standard_normal(_GRAIN + length, dtype=np.float32)
    return torch.from_numpy(values).clamp_(-3, 3)


def _as_jpeg(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """Through an encoder and a decoder at a quality between 10 and 80."""
    results = []
    for picture, quality in zip(batch.image, draws.uniform(10, 80).tolist(), strict=True):
        levels = (picture.flip(0) * 255).round().to(torch.uint8).permute(1, 2, 0)  # OpenCV's B, G, R
        _, code = cv2.imencode(".jpg", levels.contiguous().numpy(), [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        decoded = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
        results.append(torch.from_numpy(decoded).permute(2, 0, 1).flip(0).float() / 255)
    return replace(batch, image=torch.stack(results))
