"""What stands around and before a face, drawn from its 68 landmarks alone: head, hair, glasses, objects, backgrounds.

The synthetic faces end where their mesh ends, and photos do not: a network that has only seen masks learns their rim.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.errors import ShapeError
from nl3dmm.synthetic.clutter import clutter
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.scenery import backgrounds, hair_colour, smooth_noise
from nl3dmm.types import FaceBatch


@dataclass(frozen=True)
class _HeadFrame:
    """Pixels in units of the distance from eyes to mouth, from the middle of the eyes: +right along them, +up."""

    right: Float[Tensor, "batch height width"]
    up: Float[Tensor, "batch height width"]
    points: Float[Tensor, "batch 68 2"]  # the landmarks: right, up

    @property
    def back(self) -> Float[Tensor, "batch 1 1"]:
        """How far the head's middle lies to the right of the nose: positive where the face looks left."""
        return ((self.points[:, 0] + self.points[:, 16]) / 2 - self.points[:, 30])[:, :1, None]

    def coordinates(self, points: Float[Tensor, "batch 2"]) -> tuple[Tensor, Tensor]:
        """Of one point per sample, to be compared with ``right`` and ``up``."""
        return points[:, 0].view(-1, 1, 1), points[:, 1].view(-1, 1, 1)

    def ellipse(self, right: Tensor, up: Tensor | float, half_width: Tensor, half_height: Tensor) -> Tensor:
        """Below 1 inside; all arguments (batch, 1, 1)."""
        return (((self.right - right) / half_width) ** 2 + ((self.up - up) / half_height) ** 2).sqrt()


def landmarks_of(batch: FaceBatch) -> Float[Tensor, "batch 68 2"]:
    """The landmarks, which must be known.

    Raises:
        ShapeError: they are not.
    """
    if batch.landmarks is None:
        raise ShapeError("batch.landmarks: got None; expected 68 points per face. Detect them first.")
    return batch.landmarks


def _head_frame(batch: FaceBatch) -> _HeadFrame:
    points = landmarks_of(batch)
    height, width = batch.image.shape[-2:]
    column, row = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    eyes, mouth = points[:, 36:48].mean(1), points[:, 48:68].mean(1)
    upward = eyes - mouth
    upward = upward / upward.square().sum(1, keepdim=True).clamp_min(1)
    axes = torch.stack([torch.stack([-upward[:, 1], upward[:, 0]], 1), upward], 1)
    start = (axes @ eyes[:, :, None]).unsqueeze(-1)
    right, up = (
        axes[:, n, 0].view(-1, 1, 1) * column + (axes[:, n, 1].view(-1, 1, 1) * row - start[:, n]) for n in (0, 1)
    )
    return _HeadFrame(right, up, (points - eyes[:, None]) @ axes.mT)


