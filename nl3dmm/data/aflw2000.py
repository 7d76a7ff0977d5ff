"""AFLW2000-3D folders: photos (``.jpg``), each with a ``.mat`` of a Basel-model fit, its pose and 68 points in space.

The fits' meshes need the Basel model's bases, which nobody may ship; from a user's own file they will be a later step.
What is read here is what stands on its own: the points (``pt3d_68``) and the weak-perspective pose (``Pose_Para``).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.io import loadmat
from torch import Tensor

from nl3dmm.data.crop import Crop, crop_from_landmarks
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import check_landmarks
from nl3dmm.errors import AssetError, ImageError
from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.types import Camera, FaceBatch, concatenate

_LAYOUT = {"pt3d_68": (3, 68), "Pose_Para": (1, 7)}
_CORNER = 0.5  # the first pixel's centre is at 1
_UM_PER_MM = 1000.0
_MAX_BYTES = 2**20


def is_aflw2000_folder(path: str | Path) -> bool:
    return Path(path).is_dir() and any(Path(path).glob("*.mat"))


class AnnotatedPhotos:
    """Photos cropped as all photos are, in the order of their names, with points and cameras."""

    def __init__(self, folder: str | Path, image_size: int):
        self.folder = Path(folder)
        self.image_size = image_size
        self._files = sorted(self.folder.glob("*.mat"))
        if not self._files:
            raise AssetError(f"{folder}: got no .mat files; expected a folder of AFLW2000-3D. Check the path.")

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """Crops with landmarks and the annotated cameras, which belong to the Basel model's object frame.

        ``mask`` is where a crop shows the photo and not its repeated border: what hides a face is not annotated.
        """
        return concatenate([self._face(index) for index in indices.tolist()])

    def points(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 68 3"]:
        """Crop pixels: +x to the right from the left edge, +y *up* from the top edge, +z towards the camera.

        z is known up to an offset. Points that the photo hides are where they would be seen through the head.
        """
        return torch.stack([self._points(index) for index in indices.tolist()])

    def yaw(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Annotated, degrees, positive to the image's left (the sign of the files)."""
        return torch.rad2deg(torch.stack([_read(self._files[index])[1][1] for index in indices.tolist()]))

    def _face(self, index: int) -> FaceBatch:
        file = self._files[index]
        points, pose = _read(file)
        photo = read_image(file.with_suffix(".jpg"))
        height, width = photo.shape[-2:]
        crop = self._crop(file, points)
        try:
            check_landmarks(points[:, :2], height, width)
        except ImageError as error:
            raise ImageError(f"{file}: {error}") from error
        return FaceBatch(
            image=crop.image(photo)[None],
            index=torch.tensor([index]),
            landmarks=crop.points_to_crop(points[:, :2])[None],
            mask=_inside(crop, height, width)[None],
            camera=crop.camera_to_crop(_camera(pose, height)),
        )

    def _points(self, index: int) -> Float[Tensor, "68 3"]:
        points, _ = _read(self._files[index])
        crop = self._crop(self._files[index], points)
        columns, rows = crop.points_to_crop(points[:, :2]).unbind(1)
        return torch.stack([columns, -rows, points[:, 2] * crop.scale], 1)

    def _crop(self, file: Path, points: Float[Tensor, "68 3"]) -> Crop:
        try:
            return crop_from_landmarks(points[:, :2], self.image_size)
        except ImageError as error:
            raise AssetError(f"{file}: {error}") from error


def _camera(pose: Float[Tensor, "7"], height: int) -> Camera:
    """Of photo pixels; ``pose`` is pitch, yaw, roll (rad), translation (px, y up from the bottom), px per micrometre.

    The files' rotation ``Rx Ry Rz`` turns against ours throughout: it is the transpose of our ``Rz Ry Rx``.
    """
    pitch, yaw, roll, x, y, _, scale = pose[:, None].unbind(0)
    top_left = torch.stack([x - _CORNER, height + _CORNER - y], -1)
    rotation = rotation_from_euler(pitch, yaw, roll).mT.contiguous()
    return weak_perspective(rotation, top_left, scale * _UM_PER_MM, torch.zeros(1, 2))


def _inside(crop: Crop, height: int, width: int) -> Bool[Tensor, "size size"]:
    """Pixels of the crop whose centres lie in the photo."""
    axis = torch.arange(crop.size) + 0.5
    centres = crop.points_to_photo(torch.stack([axis, axis], -1))
    columns, rows = ((centres >= 0) & (centres <= centres.new_tensor([width, height]))).unbind(1)
    return rows[:, None] & columns


def _read(path: Path) -> tuple[Float[Tensor, "68 3"], Float[Tensor, "7"]]:
    """Points (column, row, depth towards the camera; photo px) and pose."""
    expected = "expected pt3d_68 (3, 68) and Pose_Para (1, 7), finite, as in AFLW2000-3D. Copy the file again."
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{size} bytes")
        content = loadmat(path, variable_names=list(_LAYOUT))
    except Exception as error:  # scipy raises many kinds on damaged data
        raise AssetError(f"{path}: got a file that cannot be read ({error}); {expected}") from error
    arrays = [content.get(name) for name in _LAYOUT]
    for (name, shape), array in zip(_LAYOUT.items(), arrays, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.shape != shape:
            got = "nothing" if array is None else f"{getattr(array, 'dtype', type(array))} {np.shape(array)}"
            raise AssetError(f"{path}: got {got} as {name}; {expected}")
        if not np.isfinite(array).all():
            raise AssetError(f"{path}: got NaN or infinite values in {name}; {expected}")
    points, pose = (torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in arrays)
    if not pose[0, 6] > 0:
        raise AssetError(f"{path}: got scale {float(pose[0, 6]):g} in Pose_Para; {expected}")
    return points.T.contiguous() - points.new_tensor([_CORNER, _CORNER, 0]), pose[0]
