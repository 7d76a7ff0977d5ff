"""Cameras: from network outputs to pixels and clip space. See ``types.Camera`` for the one projection formula."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.types import Camera

CAMERA_LOGITS = 9  # rotation 6D, translation 2, log scale 1
MATRIX_LOGITS = 8  # two rows of rotation times scale, translation 2
FACE_FILL = 0.57  # larger side of the landmarks' box over the image's side: photos, synthetic faces, mean camera
_DEPTH_RANGE_MM = 400.0  # |X_z| of a face stays below, so |z / w| < 1
_MIN_W = 1e-3


def weak_perspective(
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
    scale: Float[Tensor, " batch"],
    principal_point: Float[Tensor, "batch 2"],
) -> Camera:
    """Scaled orthographic camera; ``translation`` in px from ``principal_point``, ``scale`` in px per mm."""
    return Camera(rotation, translation, scale, torch.zeros_like(scale), principal_point)


def perspective(
    rotation: Float[Tensor, "batch 3 3"],
    position_mm: Float[Tensor, "batch 3"],
    focal_px: Float[Tensor, " batch"],
    principal_point: Float[Tensor, "batch 2"],
) -> Camera:
    """Pinhole camera at ``position_mm`` in the rotated object's frame, looking along -z; its z must be positive."""
    distance = position_mm[:, 2]
    scale = focal_px / distance
    translation = scale[:, None] * torch.stack([-position_mm[:, 0], position_mm[:, 1]], -1)
    return Camera(rotation, translation, scale, 1 / distance, principal_point)


def yaw_degrees(camera: Camera) -> Float[Tensor, " batch"]:
    """How far faces are turned to the image's right."""
    return torch.rad2deg(torch.asin(-camera.rotation[:, 2, 0].clamp(-1, 1)))


def at_distance(camera: Camera, distance_mm: Float[Tensor, " batch"], plane_mm: Float[Tensor, " batch"]) -> Camera:
    """A weak perspective camera as a pinhole ``distance_mm`` before the object's origin.

    Args:
        plane_mm: z in the camera frame of the points whose pixels stay where they are.
    """
    shrink = 1 - plane_mm / distance_mm
    return replace(
        camera,
        scale=camera.scale * shrink,
        translation=camera.translation * shrink[:, None],
        inverse_distance=1 / distance_mm,
    )


def rotation_from_6d(values: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3 3"]:
    """Proper rotations from two vectors by Gram-Schmidt (Zhou et al., CVPR19); ``(1,0,0, 0,1,0)`` is the identity."""
    x = F.normalize(values[:, :3], dim=-1, eps=1e-8)
    y = values[:, 3:] - (x * values[:, 3:]).sum(-1, keepdim=True) * x
    y = F.normalize(y, dim=-1, eps=1e-8)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)


