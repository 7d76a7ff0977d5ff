"""What stands around a face: backgrounds, hair, neck and clothes behind it, occluders before it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.geometry.camera import project
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import Camera

_HAIR = ((0.02, 0.015, 0.012), (0.10, 0.06, 0.04), (0.30, 0.20, 0.12), (0.65, 0.52, 0.35), (0.45, 0.18, 0.08))


def pixel_grid(size: int) -> Float[Tensor, "2 size size"]:
    """Column and row of every pixel centre."""
    axis = torch.arange(size) + 0.5
    return torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])


def smooth_noise(values: Float[Tensor, "batch channels cells cells"], size: int) -> Float[Tensor, "batch channels _ _"]:
    """Random cells blown up to a smooth picture."""
    return F.interpolate(values, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def backgrounds(draws: Draws, size: int) -> Float[Tensor, "batch 3 size size"]:
    """From plain walls over gradients to busy colour clouds, with edges in half of the pictures."""
    base = draws.uniform(0, 1, 3, 1, 1)
    busy = draws.uniform(0, 1, 1, 1, 1) ** 2
    coarse = smooth_noise(draws.uniform(0, 1, 3, 3, 3), size)
    fine = smooth_noise(draws.uniform(0, 1, 3, 9, 9), size)
    grain = draws.uniform(-0.06, 0.06, 1, size, size) * draws.uniform(0, 1, 1, 1, 1)
    picture = base * (1 - busy) + busy * (0.65 * coarse + 0.35 * fine) + grain
    angle, offset = draws.uniform(0, 3.14, 1, 1), draws.uniform(-0.4, 0.4, 1, 1)
    column, row = pixel_grid(size) / size - 0.5
    beyond = (angle.cos() * column + angle.sin() * row > offset)[:, None]
    wall = draws.uniform(0, 1, 3, 1, 1) * 0.7 + 0.3 * fine
    return torch.where(beyond & (draws.chance(0.5, 1, 1, 1) > 0), wall, picture).clamp(0, 1)


def _ellipse(centre: Tensor, radii: Tensor, angle: Tensor, size: int) -> Bool[Tensor, "batch size size"]:
    """centre, radii (batch, 2) in px; angle (batch,) in radians."""
    offset = pixel_grid(size) - centre[:, :, None, None]
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1]
    return (along / radii[:, :1, None]) ** 2 + (across / radii[:, 1:, None]) ** 2 < 1


def _paint(picture: Tensor, colour: Tensor, where: Tensor, wanted: Tensor) -> Tensor:
    """``colour`` (batch, 3 | 3 size size) over ``picture`` where the region and the sample's coin agree."""
    region = (where & (wanted.view(-1, 1, 1) > 0))[:, None]
    return torch.where(region, colour if colour.ndim == 4 else colour[:, :, None, None], picture)


def add_head_and_body(
    picture: Float[Tensor, "batch 3 size size"],
    camera: Camera,
    skin_colour: Float[Tensor, "batch 3"],
    draws: Draws,
) -> Float[Tensor, "batch 3 size size"]:
    """Shoulders, neck and hair behind the face, so that its outline is not always seen against a far background."""
    batch, size = len(picture), picture.shape[-1]
    scale = camera.scale[:, None]
    anchors = torch.tensor([[0.0, 35.0, -70.0], [0.0, -130.0, -55.0], [0.0, -230.0, -60.0]])
    head, neck, chest = project(camera, anchors.expand(batch, 3, 3))[0].unbind(1)
    no_turn = torch.zeros(batch)
    cloth = draws.uniform(0, 1, 3)
    shoulders = _ellipse(chest, scale * draws.uniform(90, 200, 2) * torch.tensor([1.4, 0.6]), no_turn, size)
    picture = _paint(picture, cloth, shoulders, draws.chance(0.8))
    shade = draws.uniform(0.55, 1.0, 1)
    throat = _ellipse(neck, scale * draws.uniform(45, 70, 1) * torch.tensor([1.0, 1.6]), no_turn, size)
    picture = _paint(picture, skin_colour * shade, throat, draws.chance(0.85))
    pick = (draws.uniform(0, len(_HAIR), 1)).long().squeeze(1).clamp_max(len(_HAIR) - 1)
    hair = torch.tensor(_HAIR)[pick] * draws.uniform(0.7, 1.4, 1)
    strands = hair[:, :, None, None] * (0.6 + 0.8 * smooth_noise(draws.uniform(0, 1, 1, 12, 12), size))
    long_hair = draws.chance(0.4, 1)
    radii = scale * torch.cat([draws.uniform(85, 115, 1), draws.uniform(110, 135, 1) + 60 * long_hair], 1)
    lowered = head + torch.cat([torch.zeros(batch, 1), scale * 50 * long_hair], 1)
    tilt = torch.atan2(camera.rotation[:, 1, 0], camera.rotation[:, 0, 0])
    return _paint(picture, strands.clamp(0, 1), _ellipse(lowered, radii, -tilt, size), draws.chance(0.75))


def add_occluders(
    picture: Float[Tensor, "batch 3 size size"],
    camera: Camera,
    landmarks: Float[Tensor, "batch 68 2"],
    draws: Draws,
    probability: float,
) -> tuple[Float[Tensor, "batch 3 size size"], Bool[Tensor, "batch size size"]]:
    """Fringes, hands and objects before the face; returns the picture and where it is hidden."""
    size = picture.shape[-1]
    scale = camera.scale[:, None]
    brow = landmarks[:, 17:27].mean(1)
    up = camera.rotation[:, :2, 1] * torch.tensor([1.0, -1.0])
    fringe_centre = brow + up * scale * draws.uniform(45, 75, 1)
    fringe = _ellipse(fringe_centre, scale * draws.uniform(30, 75, 2), draws.uniform(-0.6, 0.6), size)
    picked = (draws.uniform(0, 17, 1)).long().clamp(0, 16)
    edge = landmarks.gather(1, picked[..., None].expand(-1, -1, 2))[:, 0]
    object_ = _ellipse(
        edge + scale * draws.normal(20, 40, 2), scale * draws.uniform(12, 45, 2), draws.uniform(0, 3.1), size
    )
    has_fringe, has_object = draws.chance(probability), draws.chance(probability)
    hair = torch.tensor(_HAIR)[(draws.uniform(0, len(_HAIR), 1)).long().squeeze(1).clamp_max(len(_HAIR) - 1)]
    picture = _paint(picture, hair * draws.uniform(0.7, 1.3, 1), fringe, has_fringe)
    picture = _paint(picture, draws.uniform(0, 1, 3), object_, has_object)
    hidden = (fringe & (has_fringe.view(-1, 1, 1) > 0)) | (object_ & (has_object.view(-1, 1, 1) > 0))
    return picture, hidden