def replace_background(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """Where the skin ends, a head and a neck of its colours before clutter or clouds; the skin's rim fades."""
    if batch.mask is None:
        return batch
    size = batch.image.shape[-1]
    plain = draws.chance(0.4, 1, 1, 1)
    behind = plain * backgrounds(draws, size) + (1 - plain) * clutter(draws, size)
    frame, skin = _head_frame(batch), _spread(batch.image, batch.mask)
    half_width, half_height = draws.uniform(1.05, 1.3, 1, 1), draws.uniform(1.45, 1.75, 1, 1)
    back = 0.55 * frame.back
    head = frame.ellipse(back, draws.uniform(-0.1, 0.15, 1, 1), half_width + 0.3 * back.abs(), half_height) < 1
    neck_width = draws.uniform(0.55, 0.95, 1, 1)
    neck = ((frame.right - 0.8 * back).abs() < neck_width) & (frame.up < -0.8)
    ears = frame.ellipse(back + half_width, -0.25, neck_width * 0.3, neck_width * 0.55) < 1
    ears |= frame.ellipse(back - half_width, -0.25, neck_width * 0.3, neck_width * 0.55) < 1
    tone = draws.uniform(0.6, 1.05, 1, 1, 1)
    behind = torch.where(neck[:, None], skin * tone * draws.uniform(0.6, 1, 1, 1, 1), behind)
    ears, head = (part & (draws.chance(0.85, 1, 1) > 0) for part in (ears, head))
    behind = torch.where((ears | head)[:, None], skin * tone ** (1 - head[:, None].float()), behind)
    softness = 2 * F.avg_pool2d(batch.mask[:, None].float(), 5, 1, 2) - 1
    alpha = softness.clamp(0, 1)
    return replace(batch, image=batch.image * alpha + behind * (1 - alpha))


def without_features(batch: FaceBatch, draws: Draws, chosen: Bool[Tensor, " batch"]) -> FaceBatch:
    """Skin without eyes, nose and mouth, as hands and backs of heads are: no face any more."""
    blotches = 0.75 + 0.4 * _clouds(draws, 6, batch.image.shape[-1])
    mask = torch.zeros_like(batch.image[:, 0], dtype=torch.bool) if batch.mask is None else batch.mask
    region = (mask & chosen.view(-1, 1, 1))[:, None]
    picture = torch.where(region, _spread(batch.image, mask) * blotches, batch.image)
    return replace(batch, image=picture.clamp(0, 1))


def add_hair(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """A cap of strands around a ragged opening for the face, short or down to the shoulders."""
    size = batch.image.shape[-1]
    frame = _head_frame(batch)
    ragged = 0.25 * (_clouds(draws, 10, size)[:, 0] - 0.5)
    back = frame.back
    growth = draws.uniform(1.15, 1.6, 1, 1)
    cap = frame.ellipse(0.6 * back, draws.uniform(0.1, 0.4, 1, 1), growth + 0.3 * back.abs(), growth * 1.3) < 1 + ragged
    length = -draws.uniform(-0.6, 3, 1, 1)
    falls = ((frame.right - 0.6 * back).abs() < growth * 0.95 + ragged) & (frame.up < 0) & (frame.up > length)
    hairline, temple = draws.uniform(0.25, 1.05, 1, 1), draws.uniform(0.75, 1.15, 1, 1)
    parting = draws.uniform(-0.4, 0.4, 1, 1)
    open_ = frame.ellipse(-0.15 * back + 0.5 * parting * (frame.up > 0), -0.6, temple, hairline + 0.6) < 1 + ragged
    below = (frame.up < -0.6) & ((frame.right + 0.15 * back).abs() < temple * (1 + ragged))
    hair = (cap & (frame.up > torch.maximum(length, back * 0 - 1.2)) | falls) & ~open_ & ~below
    colour = hair_colour(draws) * draws.uniform(0.6, 1.5, 1)
    strands = 0.4 + 1.1 * smooth_noise(draws.uniform(0, 1, 1, 6, 28), size)
    return _paint(batch, colour[:, :, None, None] * strands, hair)


def add_glasses(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """Frames around both eyes with bridge and sides; some lenses are dark."""
    frame = _head_frame(batch)
    roundness = draws.uniform(2, 5, 1, 1)
    thickness = draws.uniform(0.04, 0.16, 1, 1)
    tall = draws.uniform(0.2, 0.36, 1, 1)
    rim = lens = torch.zeros_like(frame.right, dtype=torch.bool)
    eyes = []
    for outer, inner in ((36, 39), (45, 42)):
        corners = frame.points[:, [outer, inner]]
        half = 0.95 * (corners[:, 0] - corners[:, 1]).norm(dim=1).clamp_min(0.08).view(-1, 1, 1)
        middle = frame.coordinates(corners.mean(1))
        eyes.append(middle)
        across, along = (frame.right - middle[0]) / half, (frame.up - middle[1] + 0.05) / tall
        distance = (across.abs() ** roundness + along.abs() ** roundness) ** (1 / roundness)
        rim, lens = rim | ((distance - 1).abs() < thickness / tall), lens | (distance < 1)
    level = (eyes[0][1] + eyes[1][1]) / 2 + 0.05
    bridge = ((frame.up - level).abs() < thickness) & (frame.right > eyes[0][0]) & (frame.right < eyes[1][0])
    sides = [frame.coordinates(frame.points[:, point])[0] for point in (0, 16)]
    arms = ((frame.up - level).abs() < thickness) & (frame.right > sides[0]) & (frame.right < sides[1])
    arms &= (frame.right < eyes[0][0]) | (frame.right > eyes[1][0])
    colour = hair_colour(draws) * draws.uniform(0.3, 1.6, 1)
    glass = draws.uniform(0, 0.5, 3)
    dark = draws.chance(0.35, 1, 1) > 0
    batch = _paint(batch, glass[:, :, None, None], lens & dark)
    return _paint(batch, colour[:, :, None, None], rim | ((bridge | arms) & ~lens))


def add_objects(batch: FaceBatch, draws: Draws) -> FaceBatch:
    """An ellipse or a bar (hand, cup, microphone, scarf) somewhere on the face or over the picture's rim."""
    size = batch.image.shape[-1]
    frame = _head_frame(batch)
    angle = draws.uniform(0, 3.15, 1, 1)
    right, up = draws.uniform(-1.4, 1.4, 1, 1), draws.uniform(-2.0, 1.2, 1, 1)
    c, s = angle.cos(), angle.sin()
    along = c * (frame.right - right) + s * (frame.up - up)
    across = -s * (frame.right - right) + c * (frame.up - up)
    length, thick = draws.uniform(0.2, 0.9, 1, 1), draws.uniform(0.08, 0.35, 1, 1)
    is_bar = draws.chance(0.5, 1, 1) > 0
    bar = (across.abs() < thick) & (along > 0)
    thing = torch.where(is_bar, bar, (along / length) ** 2 + (across / (length * 0.6)) ** 2 < 1)
    flat = draws.uniform(0, 1, 3, 1, 1) * (0.7 + 0.5 * _clouds(draws, 4, size))
    skin = _spread(batch.image, batch.mask if batch.mask is not None else frame.right.abs() < 0.5)
    is_hand = draws.chance(0.35, 1, 1, 1) > 0
    return _paint(batch, torch.where(is_hand, skin * draws.uniform(0.7, 1.2, 1, 1, 1), flat), thing)


def _spread(picture: Tensor, mask: Bool[Tensor, "batch height width"]) -> Tensor:
    """The skin's colours, smoothly continued beyond it."""
    weight = F.adaptive_avg_pool2d(mask[:, None].float(), 8)
    colour = F.adaptive_avg_pool2d(picture * mask[:, None], 8)
    for _ in range(3):
        weight, colour = (F.avg_pool2d(part, 3, 1, 1) + 0.5 * part for part in (weight, colour))
    mean = colour.mean((2, 3), keepdim=True) / weight.mean((2, 3), keepdim=True).clamp_min(1e-6)
    colour = torch.where(weight > 1e-4, colour / weight.clamp_min(1e-4), mean)
    return F.interpolate(colour, picture.shape[-2:], mode="bilinear", align_corners=False).clamp(0, 1)


def _clouds(draws: Draws, cells: int, size: int) -> Float[Tensor, "batch 1 {size} {size}"]:
    return F.interpolate(draws.uniform(0, 1, 1, cells, cells), (size, size), mode="bilinear", align_corners=False)


def _paint(batch: FaceBatch, colour: Tensor, region: Tensor) -> FaceBatch:
    """``colour`` over the picture, with a soft rim; what it hides leaves the mask."""
    weight = region.float().numpy()  # OpenCV's mean takes a tenth of the time of avg_pool2d
    soft = np.stack([cv2.blur(each, (3, 3), borderType=cv2.BORDER_CONSTANT) for each in weight])
    picture = torch.lerp(batch.image, colour.clamp(0, 1), torch.from_numpy(soft)[:, None])
    return replace(batch, image=picture, mask=None if batch.mask is None else batch.mask & ~region)
