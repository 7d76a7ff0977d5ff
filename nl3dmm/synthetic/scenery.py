"""What stands around a face: backgrounds, head, hair, neck and clothes behind it, hair and objects before it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.geometry.lighting import Encoding, decode_srgb, encode_srgb, shade
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.ellipsoids import Drawn, View, ellipsoid, view
from nl3dmm.types import Camera

_HAIR = (
    (0.09, 0.08, 0.08),
    (0.16, 0.11, 0.08),
    (0.27, 0.18, 0.11),
    (0.42, 0.29, 0.18),
    (0.62, 0.49, 0.32),
    (0.78, 0.68, 0.50),
    (0.50, 0.24, 0.12),
    (0.60, 0.58, 0.56),
)  # sRGB
# mm, in the frame of the faces; the skull's front lies below the forehead, its crown some 50 mm above it.
_HEAD_CENTRE = (0.0, 45.0, 10.0)
_SKULL = (73.0, 97.0, 96.0)
_EAR = ((72.0, -28.0, -10.0), (10.0, 33.0, 21.0))
_NECK = ((0.0, -185.0, -30.0), (54.0, 130.0, 58.0))
_MANE = ((0.0, -45.0, -45.0), (98.0, 175.0, 62.0))
_CHEST = ((0.0, -305.0, -35.0), (225.0, 150.0, 90.0))
_SHADE_UNDER_CHIN = 0.55
_OCTAVES = ((3, 0.4), (7, 0.25), (17, 0.2), (43, 0.15))  # cells per side and weights of a background's clouds
_SHAPES = 3

Picture = Float[Tensor, "batch 3 size size"]
Layer = Float[Tensor, "batch 1 size size"]


def pixel_grid(size: int) -> Float[Tensor, "2 size size"]:
    """Column and row of every pixel centre."""
    axis = torch.arange(size) + 0.5
    return torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])


def smooth_noise(
    values: Float[Tensor, "batch channels rows columns"], size: int
) -> Float[Tensor, "batch channels _ _"]:
    """Random cells blown up to a smooth picture."""
    return F.interpolate(values, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def backgrounds(draws: Draws, size: int) -> Picture:
    """From plain walls over clouds of all sizes to rooms of blurred shapes, mostly in subdued colours."""
    vivid = draws.uniform(0, 1, 1, 1, 1) ** 3
    palette = draws.uniform(0, 1, 4, 3)
    grey = palette.mean(2, keepdim=True)
    palette = (grey + (palette - grey) * (0.25 + 0.75 * vivid[:, 0]))[..., None, None]
    octaves = [smooth_noise(draws.uniform(0, 1, 2, cells, cells), size) * weight for cells, weight in _OCTAVES]
    clouds = torch.stack(octaves).sum(0)
    first, second = ((clouds[:, k : k + 1] - 0.5) * draws.uniform(0, 3, 1, 1, 1) + 0.5 for k in range(2))
    picture = torch.lerp(palette[:, 0], palette[:, 1], first.clamp(0, 1))
    picture = torch.lerp(picture, palette[:, 2], second.clamp(0, 1) * draws.uniform(0, 1, 1, 1, 1))
    for _ in range(_SHAPES):
        picture = torch.lerp(picture, draws.uniform(0, 1, 3, 1, 1) * 0.5 + 0.5 * palette[:, 3], _shape(draws, size))
    grain = draws.uniform(-0.06, 0.06, 1, size, size) * draws.uniform(0, 1, 1, 1, 1)
    return (picture + grain).clamp(0, 1)


def _shape(draws: Draws, size: int) -> Layer:
    """A box or an ellipse with a sharp or blurred edge, for a third of the pictures."""
    half = draws.uniform(0.03, 0.5, 2, 1, 1)
    angle = draws.normal(0.3, 3, 1, 1)
    column, row = pixel_grid(size) / size - 0.5
    offset = draws.uniform(-0.5, 0.5, 2, 1, 1)
    x, y = column - offset[:, 0], row - offset[:, 1]
    along, across = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    along, across = (along / half[:, 0]).abs(), (across / half[:, 1]).abs()
    box = torch.maximum(along, across)
    distance = torch.where(draws.chance(0.5, 1, 1) > 0, box, (along**2 + across**2).sqrt())
    sharpness = torch.exp(draws.uniform(0.5, 4.5, 1, 1))
    return (torch.sigmoid((1 - distance) * sharpness) * draws.chance(0.33, 1, 1))[:, None]


@dataclass(frozen=True)
class Hair:
    """How the hair of a head grows; all per face."""

    colour: Float[Tensor, "batch 3 1 1"]
    any: Float[Tensor, "batch 1 1 1"]  # 0: bald
    long: Float[Tensor, "batch 1 1 1"]  # 1: down to the shoulders
    thickness: Float[Tensor, "batch 1"]  # mm above the skull
    line: Float[Tensor, "batch 1 1 1"]  # mm above the head's centre, where it begins in front
    strands: Float[Tensor, "batch 1 _ _"]  # noise over (angle around the head, height)
    ragged: Layer  # noise of the outline


class Surroundings:
    """Head and hair of a batch of faces, lit as the faces are."""

    def __init__(self, camera: Camera, light: Float[Tensor, "batch 3 9"], size: int, encoding: Encoding, draws: Draws):
        batch = len(light)
        self.seen = view(camera, torch.tensor(_HEAD_CENTRE).expand(batch, 3), size)
        self._light, self._srgb, self._draws, self._size = light, encoding == "srgb", draws, size
        self._hair = _draw_hair(draws, size)
        self._skull = torch.tensor(_SKULL) * (1 + draws.normal(0.04, 0.1, 3))

    def behind(self, picture: Picture, skin: Float[Tensor, "batch 3"]) -> Picture:
        """Body, neck, ears, skull and the hair behind the face over a background; ``skin`` is its mean albedo."""
        draws, hair, size = self._draws, self._hair, self._size
        skin = skin[:, :, None, None]
        cloth = draws.uniform(0, 1, 3, 1, 1) * (0.7 + 0.6 * smooth_noise(draws.uniform(0, 1, 1, 14, 14), size))
        picture = self._decoded(picture)
        mane = self._ellipsoid(*_MANE, draws.uniform(0.85, 1.15, 3), 0.09 * hair.ragged)
        picture = self._paint(picture, mane, self._hair_albedo(self._strands(mane)), mane.cover * hair.long * hair.any)
        neck = self._ellipsoid(*_NECK, draws.uniform(0.85, 1.12, 3))
        shadow = 1 - _SHADE_UNDER_CHIN * ((neck.points[:, 1:2] + 190) / 80).clamp(0, 1)
        picture = self._paint(picture, neck, skin, neck.cover, shadow)
        chest = self._ellipsoid(*_CHEST, draws.uniform(0.8, 1.1, 3))
        dressed = draws.chance(0.9, 1, 1, 1)
        picture = self._paint(picture, chest, torch.lerp(skin, cloth, dressed).clamp(0, 1), chest.cover)
        skull = ellipsoid(self.seen, torch.zeros_like(self._skull), self._skull)
        picture = self._paint(picture, skull, skin, skull.cover)
        (x, y, z), radii = _EAR
        for side in (-x, x):
            ear = self._ellipsoid((side, y, z), radii, 1.0)
            hollow = 1 - 0.35 * ((ear.points[:, 2:] - z - 4) / 12).clamp(-1, 1).abs()
            picture = self._paint(picture, ear, skin, ear.cover, hollow)
        return self._encoded(self._paint(picture, *self._grown(far=True))).clamp(0, 1)

    def before(self, picture: Picture, probability: float) -> tuple[Picture, Layer]:
        """The hair that falls over the forehead; also how much it hides."""
        shell, albedo, cover = self._grown(far=False)
        cover = cover * self._draws.chance(probability, 1, 1, 1)
        return torch.lerp(picture, self._encoded(self._lit(shell, albedo)).clamp(0, 1), cover), cover

    def _grown(self, far: bool) -> tuple[Drawn, Picture, Layer]:
        """Hair on the skull, its albedo and cover; the far layer is all of it, the near one ends below the brows."""
        hair = self._hair
        shell = ellipsoid(self.seen, torch.zeros_like(self._skull), self._skull + hair.thickness, 0.06 * hair.ragged)
        x, y, z = shell.points.split(1, 1)
        front = (z / (60 if far else 25)).clamp(0, 1)  # 0 at the ears and behind them, 1 at the forehead
        strands = self._strands(shell)
        begin = torch.lerp(-70 - 90 * hair.long, hair.line - 0.0016 * x**2, front)
        cover = shell.cover * ((y - begin + 30 * (strands - 0.5)) / 5).clamp(0, 1) * hair.any
        return shell, self._hair_albedo(strands), cover if far else cover * (z > 0) * (y / 20 + 1.5).clamp(0, 1)

    def _strands(self, drawn: Drawn) -> Layer:
        x, y, z = drawn.points.unbind(1)
        grid = torch.stack([torch.atan2(x, z + 20) / torch.pi, (y / 140).clamp(-1, 1)], -1)
        return F.grid_sample(self._hair.strands, grid, padding_mode="reflection", align_corners=False)

    def _hair_albedo(self, strands: Layer) -> Picture:
        return (self._hair.colour * (0.45 + 1.1 * strands)).clamp(0, 1)

    def _ellipsoid(self, centre, radii, factor, ragged: Layer | None = None) -> Drawn:
        batch = len(self._light)
        radii = torch.tensor(radii) * factor
        return ellipsoid(self.seen, torch.tensor(centre).expand(batch, 3), radii.expand(batch, 3), ragged)

    def _paint(
        self, picture: Picture, drawn: Drawn, albedo: Tensor, cover: Layer, shadow: Layer | float = 1.0
    ) -> Picture:
        """Over a picture of intensities, which are encoded once, when all is painted."""
        return torch.lerp(picture, self._lit(drawn, albedo) * shadow, cover)

    def _lit(self, drawn: Drawn, albedo: Tensor) -> Picture:
        shading = shade(drawn.normals.flatten(2).mT, self._light).mT.unflatten(2, (self._size, self._size))
        return self._decoded(albedo) * shading.clamp_min(0)

    def _decoded(self, colour: Tensor) -> Tensor:
        return decode_srgb(colour) if self._srgb else colour

    def _encoded(self, intensity: Tensor) -> Tensor:
        return encode_srgb(intensity) if self._srgb else intensity


def hair_colour(draws: Draws) -> Float[Tensor, "batch 3"]:
    """One of the usual ones, sRGB."""
    return torch.tensor(_HAIR)[draws.uniform(0, len(_HAIR)).long().clamp_max(len(_HAIR) - 1)]


def _draw_hair(draws: Draws, size: int) -> Hair:
    colour = (hair_colour(draws) * draws.uniform(0.75, 1.25, 1)).clamp(0, 1)[..., None, None]
    any_, long = draws.chance(0.88, 1, 1, 1), draws.chance(0.4, 1, 1, 1)
    thickness = draws.uniform(5, 24, 1)
    fringe = draws.chance(0.25, 1, 1, 1) * draws.uniform(0, 32, 1, 1, 1)
    line = draws.uniform(40, 68, 1, 1, 1) - fringe
    coarse, fine = draws.uniform(0, 1, 1, 5, 14), draws.uniform(0, 1, 1, 7, 110)
    strands = torch.stack([_stretched(each) for each in (coarse, fine)]).mean(0)
    ragged = smooth_noise(draws.uniform(0, 1, 1, 11, 11), size) - 0.5
    return Hair(colour, any_, long, thickness, line, strands, ragged)


def _stretched(values: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels 64 256"]:
    return F.interpolate(values, (64, 256), mode="bicubic", align_corners=False).clamp(0, 1)


def add_objects(
    picture: Picture,
    seen: View,
    landmarks: Float[Tensor, "batch 68 2"],
    draws: Draws,
    probability: float,
) -> tuple[Picture, Bool[Tensor, "batch size size"]]:
    """Hands, cups and other things before the edge of the face; returns the picture and where it is hidden."""
    size, scale = picture.shape[-1], seen.scale[:, None]
    picked = (draws.uniform(0, 17, 1)).long().clamp(0, 16)
    edge = landmarks.gather(1, picked[..., None].expand(-1, -1, 2))[:, 0]
    centre = edge + scale * draws.normal(20, 40, 2)
    hidden = _ellipse(centre, scale * draws.uniform(12, 45, 2), draws.uniform(0, 3.1), size)
    hidden = hidden & (draws.chance(probability).view(-1, 1, 1) > 0)
    colour = draws.uniform(0, 1, 3, 1, 1) * (0.8 + 0.4 * smooth_noise(draws.uniform(0, 1, 1, 9, 9), size))
    return torch.where(hidden[:, None], colour.clamp(0, 1), picture), hidden


def _ellipse(centre: Tensor, radii: Tensor, angle: Tensor, size: int) -> Bool[Tensor, "batch size size"]:
    """centre, radii (batch, 2) in px; angle (batch,) in radians."""
    offset = pixel_grid(size) - centre[:, :, None, None]
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = c * offset[:, 0] + s * offset[:, 1], -s * offset[:, 0] + c * offset[:, 1]
    return (along / radii[:, :1, None]) ** 2 + (across / radii[:, 1:, None]) ** 2 < 1
