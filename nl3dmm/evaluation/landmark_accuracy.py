"""How well a face detector does on annotated photos: what it finds, how far its points are off, what it makes up."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.data.detection import FaceDetector
from nl3dmm.data.images import read_image
from nl3dmm.data.pose import yaw_of
from nl3dmm.errors import AssetError

_CENTRE = 0.5  # detectors count from the first pixel's centre
_SOURCES = ("given", "dlib68", "mediapipe68")  # the first that knows a face is its reference
_SAME_FACE = 0.4  # intersection over union of landmark boxes
_FRONTAL = 30.0  # degrees of yaw


@dataclass(frozen=True)
class FaceResult:
    """One listed face, and what the detector says of it."""

    photo: str
    size: float  # px, longer side of the reference's box
    yaw: float  # degrees, of the reference's points
    error: float | None  # mean distance of the inner 51 points over the outer eye corners' distance; None: not found


@dataclass(frozen=True)
class Measured:
    """Results of a folder."""

    faces: list[FaceResult]
    false_positives: dict[str, int]  # per photo: faces that no list has
    seconds: float  # in the detector

    def summary(self, min_size: float = 80.0) -> dict[str, float | int]:
        """Figures over faces with boxes of more than ``min_size`` px; errors in percent."""
        large = [face for face in self.faces if face.size > min_size]
        errors = {
            "frontal": [face.error for face in large if face.error is not None and abs(face.yaw) < _FRONTAL],
            "turned": [face.error for face in large if face.error is not None and abs(face.yaw) >= _FRONTAL],
        }
        figures: dict[str, float | int] = {
            "faces": len(large),
            "found": sum(face.error is not None for face in large) / max(len(large), 1),
        }
        for name, values in errors.items():
            part = torch.tensor(values or [float("nan")]) * 100
            figures |= {f"{name}_faces": len(values), f"{name}_median": float(part.median())}
            figures |= {f"{name}_mean": float(part.mean())}
        photos = max(len(self.false_positives), 1)
        figures["false_positives_per_photo"] = sum(self.false_positives.values()) / photos
        return figures | {"photos_per_second": photos / max(self.seconds, 1e-9)}


def measure_folder(
    folder: Path, detector: FaceDetector, progress: Callable[[int, int], None] = lambda done, total: None
) -> Measured:
    """Compare with ``landmarks.json`` of the folder: per photo, lists of faces of 68 points per source.

    Raises:
        AssetError: no such file, or not what is expected.
    """
    listed = _read(folder / "landmarks.json")
    faces: list[FaceResult] = []
    made_up: dict[str, int] = {}
    seconds = 0.0
    for number, (name, sources) in enumerate(listed.items()):
        image = read_image(folder / name)
        start = time.perf_counter()
        found = detector(image).landmarks
        seconds += time.perf_counter() - start
        references = reference_faces(sources)
        overlap = box_overlap(references, found)
        matched = overlap.amax(1) > _SAME_FACE if len(found) else torch.zeros(len(references), dtype=torch.bool)
        for row, reference in enumerate(references):
            error = point_error(found[overlap[row].argmax()], reference) if matched[row] else None
            size = (reference.amax(0) - reference.amin(0)).amax()
            faces.append(FaceResult(name, float(size), yaw_of(reference), error))
        made_up[name] = int((overlap.amax(0) <= _SAME_FACE).sum()) if len(references) else len(found)
        progress(number + 1, len(listed))
    return Measured(faces, made_up, seconds)


def reference_faces(sources: dict[str, Any]) -> Float[Tensor, "faces 68 2"]:
    """Every face that some source lists, once."""
    kept = torch.zeros(0, 68, 2)
    for source in _SOURCES:
        points = torch.tensor(sources.get(source) or [], dtype=torch.float32)
        points = points[None] if points.ndim == 2 else points
        if points.shape[1:] != (68, 2):  # five points, or none
            continue
        known = box_overlap(points, kept)
        is_new = known.amax(1) <= _SAME_FACE if len(kept) else torch.ones(len(points), dtype=torch.bool)
        kept = torch.cat([kept, points[is_new] + _CENTRE])
    return kept


def point_error(points: Float[Tensor, "68 2"], reference: Float[Tensor, "68 2"]) -> float:
    """Mean distance of points 18 to 68 (brows to mouth) over the distance of the reference's outer eye corners."""
    distance = (points - reference)[17:].norm(dim=1).mean()
    return float(distance / (reference[36] - reference[45]).norm())


def box_overlap(first: Float[Tensor, "n 68 2"], second: Float[Tensor, "m 68 2"]) -> Float[Tensor, "n m"]:
    """Intersection over union of the points' boxes."""
    if not (len(first) and len(second)):
        return torch.zeros(len(first), len(second))
    low, high = (torch.stack([p.amin(1), p.amax(1)], 1) for p in (first, second))
    start = torch.maximum(low[:, None, 0], high[None, :, 0])
    end = torch.minimum(low[:, None, 1], high[None, :, 1])
    shared = (end - start).clamp_min(0).prod(-1)
    area = [(box[:, 1] - box[:, 0]).prod(-1) for box in (low, high)]
    return shared / (area[0][:, None] + area[1] - shared).clamp_min(1e-9)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{path}: got {error}; expected an object of photo names to lists of landmarks. Check the folder."
        ) from error
