"""Pictures of faces move in their plane and are mirrored, and all that is known of them with them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.assets.landmarks import MIRROR_68
from nl3dmm.errors import ShapeError
from nl3dmm.geometry.plane import PlaneSimilarity
from nl3dmm.types import Camera, FaceBatch, with_rows

_ODD_IN_X = (3, 4, 7)  # spherical harmonics x, xy, xz


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
    return changed(batch, chosen, lambda some, _: _mirrored(some, vertex_mirror))


def _mirrored(batch: FaceBatch, vertex_mirror: Int[Tensor, " vertices"] | None) -> FaceBatch:
    width = batch.image.shape[-1]
    return replace(
        batch,
        image=batch.image.flip(-1),
        mask=None if batch.mask is None else batch.mask.flip(-1),
        landmarks=None if batch.landmarks is None else mirrored_points(batch.landmarks, width),
        camera=None if batch.camera is None else _mirrored_camera(batch.camera, width),
        sh_coefficients=None if batch.sh_coefficients is None else _mirrored_light(batch.sh_coefficients),
        vertices=None if batch.vertices is None else batch.vertices[:, vertex_mirror] * _flip(batch.vertices),
        albedo=None if batch.albedo is None else batch.albedo.flip(-1),
    )


def changed(
    batch: FaceBatch, chosen: Bool[Tensor, " batch"], change: Callable[[FaceBatch, Tensor], FaceBatch]
) -> FaceBatch:
    """``change`` of the chosen samples, which are given with their rows."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(chosen):
        return change(batch, rows)
    return with_rows(batch, rows, change(batch[rows], rows)) if len(rows) else batch


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
