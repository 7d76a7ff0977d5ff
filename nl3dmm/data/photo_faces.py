"""One photo to the faces worth training on: crops with landmarks, mask and quality, or the reason why not.

Quality is the product of four numbers in [0, 1], all stored with it:

* ``size``: pixels of the face in the photo over those in the crop, at most 1; below 1 the crop is magnified.
* ``sharpness``: deviation of the Laplacian over that of the grey values within the landmarks' hull, divided by 0.3,
  at most 1. Sharp photos reach it; a blur of 1 px brings them to one half.
* ``exposure``: share of the mask's pixels that are neither black nor saturated in any channel.
* ``confidence``: the detector's; 1 where the landmarks were supplied.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.data.crop import Crop, crop_from_landmarks, hull_mask
from nl3dmm.data.detected_faces import DetectedFaces, collect_faces
from nl3dmm.data.images import MAX_BYTES, MAX_PIXELS, read_image
from nl3dmm.data.landmark_files import check_landmarks, read_landmarks
from nl3dmm.errors import ImageError, Nl3dmmError
from nl3dmm.geometry.camera import FACE_FILL

Detect: TypeAlias = Callable[[Float[Tensor, "3 height width"]], DetectedFaces]

CROP_MARGIN = 8 / 7  # side of a stored crop over that of the crop that the encoder sees, around the same centre
LANDMARK_SUFFIXES = (".pts", ".json", ".npy")

_FOREHEAD = 0.3  # of the distance from chin to brows: the hairline of the mean face
_BROWS, _CHIN = slice(17, 27), 8
_MID_FACE = [41, 40, 47, 46, 48, 54, 31, 35]  # lower lids, mouth corners, nose: skin in all poses
_SKIN_CHROMA, _SKIN_LIGHT = 20.0, 0.5  # distance in (Cr, Cb) and least share of the luma, from the mid-face's medians
_SHARP = 0.3
_DARK, _BRIGHT = 2, 253  # of 255; beyond is clipped
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class PrepConfig:
    """What becomes a sample, and its size."""

    detector: str = "none"  # name of what finds faces in photos without a landmark file
    size: int = 256  # px of the stored crop
    min_face: float = 64.0  # px in the photo, longer side of the landmarks' box
    min_confidence: float = 0.5
    min_quality: float = 0.0
    max_pixels: int = MAX_PIXELS
    photos_per_shard: int = 512

    def __post_init__(self) -> None:
        check_range("size", self.size, 32, 4096)
        check_range("min_face", self.min_face, 1, 1e6)
        check_range("min_confidence", self.min_confidence, 0, 1)
        check_range("min_quality", self.min_quality, 0, 1)
        check_range("max_pixels", self.max_pixels, 1024, 1e9)
        check_range("photos_per_shard", self.photos_per_shard, 1, 1e6)


@dataclass(frozen=True)
class FaceSample:
    """Files of one face: crop (JPEG), mask (PNG, one bit), and what is known of it."""

    image: bytes
    mask: bytes
    record: dict[str, Any]


@dataclass(frozen=True)
class PhotoFaces:
    """What a photo gave. ``sha256`` is empty for a file that was not read."""

    photo: str
    sha256: str
    samples: tuple[FaceSample, ...]
    rejections: tuple[dict[str, Any], ...]


class Rejected(Exception):
    """A photo or face that is no sample: a reason in two or three words, and the details."""

    def __init__(self, reason: str, detail: object):
        super().__init__(reason)
        self.reason, self.detail = reason, str(detail)


def photo_faces(folder: Path, name: str, config: PrepConfig, detector: Detect | None) -> PhotoFaces:
    """The faces of the photo ``folder / name``, from the landmark file beside it or else from the detector.

    Nothing about the photo raises an error: each reason is listed.
    """
    sha256, samples, rejections = "", [], []
    try:
        data = _read(folder / name)
        sha256 = hashlib.sha256(data).hexdigest()
        photo = _decode(data, config.max_pixels)
        faces = _find(folder, name, photo, detector)
        for number in range(len(faces)):
            try:
                found = {"photo": name, "face": number, "sha256": sha256}
                samples.append(_sample(photo, faces[number], found, config))
            except Rejected as rejected:
                line = rejection(name, number, sha256, rejected.reason, rejected.detail)
                rejections.append({**line, "box": _finite(faces.boxes[number])})
    except Rejected as rejected:
        rejections.append(rejection(name, None, sha256, rejected.reason, rejected.detail))
    return PhotoFaces(name, sha256, tuple(samples), tuple(rejections))


def rejection(photo: str, face: int | None, sha256: str, reason: str, detail: str) -> dict[str, Any]:
    """A line of the list of what was not taken; faces have a box (left, top, right, bottom; photo px) besides."""
    return {"photo": photo, "face": face, "sha256": sha256, "reason": reason, "detail": detail, "box": None}


def skin_mask(
    crop: UInt8[np.ndarray, "size size 3"], landmarks: Float[Tensor, "68 2"]
) -> Bool[np.ndarray, "size size"]:
    """The landmarks' hull and the forehead above it, less what of the forehead is not coloured like the mid-face.

    That is hair, hats and background. Below the brows all of the hull counts: eyes, lips and beards are part of the
    face's albedo, but hands and glasses before it are not told from it.
    """
    size = len(crop)
    brows = landmarks[_BROWS]
    forehead = brows + _FOREHEAD * (brows.mean(0) - landmarks[_CHIN])
    whole = hull_mask(torch.cat([landmarks, forehead]), size).numpy()
    below, mid_face = (hull_mask(points, size).numpy() for points in (landmarks, landmarks[_MID_FACE]))
    smooth = cv2.GaussianBlur(crop, (0, 0), size / 128)
    colour = cv2.cvtColor(smooth, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    if not mid_face.any():
        return whole
    luma, *chroma = np.median(colour[mid_face], axis=0)
    distance = np.linalg.norm(colour[..., 1:] - chroma, axis=-1)
    other = (distance > _SKIN_CHROMA) | (colour[..., 0] < _SKIN_LIGHT * luma)
    speckles = np.ones((3, 3), np.uint8)
    other = cv2.morphologyEx((other & whole & ~below).astype(np.uint8), cv2.MORPH_OPEN, speckles)
    return whole & ~other.astype(bool)


def quality(
    crop: UInt8[np.ndarray, "size size 3"],
    mask: Bool[np.ndarray, "size size"],
    landmarks: Float[Tensor, "68 2"],
    scale: float,
    confidence: float,
) -> dict[str, float]:
    """``score`` and its four factors, as the module's docstring defines them; ``scale`` is crop px per photo px."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    inside = hull_mask(landmarks, len(crop)).numpy()
    contrast = float(grey[inside].std()) if inside.any() else 0.0
    edges = float(cv2.Laplacian(grey, cv2.CV_32F)[inside].std()) if contrast else 0.0
    clipped = np.any((crop < _DARK) | (crop > _BRIGHT), axis=-1)
    factors = {
        "size": min(1.0, 1 / scale),
        "sharpness": min(1.0, edges / max(contrast, 1.0) / _SHARP),
        "exposure": 1 - float(clipped[mask].mean()) if mask.any() else 0.0,
        "confidence": confidence,
    }
    return {name: round(value, 4) for name, value in {"score": float(np.prod([*factors.values()])), **factors}.items()}


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Rejected("too large", f"got {size} bytes; expected at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise Rejected("damaged", f"got a file that cannot be read ({error.strerror})") from error


def _decode(data: bytes, max_pixels: int) -> Float[Tensor, "3 height width"]:
    try:
        return read_image(data, max_pixels)
    except Nl3dmmError as error:
        kinds = {"Shrink the photo": "too large", "Use a larger photo": "too small"}  # what the errors advise
        raise Rejected(next((kinds[advice] for advice in kinds if advice in str(error)), "damaged"), error) from error


def _find(folder: Path, name: str, photo: Tensor, detector: Detect | None) -> DetectedFaces:
    for suffix in LANDMARK_SUFFIXES:
        file = Path(name).with_suffix(suffix)
        if (folder / file).is_file():
            return _supplied(folder / file, f"file {file.as_posix()}")
    if detector is None:
        raise Rejected("no face", "no landmark file beside the photo, and no detector")
    try:
        faces = detector(photo)
    except Exception as error:  # of packages that are not ours: one photo must not end the work on all others
        raise Rejected("detector failed", f"{type(error).__name__}: {error}") from error
    if not len(faces):
        raise Rejected("no face", f"{faces.source} found none")
    return faces


def _supplied(path: Path, source: str) -> DetectedFaces:
    faces = []
    try:
        while True:
            faces.append(read_landmarks(path, len(faces)))
    except Nl3dmmError as error:
        if not (faces and isinstance(error, ImageError)):  # that is what a file says that has no further face
            raise Rejected("bad landmark file", str(error).removeprefix(f"{path}: ")) from error
    return collect_faces(torch.stack(faces), torch.ones(len(faces)), source)


def _sample(photo: Tensor, face: DetectedFaces, found: dict[str, Any], config: PrepConfig) -> FaceSample:
    height, width = photo.shape[-2:]
    landmarks, confidence = face.landmarks[0], float(face.confidence[0])
    if not confidence >= config.min_confidence:
        raise Rejected("low confidence", f"got {confidence:.3f}; expected at least {config.min_confidence}")
    try:
        check_landmarks(landmarks, height, width)
        crop = crop_from_landmarks(landmarks, config.size, FACE_FILL / CROP_MARGIN)
    except ImageError as error:
        raise Rejected("landmarks outside", error) from error
    pixels = float((landmarks.amax(0) - landmarks.amin(0)).max())
    if pixels < config.min_face:
        raise Rejected("too small", f"got a face of {pixels:.0f} px; expected at least {config.min_face:.0f}")
    levels = (crop.image(photo).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    points = crop.points_to_crop(landmarks)
    mask = skin_mask(levels, points) & _inside(crop, height, width)
    marks = quality(levels, mask, points, crop.scale, confidence)
    if marks["score"] < config.min_quality:
        raise Rejected("low quality", f"got {marks}; expected a score of at least {config.min_quality}")
    record = {
        **found,
        "photo_size": [height, width],
        **_transforms(crop),
        "landmarks": [[round(value, 3) for value in point] for point in points.tolist()],
        "confidence": round(confidence, 4),
        "quality": marks,
        "sources": {"landmarks": face.source, "confidence": face.source, "mask": "hull and colour", "quality": "crop"},
    }
    return FaceSample(_encode(levels, "JPEG", quality=_JPEG_QUALITY), _encode(mask, "PNG"), record)


def _finite(box: Float[Tensor, "4"]) -> list[float] | None:
    """Plain numbers; JSON has no others than finite ones."""
    return [round(value, 1) for value in box.tolist()] if bool(box.isfinite().all()) else None


def _transforms(crop: Crop) -> dict[str, list[list[float]]]:
    """Matrices (2, 3) for (column, row, 1); photo pixels are those of the upright photo."""
    scale, back = crop.scale, 1 / crop.scale
    return {
        "crop_from_photo": [[scale, 0.0, -scale * crop.left], [0.0, scale, -scale * crop.top]],
        "photo_from_crop": [[back, 0.0, crop.left], [0.0, back, crop.top]],
    }


def _inside(crop: Crop, height: int, width: int) -> Bool[np.ndarray, "size size"]:
    """Pixels of the crop whose centres lie in the photo."""
    steps = (np.arange(crop.size) + 0.5) / crop.scale
    columns, rows = crop.left + steps, crop.top + steps
    return ((rows > 0) & (rows < height))[:, None] & ((columns > 0) & (columns < width))


def _encode(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()
