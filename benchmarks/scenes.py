"""What is drawn: a face-like warped ellipsoid from closed forms, turned to several sides, lit and textured."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nl3dmm.assets.template import grid_triangles
from nl3dmm.geometry.camera import perspective, rotation_from_euler
from nl3dmm.geometry.lighting import directional_light, white_light
from nl3dmm.geometry.uv import uv_grid
from nl3dmm.render.scene import Surface
from nl3dmm.types import Camera

_HALF_AXES_MM = (72.0, 105.0, 88.0)
_FIELD_OF_VIEW = math.radians(12)
_DISTANCE_MM = 1150.0
_WAVES = (3.0, 7.0, 13.0)  # of red, green and blue over the texture
_PARTS = (  # height over the half axes, u, v, width in u, width in v
    (0.28, 0.50, 0.55, 0.035, 0.07),  # nose
    (-0.07, 0.39, 0.42, 0.05, 0.04),  # eye sockets
    (-0.07, 0.61, 0.42, 0.05, 0.04),
    (0.06, 0.50, 0.86, 0.09, 0.06),  # chin
)


@dataclass(frozen=True)
class Scene:
    """Inputs of a batch of renderings."""

    vertices: Tensor  # (batch, vertices, 3) mm
    texture: Tensor  # (batch, texels, texels, 3)
    light: Tensor  # (batch, 3, 9)
    camera: Camera
    surface: Surface
    image_size: tuple[int, int]


def leaf(value: Tensor) -> Tensor:
    """A new leaf of the autograd graph on the same memory."""
    return value.detach().requires_grad_()


@lru_cache(maxsize=2)  # a few neighbouring cases share a scene
def make_scene(side: int, pixels: int, batch: int, texels: int = 512) -> Scene:
    """Faces of ``side ** 2`` vertices with yaw from -45 to 45 degrees; about 40% of the image is covered."""
    triangles = grid_triangles(torch.ones(side, side, dtype=torch.bool))
    uv = uv_grid((side, side))
    light = white_light(1, 0.5) + directional_light(torch.tensor([[0.36, 0.48, 0.8]]), torch.tensor([[0.6, 0.55, 0.5]]))
    return Scene(
        vertices=_face(uv).expand(batch, -1, -1).contiguous(),
        texture=_texture(texels).expand(batch, -1, -1, -1).contiguous(),
        light=light.expand(batch, 3, 9).contiguous(),
        camera=_camera(pixels, batch),
        surface=Surface(triangles, uv, (side, side)),
        image_size=(pixels, pixels),
    )


def _face(uv: Tensor) -> Tensor:
    u, v = uv.unbind(-1)
    relief = torch.ones_like(u)
    for height, centre_u, centre_v, width_u, width_v in _PARTS:
        relief += height * torch.exp(-(((u - centre_u) / width_u) ** 2) - ((v - centre_v) / width_v) ** 2)
    longitude, latitude = math.radians(160) * (u - 0.5), math.radians(150) * (0.5 - v)
    sphere = [longitude.sin() * latitude.cos(), latitude.sin(), longitude.cos() * latitude.cos()]
    return torch.stack(sphere, -1) * torch.tensor(_HALF_AXES_MM) * relief[:, None]


def _texture(texels: int) -> Tensor:
    u, v = uv_grid((texels, texels)).unbind(-1)
    waves = torch.tensor(_WAVES) * 2 * math.pi
    return (0.6 + 0.15 * (u[:, None] * waves).cos() * (v[:, None] * waves).cos()).view(texels, texels, 3)


def _camera(pixels: int, batch: int) -> Camera:
    yaw = torch.linspace(-1, 1, batch) * math.radians(45) if batch > 1 else torch.tensor([math.radians(20)])
    position = torch.tensor([0.0, 0.0, _DISTANCE_MM]).expand(batch, 3)
    focal = torch.full((batch,), pixels / 2 / math.tan(_FIELD_OF_VIEW / 2))
    return perspective(rotation_from_euler(yaw / 4, yaw, yaw / 8), position, focal, torch.full((batch, 2), pixels / 2))
