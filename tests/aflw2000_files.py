"""Folders with the layout of AFLW2000-3D: drawn pictures, points and poses of a template's mean face."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

SIZE = 160  # px
SCALE = 0.0006  # px per micrometre


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Radians; Rx Ry Rz of the files, each written as their authors do."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(angle), np.sin(angle)) for angle in (pitch, yaw, roll))
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def annotation(landmarks_mm: np.ndarray, degrees: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """``pt3d_68`` (pixels from 1, y down) and ``Pose_Para`` (y up) of points in a mesh's frame."""
    angles, shift = np.radians(degrees), np.array([SIZE / 2 + 4, SIZE / 2 - 9, -30.0])
    x, y, z = SCALE * rotation(*angles) @ (1000 * landmarks_mm.T) + shift[:, None]
    pose = np.array([[*angles, *shift, SCALE]], np.float32)
    return {"pt3d_68": np.stack([x, SIZE + 1 - y, z]).astype(np.float32), "Pose_Para": pose}


def write_face(folder: Path, name: str, landmarks_mm: np.ndarray, degrees: tuple[float, float, float]) -> Path:
    """The ``.mat``, and a grey picture with a skin-coloured jaw and dark points; returns the former's path."""
    values = annotation(landmarks_mm, degrees)
    centres = [tuple(point) for point in (values["pt3d_68"][:2].T - 1).tolist()]  # Pillow counts centres from 0
    picture = Image.new("RGB", (SIZE, SIZE), (90, 90, 90))
    pen = ImageDraw.Draw(picture)
    pen.polygon(centres[:27], fill=(200, 150, 120))
    for x, y in centres[27:]:
        pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=(60, 30, 30))
    picture.save(folder / f"{name}.jpg", quality=95)
    savemat(folder / f"{name}.mat", values)
    return folder / f"{name}.mat"
