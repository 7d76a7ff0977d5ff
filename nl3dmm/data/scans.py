"""Face scans: a mesh of any topology with its 68 landmarks, as a folder with one ``.obj`` and one ``.npy``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.errors import AssetError

_MAX_BYTES = 2**30


@dataclass(frozen=True)
class Scan:
    """A scan in its own frame and unit, +y up or not: only its shape means anything."""

    name: str
    points: Float[Tensor, "points 3"]
    landmarks: Float[Tensor, "68 3"]  # iBUG order


def is_scan_folder(path: str | Path) -> bool:
    return Path(path).is_dir() and any(Path(path).glob("*.obj"))


def read_scan(folder: str | Path) -> Scan:
    """The vertices of the folder's ``.obj`` and the (68, 3) array of its ``.npy``.

    Raises:
        AssetError: there is not exactly one of each, or one is damaged.
    """
    mesh, landmarks = (_only(Path(folder), pattern) for pattern in ("*.obj", "*.npy"))
    try:
        points = np.array([line.split()[1:4] for line in _lines(mesh) if line.startswith("v ")], dtype=np.float32)
        # Mapped: a header that announces more than the file holds is refused before memory is allocated.
        marks = np.asarray(np.load(landmarks, mmap_mode="r", allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise AssetError(
            f"{folder}: got an unreadable scan ({error}); expected .obj and .npy. Export again."
        ) from error
    for path, array, shape in ((mesh, points, "(points, 3)"), (landmarks, marks, "(68, 3)")):
        is_wrong = array.ndim != 2 or array.shape[1] != 3 or (array is marks and len(array) != 68)
        if is_wrong or not np.isfinite(array).all() or len(array) < 68:
            raise AssetError(f"{path}: got {array.shape}; expected {shape} finite numbers. Export the scan again.")
    return Scan(mesh.stem, torch.from_numpy(points), torch.from_numpy(marks.copy()))


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes")
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise AssetError(
            f"{folder}: got {len(found)} files {pattern}; expected one, of mesh and landmarks each. Tidy it."
        )
    return found[0]
