"""A photo -> the crop that a model sees, with landmarks, and what makes the face in it hard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.data.crop import Crop, crop_from_box, crop_from_landmarks, hull_mask
from nl3dmm.data.detected_faces import MIN_SIZE
from nl3dmm.data.detection import detect_landmarks
from nl3dmm.data.images import ImageSource, read_image
from nl3dmm.data.landmark_files import check_landmarks, read_landmarks
from nl3dmm.data.photo_faces import quality, skin_mask
from nl3dmm.data.pose import yaw_of
from nl3dmm.errors import Nl3dmmError, NoFaceError, ShapeError

Landmarks = str | Path | Tensor | np.ndarray
Box = Sequence[float]
Mask = str | Path | Tensor | np.ndarray
DISTANCE_MM = 1000.0  # of portraits; on faces 600 mm away it leaves half of what weak perspective is off by
_LARGER = 1.6  # crop px per photo px from which a face is magnified more than it has detail
_FACES_ACROSS = 64  # of the smallest ones that are looked for at first
_SHARP, _SURE = 0.4, 0.5
_PROFILE = 50.0  # degrees of yaw from which half of the face is guessed
_OCCLUDED, _NOTHING_LEFT = 0.2, 0.98  # parts of a face: worth a warning, too much


@dataclass(frozen=True)
class PhotoInput:
    """A photo and what is known of the face in it."""

    image: ImageSource
    landmarks: Landmarks | None = None
    box: Box | None = None
    mask: Mask | None = None  # False, or black in a picture, where something hides the face
    label: str | None = None  # what it is called; by default the file's path
    distance_mm: float | int = DISTANCE_MM  # from the camera to the middle of the head; one photo does not show it

    def __post_init__(self) -> None:
        check_range("distance_mm", self.distance_mm, 200, 1e6)

    @property
    def name(self) -> str:
        return self.label or (str(self.image) if isinstance(self.image, (str, Path)) else "photo")


@dataclass(frozen=True)
class LocatedFace:
    """A photo, and the part of it that is fitted."""

    source: str
    photo: Float[Tensor, "3 height width"]
    crop: Crop
    picture: Float[Tensor, "3 size size"]
    points: Float[Tensor, "68 2"] | None  # photo px
    is_found: bool  # the points are our detector's, not given
    visible: Bool[Tensor, "size size"] | None  # of the picture, where a mask was given
    distance_mm: float | int
    warnings: tuple[str, ...]

    @property
    def landmark_source(self) -> str:
        return "none" if self.points is None else "found" if self.is_found else "given"


def locate_face(given: PhotoInput, size: int) -> LocatedFace:
    """Read a photo and crop its face to ``size`` pixels.

    Raises:
        ImageError: unreadable; ``NoFaceError``: no face found.
        ShapeError: wrong landmarks, box or mask.
    """
    photo = read_image(given.image).cpu()
    points, frame, warnings = _locate(photo, given.landmarks, given.box)
    crop = frame(size)
    visible = None if given.mask is None else crop.image(_read_mask(given.mask, photo)[None])[0] > 0.5
    picture = crop.image(photo)
    if visible is not None:
        warnings += _occlusion(visible, points if points is None else crop.points_to_crop(points))
    if crop.scale > _LARGER:
        warnings.append(f"tiny: the photo has {1 / crop.scale:.2f} px for each pixel of the model's input")
    if points is not None:
        warnings += [*profile_warnings(yaw_of(points)), *_appearance(picture, crop.points_to_crop(points))]
    is_found = points is not None and given.landmarks is None
    return LocatedFace(given.name, photo, crop, picture, points, is_found, visible, given.distance_mm, tuple(warnings))


def _locate(photo: Tensor, landmarks: Landmarks | None, box: Box | None):
    """Landmarks, unless there is only a box; how to crop the photo to a size; warnings."""
    crop: Callable[[int], Crop]
    if landmarks is None and box is not None:
        return None, partial(crop_from_box, *_check_box(box)), []
    points, warnings = _find_points(photo) if landmarks is None else (_read_points(landmarks, photo), [])
    crop = partial(crop_from_landmarks, points)
    return points, crop, warnings


def _find_points(photo: Float[Tensor, "3 height width"]) -> tuple[Float[Tensor, "68 2"], list[str]]:
    """Of the largest face. Small ones are looked for only where none is large: they take most of the time."""
    height, width = photo.shape[-2:]
    faces = detect_landmarks(photo, min_size=max(MIN_SIZE, max(height, width) / _FACES_ACROSS))
    if not len(faces) and max(height, width) > _FACES_ACROSS * MIN_SIZE:
        faces = detect_landmarks(photo)
    if not len(faces):
        raise NoFaceError(
            f"image: no face found in {width} x {height} px; expected one of 40 px or more from brows to chin, not "
            "upside down. Give landmarks (68 points) or the face's box."
        )
    warnings, confidence = [], float(faces.confidence[0])
    if len(faces) > 1:
        warnings.append(f"several faces: the largest of {len(faces)} is fitted")
    if confidence < _SURE:
        warnings.append(f"unsure: found with a confidence of {confidence:.2f}")
    return faces.landmarks[0], warnings


def profile_warnings(yaw: float) -> list[str]:
    """Of a face that is turned by so many degrees."""
    return [f"profile: turned by {yaw:.0f} degrees, the hidden side is a guess"] if abs(yaw) > _PROFILE else []


def _occlusion(visible: Bool[Tensor, "size size"], points: Float[Tensor, "68 2"] | None) -> list[str]:
    """How much of the face a mask hides."""
    face = torch.ones_like(visible) if points is None else hull_mask(points, len(visible))
    hidden = 1 - float(visible[face].float().mean())
    if hidden > _NOTHING_LEFT:
        raise ShapeError("mask: got one that hides the whole face; expected False only where something lies before it.")
    return [f"occluded: {100 * hidden:.0f} % of the face is hidden"] if hidden > _OCCLUDED else []


def _appearance(picture: Float[Tensor, "3 size size"], points: Float[Tensor, "68 2"]) -> list[str]:
    """What the pixels of a crop warn of."""
    levels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    skin = skin_mask(levels, points)
    marks = quality(levels, skin, points, 1.0, 1.0)
    warnings = []
    if marks["sharpness"] < _SHARP:
        warnings.append(f"blurred: sharpness {marks['sharpness']:.2f} of 1")
    return warnings


def _read_mask(mask: Mask, photo: Float[Tensor, "3 height width"]) -> Float[Tensor, "height width"]:
    try:
        is_file = isinstance(mask, str | Path)
        values = read_image(mask).mean(0) > 0.5 if is_file else torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, Nl3dmmError):
            raise
        raise ShapeError(f"mask: got {error}; expected numbers or truth values. Give one per pixel.") from error
    if values.shape != photo.shape[-2:]:
        raise ShapeError(
            f"mask: got shape {tuple(values.shape)}; expected the photo's, {tuple(photo.shape[-2:])}. Give one value "
            "per pixel of the upright photo."
        )
    return (values > 0).float()


def _read_points(landmarks: Landmarks, photo: Float[Tensor, "3 height width"]) -> Float[Tensor, "68 2"]:
    try:
        points = read_landmarks(landmarks) if isinstance(landmarks, str | Path) else torch.as_tensor(landmarks).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, Nl3dmmError):
            raise
        raise ShapeError(f"landmarks: got {error}; expected (68, 2) numbers. Give photo pixels.") from error
    if tuple(points.shape) != (68, 2):
        raise ShapeError(f"landmarks: got shape {tuple(points.shape)}; expected (68, 2). Give all 68 points.")
    if not points.isfinite().all():
        raise ShapeError("landmarks: got NaN or infinite values; expected finite pixels. Detect the face again.")
    check_landmarks(points.float(), photo.shape[-2], photo.shape[-1])
    return points.float()


def _check_box(box: Box) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ShapeError(f"box: got {box!r}; expected left, top, right, bottom. Give four numbers.") from None
    return left, top, right, bottom
