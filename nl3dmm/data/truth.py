"""A folder of pictures with exact truth on the ICT topology: ``truth.npz`` and one PNG per face, named by its seed."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.data.crop import crop_from_landmarks
from nl3dmm.data.images import read_image
from nl3dmm.errors import AssetError
from nl3dmm.geometry.camera import perspective
from nl3dmm.types import Camera, FaceBatch, concatenate

TRUTH_FILE = "truth.npz"
_MM_PER_CM = 10.0
# Key -> shape; the first axis counts the faces where it is None.
_LAYOUT: dict[str, tuple[int | None, ...]] = {
    "mask": (None, -1, -1),
    "landmarks": (None, 68, 2),
    "identity": (None, -1),
    "expression": (None, -1),
    "rotation": (None, 3, 3),
    "sh": (None, 9, 3),
    "albedo": (None, -1, -1, 3),
    "seed": (None,),
    "focal_px": (),
    "camera_distance_cm": (),
    "look_at_cm": (3,),
}


class TruthFaces:
    """Faces cropped as photos are, with cameras, light, meshes and albedo in nl3dmm's conventions.

    The pictures' shading is linear and their colours are sRGB, which a model of encoding ``none`` can only approach.
    """

    def __init__(self, folder: str | Path, template: FaceTemplate, image_size: int):
        self.folder = Path(folder)
        self.template = template.to("cpu")
        self.image_size = image_size
        self._data = _read(self.folder / TRUTH_FILE)
        sizes = (self._data["identity"].shape[1], self._data["expression"].shape[1])
        if template.name != "ict" or sizes != (len(template.identity_basis), len(template.expression_basis)):
            raise AssetError(
                f"data: got {self.folder}, whose faces are meshes of the ICT model, for a model of template "
                f"{template.name!r}; expected one trained with template=ict. Choose --data world or another checkpoint."
            )

    def __len__(self) -> int:
        return len(self._data["seed"])

    def sample(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """Pictures and everything that is true of them."""
        return concatenate([self._face(index) for index in indices.tolist()])

    def vertices(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch vertices 3"]:
        """The meshes alone, mm."""
        return self.template.morph(self._tensor("identity")[indices], self._tensor("expression")[indices])

    def mean_albedo(self) -> Float[Tensor, "3 uv_height uv_width"]:
        """Of all faces of the folder."""
        return torch.cat([self._albedo(index) for index in range(len(self))]).mean(0)

    def _face(self, index: int) -> FaceBatch:
        one = torch.tensor([index])
        landmarks = self._tensor("landmarks")[index]
        crop = crop_from_landmarks(landmarks, self.image_size)
        photo = read_image(self.folder / f"{int(self._data['seed'][index])}.png")
        mask = crop.image(self._tensor("mask")[index][None].float()) > 0.5
        return FaceBatch(
            image=crop.image(photo)[None],
            index=one,
            landmarks=crop.points_to_crop(landmarks)[None],
            mask=mask,
            camera=crop.camera_to_crop(self._camera(index, photo.shape[-1])),
            sh_coefficients=self._tensor("sh")[index][None].transpose(1, 2),
            vertices=self.vertices(one),
            albedo=self._albedo(index),
        )

    def _camera(self, index: int, size: int) -> Camera:
        """A pinhole on the axis through the point looked at, about which the head turns."""
        rotation, look_at = self._tensor("rotation")[index], self._tensor("look_at_cm") * _MM_PER_CM
        distance = float(self._data["camera_distance_cm"]) * _MM_PER_CM
        position = rotation @ look_at + torch.tensor([0, 0, distance])
        return perspective(rotation[None], position[None], self._tensor("focal_px")[None], torch.full((1, 2), size / 2))

    def _albedo(self, index: int) -> Float[Tensor, "1 3 uv_height uv_width"]:
        pixels = self._tensor("albedo")[index].permute(2, 0, 1)[None].float() / 255
        return F.interpolate(pixels, self.template.uv_size, mode="bilinear", antialias=True, align_corners=False)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._data[name])


def _read(path: Path) -> dict[str, ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            data = {key: archive[key] for key in _LAYOUT if key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, f"a file that cannot be read ({error})") from error
    count = len(data["seed"]) if "seed" in data and data["seed"].ndim else -1
    for key, layout in _LAYOUT.items():
        expected = tuple(count if size is None else size for size in layout)
        got = data[key].shape if key in data else None
        if (
            got is None
            or len(got) != len(expected)
            or any(e not in (-1, g) for e, g in zip(expected, got, strict=True))
        ):
            raise _damaged(path, f"{key}: {got}, not {expected}")
    return data


def _damaged(path: Path, got: str) -> AssetError:
    return AssetError(f"{path}: got {got}; expected the truth of rendered ICT faces. Copy the folder again.")
