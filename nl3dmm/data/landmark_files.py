"""68 landmarks (iBUG order) from .pts, .npy and .json files, all to pixels with (0, 0) at the image's corner."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.errors import ImageError, ShapeError

NUM_LANDMARKS = 68
_MAX_BYTES = 2**20
_MIN_INSIDE = NUM_LANDMARKS // 2
_MOST_BEYOND = 10.0  # image sides from the middle of the image


def read_landmarks(path: str | Path, face: int | None = None) -> Float[Tensor, "68 2"]:
    """Read one face's landmarks as pixels (column, row), (0, 0) = corner of the image, pixel centres at .5.

    ``.pts`` (iBUG, 300-W) counts pixels from 1, so a value p becomes p - 0.5. ``.npy`` and ``.json`` are taken as
    detectors write them: 0 is the *centre* of the first pixel, so a value p becomes p + 0.5. JSON is a list of points,
    or an object with them under ``"points"`` or ``"landmarks"``; ``.npy`` and ``.json`` may hold a list of faces.

    Args:
        face: which face (from 0) of a file with several.

    Raises:
        ImageError: unreadable or unknown file, or several faces and none chosen.
        ShapeError: not 68 points of two finite numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ImageError(f"{path}: got suffix {path.suffix!r}; expected .pts, .npy or .json. Convert the file.")
    if not path.is_file():
        raise ImageError(f"{path}: got no such file; expected a landmark file. Check the path.")
    if path.stat().st_size > _MAX_BYTES:
        raise ImageError(f"{path}: got {path.stat().st_size} bytes; expected at most {_MAX_BYTES}. Check the path.")
    read, corner_from_value = _FORMATS[path.suffix.lower()]
    try:
        points = read(path)
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ImageError(
            f"{path}: got an unreadable landmark file ({error}); expected {NUM_LANDMARKS} points. Export it again."
        ) from error
    points = torch.tensor(_choose_face(path, points, face), dtype=torch.float64) + corner_from_value
    return _check_points(path, points.float())


def check_landmarks(landmarks: Float[Tensor, "68 2"], height: int, width: int) -> None:
    """Refuse landmarks that cannot belong to an image of this size (pixels).

    Raises:
        ImageError: fewer than half of them are inside the image, or one is very far outside.
    """
    size = landmarks.new_tensor([width, height])
    inside = int(((landmarks >= 0) & (landmarks <= size)).all(dim=1).sum())
    if inside < _MIN_INSIDE:
        raise ImageError(
            f"landmarks: got {inside} of {NUM_LANDMARKS} inside the {width} x {height} px image; expected at least "
            f"{_MIN_INSIDE}. Check that they belong to this photo and to its size."
        )
    beyond = float(((landmarks - size / 2).abs() / size).max())
    if beyond > _MOST_BEYOND:
        raise ImageError(
            f"landmarks: got one {beyond:.1f} image sides from the middle of the {width} x {height} px image; expected "
            "all on a face in it. Check that they belong to this photo and to its size."
        )


def _read_pts(path: Path) -> np.ndarray:
    match = re.fullmatch(r"(.*?)\{(.*)\}\s*", path.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise ValueError("no { ... } block")
    points = np.array([[float(number) for number in line.split()] for line in match[2].strip().splitlines()])
    stated = re.search(r"n_points:\s*(\d+)", match[1])
    if stated and int(stated[1]) != len(points):
        raise ValueError(f"n_points is {stated[1]}, but there are {len(points)}")
    return points


def _read_npy(path: Path) -> np.ndarray:
    # Mapped: no pickle, and a header that announces more than the file holds is refused before memory is allocated.
    values = np.lib.format.open_memmap(path, mode="r")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"dtype {values.dtype}")
    return np.asarray(values, dtype=np.float64)


def _read_json(path: Path) -> np.ndarray:
    values = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(values, dict):
        key = next((key for key in ("points", "landmarks") if key in values), None)
        if key is None:
            raise ValueError('no "points" or "landmarks"')
        values = values[key]
    return np.asarray(values, dtype=np.float64)


def _choose_face(path: Path, points: np.ndarray, face: int | None) -> np.ndarray:
    faces = points if points.ndim == 3 else points[None]
    if face is None and len(faces) != 1:
        raise ImageError(
            f"{path}: got {len(faces)} faces; expected one. Choose one with face=0 to face={len(faces) - 1}."
        )
    if not 0 <= (face or 0) < len(faces):
        raise ImageError(f"{path}: got face={face}, but the file has {len(faces)}; expected a smaller index from 0.")
    return faces[face or 0, ...]  # stays an array, also when the file holds a single number


def _check_points(path: Path, points: Tensor) -> Tensor:
    if points.shape != (NUM_LANDMARKS, 2):
        raise ShapeError(
            f"{path}: got shape {tuple(points.shape)}; expected ({NUM_LANDMARKS}, 2), iBUG order, (column, row). "
            "Use a 68-point detector and drop a third coordinate."
        )
    if not points.isfinite().all():
        raise ShapeError(f"{path}: got NaN or infinite landmarks; expected finite pixels. Detect the face again.")
    return points


_FORMATS = {".pts": (_read_pts, -0.5), ".npy": (_read_npy, 0.5), ".json": (_read_json, 0.5)}
