"""AFLW2000-3D and 300W-LP: photos (``.jpg``), each with a ``.mat`` of a Basel-model fit, its pose and 68 points.

The points (``pt3d_68``, or ``pt2d`` in 300W-LP) and the weak-perspective pose (``Pose_Para``) stand on their own. The
fits' meshes (``Shape_Para``, ``Exp_Para``) need the Basel model's bases, which nobody may ship: they come from a user's
own files.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.io import loadmat
from torch import Tensor

from nl3dmm.assets.linear_model import LinearModel
from nl3dmm.data.basel_fits import NUM_EXPRESSIONS, NUM_SHAPES, BaselFits
from nl3dmm.data.crop import Crop, crop_from_landmarks
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import check_landmarks
from nl3dmm.errors import AssetError, ImageError
from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.types import Camera, FaceBatch, concatenate

_POINTS, _PLANE_POINTS = {"pt3d_68": (3, 68)}, {"pt2d": (2, 68)}  # AFLW2000-3D, 300W-LP
_POSE = {"Pose_Para": (1, 7)}
_FIT = {"Shape_Para": (NUM_SHAPES, 1), "Exp_Para": (NUM_EXPRESSIONS, 1)}
_EXPECTED = (
    "expected pt3d_68 (3, 68) and Pose_Para (1, 7) as in AFLW2000-3D, or pt2d (2, 68) as in 300W-LP, with Shape_Para "
    "(199, 1) and Exp_Para (29, 1) for meshes, finite. Copy the file again."
)
_CORNER = 0.5  # the first pixel's centre is at 1
_UM_PER_MM = 1000.0
_MAX_BYTES = 2**20


def is_aflw2000_folder(path: str | Path) -> bool:
    return Path(path).is_dir() and any(Path(path).glob("*.mat"))


class AnnotatedPhotos:
    """Photos cropped as all photos are, in the order of their names, with points and cameras."""

    def __init__(self, folder: str | Path, image_size: int, basis: LinearModel | None = None):
        """``basis``: the model that ``read_bfm2009`` reads from ``Model_Shape.mat``; without it there are no meshes."""
        self.folder = Path(folder)
        self.fits = BaselFits(basis)
        self.image_size = image_size
        self._files = sorted(self.folder.glob("*.mat"))
        if not self._files:
            raise AssetError(f"{folder}: got no .mat files; expected a folder of AFLW2000-3D. Check the path.")

    def __len__(self) -> int:
        return len(self._files)

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """Crops with landmarks, the annotated cameras, which belong to the Basel model's object frame, and its meshes.

        ``mask`` is where a crop shows the photo and not its repeated border: what hides a face is not annotated.
        """
        return concatenate([self._face(index) for index in indices.tolist()])

    def points(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch 68 3"]:
        """Crop pixels: +x to the right from the left edge, +y *up* from the top edge, +z towards the camera.

        z is known up to an offset. Points that the photo hides are where they would be seen through the head.

        Raises:
            AssetError: a file of 300W-LP, which has the points in the plane only.
        """
        return torch.stack([self._points(index) for index in indices.tolist()])

    def yaw(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Annotated, degrees, positive to the image's left (the sign of the files)."""
        return torch.rad2deg(torch.stack([_read(self._files[index])[1][1] for index in indices.tolist()]))

    def vertices(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch vertices 3"]:
        """The fitted meshes, mm.

        Raises:
            AssetError: no basis was given, or a file has no parameters.
        """
        fits = [_read_fit(self._files[index]) for index in indices.tolist()]
        shape, expression = (torch.stack(parameters) for parameters in zip(*fits, strict=True))
        return self.fits.vertices(shape, expression)

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
            vertices=self.vertices(torch.tensor([index])) if self.fits.basis else None,
        )

    def _points(self, index: int) -> Float[Tensor, "68 3"]:
        points, _ = _read(self._files[index])
        if points[:, 2].isnan().any():
            raise AssetError(f"{self._files[index]}: got points in the plane; {_EXPECTED}")
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
    """Points (column, row, depth towards the camera; photo px; depth NaN where the file has none) and pose."""
    content = _content(path)
    is_plane = "pt3d_68" not in content and "pt2d" in content
    points, pose = _checked(path, content, (_PLANE_POINTS if is_plane else _POINTS) | _POSE)
    if not pose[0, 6] > 0:
        raise AssetError(f"{path}: got scale {float(pose[0, 6]):g} in Pose_Para; {_EXPECTED}")
    if is_plane:
        points = torch.cat([points, torch.full_like(points[:1], torch.nan)])
    return points.T.contiguous() - points.new_tensor([_CORNER, _CORNER, 0]), pose[0]


def _read_fit(path: Path) -> tuple[Float[Tensor, " shapes"], Float[Tensor, " expressions"]]:
    shape, expression = _checked(path, _content(path), _FIT)
    return shape[:, 0], expression[:, 0]


def _content(path: Path) -> dict[str, object]:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{size} bytes")
        return loadmat(path, variable_names=[*_POINTS, *_PLANE_POINTS, *_POSE, *_FIT])
    except Exception as error:  # scipy raises many kinds on damaged data
        raise AssetError(f"{path}: got a file that cannot be read ({error}); {_EXPECTED}") from error


def _checked(path: Path, content: dict[str, object], layout: dict[str, tuple[int, int]]) -> list[Tensor]:
    """The arrays of the layout, float32."""
    tensors = []
    for name in layout:
        array = content.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.shape != layout[name]:
            got = (
                "nothing" if array is None else f"{getattr(array, 'dtype', type(array))} {getattr(array, 'shape', '')}"
            )
            raise AssetError(f"{path}: got {got} as {name}; {_EXPECTED}")
        if not np.isfinite(array).all():
            raise AssetError(f"{path}: got NaN or infinite values in {name}; {_EXPECTED}")
        tensors.append(torch.from_numpy(np.asarray(array, dtype=np.float32)))
    return tensors
