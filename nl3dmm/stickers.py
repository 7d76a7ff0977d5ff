"""Stickers: pictures with a place, a size and a blend mode, and what they do to an albedo.

Blend modes are affine in the albedo: ``albedo' = keep * albedo + paint``, in the space of the colour encoding, where
light is a factor. So an edit is known without the albedo that it changes.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.assets.places import check_place, place_uv
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError, ShapeError
from nl3dmm.geometry.patch import flatten_patch
from nl3dmm.render.normals import vertex_normals
from nl3dmm.types import TensorFields

Blend = Literal["normal", "multiply", "screen"]

_MARGIN_MM = 8.0  # of mesh that is laid flat around a sticker
_FAR = 1e6  # sticker widths: where the mesh is not laid flat
_STAR_SIZE = 256
_STAR_INNER = 0.42  # radius of the notches over that of the points


@dataclass(frozen=True)
class Sticker:
    """A picture and how it lies on a face."""

    picture: Float[Tensor, "channels height width"]  # RGBA in [0, 1], colours not multiplied by alpha
    at: str | tuple[float, float]  # a name in ``assets.places.PLACES`` or a UV point
    size_mm: float | int = 30.0  # longer side, on the surface
    rotation: float | int = 0.0  # degrees about the surface normal, counter-clockwise for the viewer; 0: upright
    blend: str = "normal"  # one of ``Blend``

    def __post_init__(self) -> None:
        check_range("size_mm", self.size_mm, 0.5, 1000)
        check_range("rotation", self.rotation, -3600, 3600)
        if isinstance(self.at, str):
            check_place(self.at)
        if self.blend not in get_args(Blend):
            raise ConfigError(f"blend: got {self.blend!r}; expected one of {get_args(Blend)}. Choose one.")
        if self.picture.ndim != 3 or len(self.picture) != 4 or not self.picture.isfinite().all():
            raise ShapeError(
                f"sticker: got shape {tuple(self.picture.shape)}; expected finite RGBA values, (4, height, width). "
                "Read it with data.images.read_sticker."
            )

    @property
    def sides_mm(self) -> tuple[float, float]:
        """Height and width on the surface."""
        height, width = self.picture.shape[1:]
        unit = self.size_mm / max(height, width)
        return height * unit, width * unit


@dataclass(frozen=True)
class Layer(TensorFields):
    """``albedo' = keep * albedo + paint``."""

    keep: Float[Tensor, "1 3 rows columns"]
    paint: Float[Tensor, "1 3 rows columns"]
    alpha: Float[Tensor, "1 1 rows columns"]

    def on(self, albedo: Float[Tensor, "1 3 rows columns"]) -> Float[Tensor, "1 3 rows columns"]:
        return self.keep * albedo + self.paint


def sticker_layer(sticker: Sticker, linear: Float[Tensor, "4 _ _"], points: Float[Tensor, "1 rows columns 2"]) -> Layer:
    """What a sticker does at points of its plane (mm right and up from its middle; NaN: nothing).

    Args:
        linear: its picture in the space of the blending, colours multiplied by alpha, no finer than the points.
    """
    height, width = sticker.sides_mm
    grid = (points * points.new_tensor([2 / width, -2 / height])).nan_to_num(_FAR)
    rgba = F.grid_sample(linear[None], grid, padding_mode="zeros", align_corners=False)
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    if sticker.blend == "multiply":
        return Layer(1 - alpha + colour, torch.zeros_like(colour), alpha)
    # screen: 1 - (1 - albedo) (1 - colour)
    keep = 1 - colour if sticker.blend == "screen" else (1 - alpha).expand_as(colour)
    return Layer(keep, colour, alpha)


def sticker_plane(
    template: FaceTemplate, vertices: Float[Tensor, "1 vertices 3"], sticker: Sticker
) -> Float[Tensor, "vertices 2"]:
    """Where the vertices lie on the sticker: mm to its right and up from its middle; NaN far from it.

    Raises:
        ConfigError: an unknown place, a point off the face, or a sticker larger than the face.
    """
    marks = template.landmarks(vertices)[0]
    width = float((marks[0] - marks[16]).norm())
    if sticker.size_mm > width:
        raise ConfigError(
            f"size_mm: got {sticker.size_mm:g}; expected at most {width:.0f}, the width of this face. Choose less."
        )
    uv = place_uv(template, sticker.at) if isinstance(sticker.at, str) else sticker.at
    normals = vertex_normals(vertices, template.triangles)[0]
    reach = 0.6 * math.hypot(*sticker.sides_mm) + _MARGIN_MM
    up = vertices.new_tensor([0.0, 1.0, 0.0])
    flat = flatten_patch(vertices[0], template.triangles, normals, surface_point(template, uv), up, reach)
    angle = math.radians(sticker.rotation)
    c, s = math.cos(angle), math.sin(angle)
    return flat @ flat.new_tensor([[c, -s], [s, c]])


def surface_point(template: FaceTemplate, uv: tuple[float, float]) -> tuple[Int[Tensor, "3"], Float[Tensor, "3"]]:
    """The vertices and barycentric weights of the triangle at a UV point; the foremost one where the layout folds.

    Raises:
        ConfigError: no triangle is there.
    """
    first, second, third = template.uv.double()[template.triangles].unbind(1)
    point = first.new_tensor(uv) - third
    (a, b), (c, d) = (first - third).unbind(1), (second - third).unbind(1)
    area = a * d - b * c
    u, v = (point[:, 0] * d - point[:, 1] * c) / area, (point[:, 1] * a - point[:, 0] * b) / area
    weights = torch.stack([u, v, 1 - u - v], 1)
    depth = template.vertices[template.triangles][..., 2].mean(1).double()
    best = int(depth.masked_fill(~_is_inside(weights), -torch.inf).argmax())
    if not bool(_is_inside(weights[best])):
        raise ConfigError(f"at: got {tuple(uv)}; expected u, v in [0, 1] on the face's UV map. Choose another point.")
    return template.triangles[best], weights[best].float()


def _is_inside(weights: Float[Tensor, "*triangles 3"]) -> Bool[Tensor, "*triangles"]:
    return (weights >= -1e-6).all(-1) & weights.isfinite().all(-1)


def star(size: int = _STAR_SIZE) -> Float[Tensor, "4 {size} {size}"]:
    """A golden star with a dark red rim on nothing, upright: a sticker to try things with."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    fifth = 2 * math.pi / 5
    turn = (torch.atan2(x, y) + fifth / 2).remainder(fifth) - fifth / 2  # from the nearest point of the star
    along, across = x.hypot(y) * turn.cos(), x.hypot(y) * turn.abs().sin()
    edge_along, edge_across = _STAR_INNER * math.cos(fifth / 2) - 1, _STAR_INNER * math.sin(fifth / 2)
    outside = ((along - 1) * edge_across - across * edge_along) / math.hypot(edge_along, edge_across)
    distance = -outside - 0.03  # to the outline, positive inside; the picture's border stays clear
    alpha = (distance * size / 2 + 0.5).clamp(0, 1)
    fill = ((distance - 0.06) * size / 2 + 0.5).clamp(0, 1)
    gold, rim = torch.tensor([0.98, 0.78, 0.12]), torch.tensor([0.55, 0.05, 0.08])
    colour = rim[:, None, None] * (1 - fill) + gold[:, None, None] * fill
    return torch.cat([colour, alpha[None]])
