"""300W-LP as the paper's authors preprocessed it: 256 px crops, masks, and rows of 294 numbers.

``filelist/{SET}_filelist.txt`` names the pictures in ``image/`` and ``mask_img/``; ``filelist/{SET}_param.dat`` holds
their rows: person 1, projection 8, pose 7, shape 199, expression 29, texture 40, illumination 10. The original 300W-LP,
``.jpg`` with ``.mat``, is read by ``AnnotatedPhotos``.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nl3dmm.assets.linear_model import LinearModel
from nl3dmm.data.basel_fits import NUM_EXPRESSIONS, NUM_SHAPES, BaselFits
from nl3dmm.data.crop import Crop
from nl3dmm.data.images import read_image
from nl3dmm.errors import AssetError, ShapeError
from nl3dmm.geometry.camera import project, rotation_from_6d, weak_perspective
from nl3dmm.types import Camera, FaceBatch, concatenate

SIDE = 256  # px of the pictures
_SIZES = (1, 8, 7, NUM_SHAPES, NUM_EXPRESSIONS, 40, 10)
_UM_PER_MM = 1000.0
_CORNER = 0.5  # the first pixel's centre is at 1
_SKEW = 0.02  # cosine between the rows of a projection, or relative difference of their lengths


class Parameters(NamedTuple):
    """Columns of the rows, in the authors' units (micrometres, pixels from 1 with y upwards, radians)."""

    person: Float[Tensor, "batch 1"]
    projection: Float[Tensor, "batch 8"]
    pose: Float[Tensor, "batch 7"]
    shape: Float[Tensor, "batch shapes"]
    expression: Float[Tensor, "batch expressions"]
    texture: Float[Tensor, "batch textures"]
    illumination: Float[Tensor, "batch illuminations"]


class PreprocessedFaces:
    """The middle of the pictures, with cameras and masks; landmarks and meshes where the basis is given."""

    def __init__(self, folder: str | Path, subset: str, image_size: int = 224, basis: LinearModel | None = None):
        """
        Args:
            subset: AFW, HELEN, IBUG, LFPW, one of them with ``_Flip``, or AFLW2000.
            image_size: at most 256; the side of the middle that is kept.
            basis: what ``read_bfm2009`` reads from ``Model_Shape.mat``.
        """
        self.folder = Path(folder)
        self.fits = BaselFits(basis)
        if not 1 <= image_size <= SIDE:
            raise ShapeError(f"image_size: got {image_size}; expected 1 to {SIDE}. Use 224.")
        margin = (SIDE - image_size) / 2
        self.crop = Crop(margin, margin, 1.0, image_size)
        lists = self.folder / "filelist"
        self._names = _read_names(lists / f"{subset}_filelist.txt")
        self._rows = _read_rows(lists / f"{subset}_param.dat", len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def parameters(self, indices: Int[Tensor, " batch"]) -> Parameters:
        rows = torch.from_numpy(np.array(self._rows[indices.numpy()]))
        return Parameters(*rows.split(_SIZES, dim=1))

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """Crops with all that is known of them; ``mask`` is the authors': face that nothing hides."""
        return concatenate([self._face(index) for index in indices.tolist()])

    def vertices(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch vertices 3"]:
        """The fitted meshes, mm.

        Raises:
            AssetError: no basis was given.
        """
        values = self.parameters(indices)
        return self.fits.vertices(values.shape, values.expression)

    def _face(self, index: int) -> FaceBatch:
        one = torch.tensor([index])
        camera = self.crop.camera_to_crop(self._camera(index))
        vertices = self.vertices(one) if self.fits.basis else None
        mask = self.crop.image(self._picture("mask_img", index)[:1])[0] > 0.5
        return FaceBatch(
            image=self.crop.image(self._picture("image", index))[None],
            index=one,
            landmarks=None if vertices is None else project(camera, self.fits.landmarks(vertices))[0],
            mask=mask[None],
            camera=camera,
            vertices=vertices,
        )

    def _camera(self, index: int) -> Camera:
        """Of picture pixels; the eight numbers are the columns of ``[f R | t]``, two by four."""
        matrix = self.parameters(torch.tensor([index])).projection.view(1, 4, 2).mT
        rows, shift = matrix[..., :3], matrix[..., 3]
        lengths, cosine = rows.norm(dim=2), torch.cosine_similarity(rows[:, 0], rows[:, 1])
        skew = max(float(cosine.abs()), float((lengths[:, 0] / lengths[:, 1] - 1).abs()))
        if not skew < _SKEW:
            got = f"a projection whose rows differ from a scaled rotation's by {skew:.2g}"
            raise _refusal(Path(self._names[index]), got, f"less than {_SKEW}")
        rotation = rotation_from_6d((rows / lengths[..., None]).flatten(1))
        top_left = torch.stack([shift[:, 0] - _CORNER, SIDE + _CORNER - shift[:, 1]], -1)
        return weak_perspective(rotation, top_left, lengths.mean(1) * _UM_PER_MM, torch.zeros(1, 2))

    def _picture(self, kind: str, index: int) -> Float[Tensor, "3 side side"]:
        path = self.folder / kind / self._names[index]
        picture = read_image(path)
        if tuple(picture.shape[1:]) != (SIDE, SIDE):
            raise _refusal(path, f"{tuple(picture.shape[1:])} px", f"{SIDE} x {SIDE}")
        return picture


def _read_names(path: Path) -> list[str]:
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise _refusal(path, f"a file that cannot be read ({error})", "names of pictures") from error
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if not names or outside:
        raise _refusal(path, f"the name {outside[0]!r}" if outside else "no names", "names of pictures in image/")
    return names


def _read_rows(path: Path, count: int) -> Float[ndarray, "faces columns"]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal(path, f"a file that cannot be read ({error})", "rows of numbers") from error
    width = sum(_SIZES)
    if len(content) != 4 * count * width:
        wanted = f"{4 * count * width}, {width} numbers (float32) for each of {count} names"
        raise _refusal(path, f"{len(content)} bytes", wanted)
    rows = np.frombuffer(content, "<f4").reshape(count, width)
    if not np.isfinite(rows).all():
        raise _refusal(path, "NaN or infinite values", "finite numbers")
    return rows


def _refusal(path: Path, got: str, expected: str) -> AssetError:
    return AssetError(f"{path}: got {got}; expected {expected}. Copy the authors' 300W_LP_crop folder again.")
