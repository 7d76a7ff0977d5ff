"""Ellipsoids drawn in closed form: what the heads behind the faces are made of."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.geometry.camera import project
from nl3dmm.types import Camera


@dataclass(frozen=True)
class View:
    """Pixels as parallel rays through the head: weak perspective at the head's centre, whatever the camera is."""

    rotation: Float[Tensor, "batch 3 3"]  # object to camera frame
    across: Float[Tensor, "batch 2 size size"]  # mm from the head's centre, camera frame, x right and y up
    scale: Float[Tensor, " batch"]  # px per mm
    centre: Float[Tensor, "batch 3"]  # of the head, object frame, mm


@dataclass(frozen=True)
class Drawn:
    """The near side of an ellipsoid. Outside of it points and normals are those of its outline, roughly."""

    cover: Float[Tensor, "batch 1 size size"]  # 0 outside, 1 inside, antialiased
    points: Float[Tensor, "batch 3 size size"]  # object frame, mm from the head's centre
    normals: Float[Tensor, "batch 3 size size"]  # camera frame, unit


def view(camera: Camera, centre: Float[Tensor, "batch 3"], size: int) -> View:
    """How the camera sees what lies around ``centre``."""
    pixel = project(camera, centre[:, None])[0][:, 0]
    depth = (camera.rotation @ centre[:, :, None])[:, 2, 0]
    scale = camera.scale / (1 - camera.inverse_distance * depth).clamp_min(0.1)
    axis = torch.arange(size) + 0.5
    column = (axis - pixel[:, :1]) / scale[:, None]
    row = (pixel[:, 1:] - axis) / scale[:, None]
    across = torch.stack([column[:, None, :].expand(-1, size, size), row[:, :, None].expand(-1, size, size)], 1)
    return View(camera.rotation, across, scale, centre)


def ellipsoid(
    seen: View,
    centre: Float[Tensor, "batch 3"],
    radii: Float[Tensor, "batch 3"],
    ragged: Float[Tensor, "batch 1 size size"] | None = None,
) -> Drawn:
    """An ellipsoid with axes along those of the object.

    Args:
        centre: mm from the head's centre, object frame.
        ragged: by which part of its radius the outline is moved outwards.
    """
    turned = seen.rotation.mT  # camera to object frame
    to_sphere = turned / radii[:, :, None]  # a camera-frame offset in units of the radii
    offset = (seen.rotation @ centre[:, :, None])[:, :2]
    planar = (seen.across.flatten(2) - offset).contiguous()
    start, ray = to_sphere[:, :, :2] @ planar, to_sphere[:, :, 2:]  # start + t ray
    a = ray.square().sum(1)
    b = (start * ray).sum(1)
    nearest = start.square().sum(1) - b.square() / a  # squared distance of the ray from the centre, in radii
    reach = nearest.clamp_min(1e-6).sqrt()
    inside = (1 - nearest).clamp_min(1e-4)
    t = (-b + (a * inside).sqrt()) / a
    on_sphere = start + t[:, None] * ray
    points = on_sphere * radii[:, :, None] + centre[:, :, None]
    normals = seen.rotation @ (on_sphere / radii[:, :, None])
    normals = (
        normals * normals.square().sum(1, keepdim=True).rsqrt()
    )  # F.normalize over this axis takes ten times as long
    size = seen.across.shape[-1]
    edge = (1 - reach).unflatten(1, (1, size, size)) + (0 if ragged is None else ragged)
    softness = (radii.amin(1) * seen.scale).clamp_min(1)[:, None, None, None]
    cover = (edge * softness + 0.5).clamp(0, 1)
    return Drawn(cover, points.unflatten(2, (size, size)), normals.unflatten(2, (size, size)))
