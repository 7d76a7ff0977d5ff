"""The square crop that the encoder sees, and its exact map to and from the photo.

Both frames put (0, 0) at the image's top-left corner, so the map is ``crop = (photo - top_left) * scale`` without a
half-pixel term.
"""

from dataclasses import dataclass
from math import isfinite

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.errors import ImageError
from nl3dmm.geometry.camera import FACE_FILL, zoom
from nl3dmm.types import Camera

_MIN_FACE = 1.0  # px


@dataclass(frozen=True)
class Crop:
    """A square of the photo, resampled to ``size`` x ``size`` pixels."""

    left: float  # photo px
    top: float  # photo px
    scale: float  # crop px per photo px
    size: int  # crop px

    def image(self, photo: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels size size"]:
        """Resample; linear when magnifying, tent filter as wide as an output pixel's neighbourhood when minifying.

        Outside the photo its border is repeated. Differentiable with respect to the photo.

        Raises:
            ImageError: the square does not touch the photo.
        """
        height, width = photo.shape[-2:]
        side = self.size / self.scale
        if self.left >= width or self.top >= height or self.left + side <= 0 or self.top + side <= 0:
            raise ImageError(
                f"crop: got a square of {side:.0f} px at ({self.left:.0f}, {self.top:.0f}); expected one that overlaps "
                f"the {width} x {height} px photo. Check that the landmarks or the box belong to this photo."
            )
        first_row, row_weights = _filter_weights(self.top, self.scale, self.size, height)
        first_column, column_weights = _filter_weights(self.left, self.scale, self.size, width)
        rows, columns = row_weights.shape[1], column_weights.shape[1]
        part = photo[..., first_row : first_row + rows, first_column : first_column + columns]
        return row_weights.to(part) @ (part @ column_weights.to(part).T)

    def points_to_crop(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Photo pixels (column, row) to crop pixels."""
        return (points - points.new_tensor([self.left, self.top])) * self.scale

    def points_to_photo(self, points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Crop pixels (column, row) to photo pixels."""
        return points / self.scale + points.new_tensor([self.left, self.top])

    def camera_to_crop(self, camera: Camera) -> Camera:
        """The camera that projects to crop pixels what ``camera`` projects to photo pixels; exact, same pose."""
        return zoom(camera, self.scale, camera.scale.new_tensor([self.left, self.top]))

    def camera_to_photo(self, camera: Camera) -> Camera:
        """The camera that projects to photo pixels what ``camera`` projects to crop pixels; exact, same pose."""
        return zoom(camera, 1 / self.scale, -self.scale * camera.scale.new_tensor([self.left, self.top]))


def crop_from_landmarks(landmarks: Float[Tensor, "68 2"], size: int, fill: float = FACE_FILL) -> Crop:
    """Square around the landmarks' bounding box (photo pixels); the box's longer side fills ``fill`` of it.

    Raises:
        ImageError: the landmarks are not finite or fall on one point.
    """
    left, top = landmarks.amin(dim=0).tolist()
    right, bottom = landmarks.amax(dim=0).tolist()
    return crop_from_box(left, top, right, bottom, size, fill)


def crop_from_box(left: float, top: float, right: float, bottom: float, size: int, fill: float = FACE_FILL) -> Crop:
    """Square around a face detector's box (photo pixels, brows to chin, as wide as the landmarks).

    Raises:
        ImageError: the box is not finite or smaller than a pixel, or ``size`` or ``fill`` is not positive.
    """
    extent = max(right - left, bottom - top)
    if not (isfinite(left + top + right + bottom) and right >= left and bottom >= top and extent >= _MIN_FACE):
        raise ImageError(
            f"face box: got left={left:.1f}, top={top:.1f}, right={right:.1f}, bottom={bottom:.1f}; expected finite "
            "pixels with left < right and top < bottom. Detect the face again."
        )
    if size < 1 or not fill > 0:
        raise ImageError(
            f"crop: got size={size}, fill={fill}; expected positive numbers. Use size=224, fill={FACE_FILL}."
        )
    side = extent / fill
    return Crop((left + right - side) / 2, (top + bottom - side) / 2, size / side, size)


def hull_mask(points: Float[Tensor, "points 2"], size: int) -> Bool[Tensor, "{size} {size}"]:
    """Pixels of a square image whose centres lie in the points' convex hull: brows to chin for 68 landmarks."""
    hull = cv2.convexHull(points.detach().cpu().float().numpy())[:, 0]
    axis = np.arange(size, dtype=np.float32) + 0.5
    left, right = np.ones((size, size), dtype=bool), np.ones((size, size), dtype=bool)  # of all edges, either way round
    for (x, y), (along, down) in zip(hull, np.roll(hull, -1, axis=0) - hull, strict=True):
        rows, columns = (along * (axis - y))[:, None], down * (axis - x)
        right &= rows >= columns
        left &= rows <= columns
    return torch.from_numpy(left | right).to(points.device)


def _filter_weights(start: float, scale: float, size: int, length: int) -> tuple[int, Float[Tensor, "size touched"]]:
    """First touched photo pixel of one axis, and each output pixel's weights of the touched ones."""
    centers = start + (torch.arange(size, dtype=torch.float64) + 0.5) / scale
    radius = max(1.0, 1.0 / scale)
    taps = (centers - radius - 0.5).ceil()[:, None] + torch.arange(int(2 * radius) + 2)
    weights = (1 - (taps + 0.5 - centers[:, None]).abs() / radius).clamp_min(0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    pixels = taps.long().clamp(0, length - 1)
    first = int(pixels.min())
    matrix = weights.new_zeros(size, int(pixels.max()) - first + 1)
    return first, matrix.scatter_add_(1, pixels - first, weights)