def rotation_from_euler(
    pitch: Float[Tensor, " batch"], yaw: Float[Tensor, " batch"], roll: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 3 3"]:
    """``Rz(roll) @ Ry(yaw) @ Rx(pitch)`` in radians: positive pitch looks down, positive yaw turns to image right."""
    zero, one = torch.zeros_like(pitch), torch.ones_like(pitch)

    def stack(*rows: list[Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    cx, sx, cy, sy, cz, sz = pitch.cos(), pitch.sin(), yaw.cos(), yaw.sin(), roll.cos(), roll.sin()
    rotation_x = stack([one, zero, zero], [zero, cx, -sx], [zero, sx, cx])
    rotation_y = stack([cy, zero, sy], [zero, one, zero], [-sy, zero, cy])
    rotation_z = stack([cz, -sz, zero], [sz, cz, zero], [zero, zero, one])
    return rotation_z @ rotation_y @ rotation_x


def camera_from_logits(logits: Float[Tensor, "batch 9"], image_size: tuple[int, int], mean_scale: float) -> Camera:
    """Weak-perspective camera from the encoder's raw output; zeros give a frontal, centred face.

    Args:
        logits: rotation (6, added to the identity), translation (2, half image sizes), log of ``scale / mean_scale``.
        image_size: (height, width) in px.
        mean_scale: px per mm of an average face in such an image.
    """
    height, width = image_size
    identity = logits.new_tensor([1, 0, 0, 0, 1, 0])
    half_size = logits.new_tensor([width / 2, height / 2])
    return weak_perspective(
        rotation=rotation_from_6d(logits[:, :6] + identity),
        translation=logits[:, 6:8] * half_size,
        scale=mean_scale * torch.exp(logits[:, 8].clamp(-3, 3)),
        principal_point=half_size.expand(logits.shape[0], 2),
    )


def camera_from_matrix(logits: Float[Tensor, "batch 8"], image_size: tuple[int, int], mean_scale: float) -> Camera:
    """The weak-perspective camera nearest to a free 2 x 4 matrix, the encoder's raw output; zeros give a frontal face.

    The released code projects with ``matrix = mean_scale * [1 0 0; 0 1 0] + ...`` as it comes out of the network. Two
    of its eight numbers are shear and aspect, which no rotation has, and normals, light and depth need a rotation.
    They are dropped in the least-squares sense: of ``matrix = U diag(s1, s2) V`` remain the rotation rows ``U V`` and
    the scale ``(s1 + s2) / 2``. Unlike row-by-row normalisation this favours neither row.

    Args:
        logits: what is added to the frontal matrix: its two rows (6, in ``mean_scale``), translation (2, half image
            sizes).
        image_size: (height, width) in px.
        mean_scale: px per mm of an average face in such an image.
    """
    height, width = image_size
    matrix = logits[:, :6].unflatten(1, (2, 3)) + torch.eye(2, 3, dtype=logits.dtype, device=logits.device)
    half_size = logits.new_tensor([width / 2, height / 2])
    rows, scale = _nearest_rotation(matrix)
    return weak_perspective(
        rotation=rotation_from_6d(rows.flatten(1)),  # exact to the last digit, and the third row
        translation=logits[:, 6:] * half_size,
        scale=mean_scale * scale,
        principal_point=half_size.expand(logits.shape[0], 2),
    )


def _nearest_rotation(
    matrix: Float[Tensor, "batch 2 3"],
) -> tuple[Float[Tensor, "batch 2 3"], Float[Tensor, " batch"]]:
    """Orthonormal rows ``(M M^T)^(-1/2) M`` and the mean singular value, in closed form."""
    first, second = matrix.unbind(1)
    area = torch.linalg.cross(first, second).square().sum(-1).clamp_min(1e-12).sqrt()  # s1 s2
    xx, xy, yy = ((a * b).sum(-1) for a, b in ((first, first), (first, second), (second, second)))
    total = (xx + yy + 2 * area).sqrt()  # s1 + s2
    adjugate = torch.stack([yy + area, -xy, -xy, xx + area], -1).unflatten(1, (2, 2))
    return adjugate @ matrix / (area * total)[:, None, None], total / 2


def zoom(camera: Camera, factor: float | int, origin: Float[Tensor, "2"] | None = None) -> Camera:
    """The camera of the picture whose pixels are ``(pixels - origin) * factor``: exact, same pose."""
    point = camera.principal_point if origin is None else camera.principal_point - origin
    return replace(
        camera,
        scale=camera.scale * factor,
        translation=camera.translation * factor,
        principal_point=point * factor,
    )


def rotate(camera: Camera, vectors: Float[Tensor, "batch points 3"]) -> Float[Tensor, "batch points 3"]:
    """Object frame to camera frame."""
    return (camera.rotation @ vectors.mT).mT  # twice as fast as the rows of vectors on the left


def project(
    camera: Camera, points: Float[Tensor, "batch points 3"]
) -> tuple[Float[Tensor, "batch points 2"], Float[Tensor, "batch points"]]:
    """Pixels (column, row) and depth in mm away from the viewer, 0 at the object's origin.

    Points behind a perspective camera have no image; their denominator is held at a small positive value.
    """
    x, y, z = rotate(camera, points).unbind(-1)
    w = (1 - camera.inverse_distance[:, None] * z).clamp_min(_MIN_W)
    column = (camera.scale[:, None] * x + camera.translation[:, :1]) / w + camera.principal_point[:, :1]
    row = (camera.translation[:, 1:] - camera.scale[:, None] * y) / w + camera.principal_point[:, 1:]
    return torch.stack([column, row], -1), -z


def clip_from_object(
    camera: Camera, vertices: Float[Tensor, "batch vertices 3"], image_size: tuple[int, int]
) -> Float[Tensor, "batch vertices 4"]:
    """Homogeneous clip positions for an image of (height, width) px: tensor row 0 of the rendering is image row 0.

    ``z / w`` grows away from the viewer and lies in (-1, 1) for points within 400 mm of the origin.
    """
    matrix = _clip_matrix(camera, image_size)
    return (matrix[..., :3] @ vertices.mT + matrix[..., 3:]).mT.contiguous()


def _clip_matrix(camera: Camera, image_size: tuple[int, int]) -> Float[Tensor, "batch 4 4"]:
    """From (x, y, z, 1) in the object frame: the formula of ``project`` for the rows of such matrices."""
    height, width = image_size
    x, y, z = F.pad(camera.rotation, (0, 1)).unbind(1)
    one = x.new_tensor([0, 0, 0, 1])
    w = one - camera.inverse_distance[:, None] * z
    centre = 2 * camera.principal_point / camera.principal_point.new_tensor([width, height]) - 1
    x_clip = (camera.scale[:, None] * x + camera.translation[:, :1] * one) * (2 / width) + centre[:, :1] * w
    y_clip = (camera.translation[:, 1:] * one - camera.scale[:, None] * y) * (2 / height) + centre[:, 1:] * w
    return torch.stack([x_clip, y_clip, -z / _DEPTH_RANGE_MM, w], 1)
