"""Picture of a template: shaded views, landmarks, UV regions and pathway boxes."""

import math

import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.geometry.camera import project, rotation_from_euler, weak_perspective
from nl3dmm.render.scene import render_geometry
from nl3dmm.types import Camera

VIEWS_DEG = (0.0, 45.0, 90.0)
COLOURS = {
    "face": (0.85, 0.85, 0.95), "skin": (0.95, 0.82, 0.75), "eyes": (0.70, 0.80, 1.00), "nose": (1.00, 0.75, 0.60),
    "brows": (0.45, 0.30, 0.15), "nostrils": (0.25, 0.10, 0.10), "lips": (0.85, 0.35, 0.35),
    "mouth": (0.40, 0.00, 0.00), "left_eye": (1.00, 1.00, 1.00), "right_eye": (1.00, 1.00, 0.80),
}  # fmt: skip


def template_sheet(template: FaceTemplate, tile: int = 320) -> UInt8[ndarray, "height width 3"]:
    """Three views, the frontal one with landmarks, and the UV map with regions and boxes."""
    template = template.to("cpu")
    views = [_view(template, math.radians(yaw), tile) for yaw in VIEWS_DEG]
    marked = views[0][0].clone()
    _mark(marked, views[0][1], (1.0, 0.1, 0.1))
    tiles = [view for view, _ in views] + [marked, _uv_picture(template, tile)]
    return (torch.cat(tiles, 2).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _view(template: FaceTemplate, yaw: float, tile: int) -> tuple[Tensor, Tensor]:
    """Clay picture (3, tile, tile) and the landmarks in its pixels."""
    extent = (template.vertices.amax(0) - template.vertices.amin(0)).max()
    zero = torch.zeros(1)
    rotation = rotation_from_euler(zero, torch.full((1,), yaw), zero)
    centre = template.vertices[template.uv_mask.reshape(-1)] if template.is_uv_grid else template.vertices
    centre = rotation[0] @ (centre.amax(0) + centre.amin(0)) / 2
    scale = 0.92 * tile / extent.reshape(1)
    shift = torch.stack([-centre[0], centre[1]])[None] * scale[:, None]
    camera: Camera = weak_perspective(rotation, shift, scale, torch.full((1, 2), tile / 2))
    picture = render_geometry(template.vertices[None], camera, template.surface(), (tile, tile))[0]
    return picture, project(camera, template.landmarks(template.vertices[None]))[0][0]


def _uv_picture(template: FaceTemplate, tile: int) -> Tensor:
    rows, columns = template.uv_size
    picture = torch.zeros(3, rows, columns)
    for name, colour in COLOURS.items():
        weight = template.regions.get(name, torch.zeros(rows, columns))
        picture += weight * (torch.tensor(colour)[:, None, None] - picture)
    zoom = max(tile // max(rows, columns), 1)
    picture = picture.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    for box in template.boxes.values():
        top, left = box.row * zoom, box.column * zoom
        bottom, right = top + box.height * zoom - 1, left + box.width * zoom - 1
        green = torch.tensor((0.1, 0.6, 0.1))[:, None, None]
        picture[:, (top, bottom), left : right + 1] = green
        picture[:, top : bottom + 1, (left, right)] = green
    canvas = torch.zeros(3, tile, max(tile, picture.shape[2]))
    uv = (template.uv[template.landmark_vertices] * template.landmark_weights[..., None]).sum(1)
    _mark(picture, uv * torch.tensor([columns, rows]) * zoom, (0.9, 0.0, 0.0))
    height = min(tile, picture.shape[1])
    canvas[:, :height, : picture.shape[2]] = picture[:, :height]
    return canvas


def _mark(picture: Tensor, points: Tensor, colour: tuple[float, float, float]) -> None:
    for column, row in points.long().tolist():
        area = picture[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        area.copy_(torch.tensor(colour)[:, None, None].expand_as(area))
