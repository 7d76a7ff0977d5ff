"""Photos from shards as batches: image, landmarks and mask; what only a synthetic world knows is ``None``."""

import io
import json
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from nl3dmm.assets.landmarks import MIRROR_68
from nl3dmm.config import check_range
from nl3dmm.data.photo_faces import CROP_MARGIN
from nl3dmm.data.shards import ShardSet
from nl3dmm.errors import AssetError
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch

_SALT = 21  # the synthetic world's are smaller


@dataclass(frozen=True)
class JitterConfig:
    """How differently a photo may be framed each time it is seen; the stored margin has room for these values."""

    turn: float = 3.0  # degrees, uniform in +-turn about the crop's centre
    zoom: float = 0.03  # the scale is uniform in 1 +- zoom
    shift: float = 0.02  # of the image's size, uniform in +-shift
    mirror: float = 0.5  # probability

    def __post_init__(self) -> None:
        check_range("jitter.turn", self.turn, 0, 180)
        check_range("jitter.zoom", self.zoom, 0, 0.5)
        check_range("jitter.shift", self.shift, 0, 0.5)
        check_range("jitter.mirror", self.mirror, 0, 1)


@dataclass(frozen=True)
class _Framing:
    """From stored crop to image: ``image = matrix @ (column, row, 1)``, then the mirror."""

    matrix: Float[np.ndarray, "2 3"]
    is_mirrored: bool


class PhotoSet:
    """Random access to the faces of prepared photos, framed as the encoder's crops are; 8 bits per colour value."""

    def __init__(self, shards: ShardSet, image_size: int, jitter: JitterConfig, seed: int = 0):
        check_range("image_size", image_size, 8, 4096)
        self.shards, self.image_size, self.jitter, self.seed = shards, image_size, jitter, seed

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, indices: Int[Tensor, " batch"], visits: Int[Tensor, " batch"] | None = None) -> FaceBatch:
        """Faces; ``index`` is that of another face where one is damaged.

        Args:
            visits: numbers that tell apart all times a run sees a face; framing is a function of them and the seed.
                Without them faces are framed exactly.
        """
        framings = self._framings(len(indices), visits)
        faces = [self._face(index, framing) for index, framing in zip(indices.tolist(), framings, strict=True)]
        read, images, masks, landmarks = zip(*faces, strict=True)
        return FaceBatch(
            image=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255,
            index=torch.tensor(read),
            landmarks=torch.from_numpy(np.stack(landmarks)),
            mask=torch.from_numpy(np.stack(masks)).bool(),
        )

    def _framings(self, count: int, visits: Tensor | None) -> list[_Framing]:
        """Of a crop whose side is 1."""
        jitter, size = self.jitter, self.image_size
        angles, zooms, shifts = np.zeros(count), np.ones(count), np.zeros((count, 2))
        mirrored = [False] * count
        if visits is not None:
            draws = Draws(self.seed, visits, _SALT)
            angles = draws.uniform(-jitter.turn, jitter.turn).numpy() * (math.pi / 180)
            zooms = draws.uniform(1 - jitter.zoom, 1 + jitter.zoom).numpy()
            shifts = draws.uniform(-jitter.shift, jitter.shift, 2).numpy()
            mirrored = draws.chance(jitter.mirror).bool().tolist()
        scales = zooms * size * CROP_MARGIN
        linear = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], -1).reshape(-1, 2, 2)
        linear = linear * scales[:, None, None]
        offset = size * (0.5 + shifts) - linear @ np.array([0.5, 0.5])
        matrices = np.concatenate([linear, offset[..., None]], -1)
        return [_Framing(matrix, flip) for matrix, flip in zip(matrices, mirrored, strict=True)]

    def _face(self, index: int, framing: _Framing) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Its number, RGB levels, mask and landmarks."""
        sample = self.shards.read(index)
        try:
            image, mask = (np.asarray(_open(sample.members[name], mode)) for name, mode in _PICTURES)
            points = np.array(json.loads(sample.members["json"])["landmarks"]).reshape(68, 2)
        except Exception as error:  # the bytes are those that were written: then others wrote them
            raise AssetError(
                f"{self.shards.folder}: got sample {sample.key}, which cannot be decoded ({error!r}); expected jpg, "
                "mask.png and json as python -m nl3dmm.prep writes them. Make the shards with it."
            ) from error
        matrix = framing.matrix / [[len(image), len(image), 1]]
        points = points @ matrix[:, :2].T + matrix[:, 2]
        image, mask = self._warp(image, matrix, cv2.INTER_LINEAR), self._warp(mask, matrix, cv2.INTER_NEAREST)
        if framing.is_mirrored:
            image, mask = image[:, ::-1], mask[:, ::-1]
            points = np.stack([self.image_size - points[:, 0], points[:, 1]], -1)[MIRROR_68]
        return sample.index, image, mask, points.astype(np.float32)

    def _warp(self, picture: np.ndarray, matrix: Float[np.ndarray, "2 3"], kind: int) -> np.ndarray:
        """Resample; stored pixels are averaged first where the image has fewer."""
        stored, wanted = len(picture), round(self.image_size * CROP_MARGIN)
        if wanted < stored and kind == cv2.INTER_LINEAR:
            picture = cv2.resize(picture, (wanted, wanted), interpolation=cv2.INTER_AREA)
        factor = stored / len(picture)
        linear = matrix[:, :2] * factor
        # OpenCV puts (0, 0) at the centre of the first pixel
        shifted = np.concatenate([linear, (matrix[:, 2] + linear @ [0.5, 0.5] - 0.5)[:, None]], 1)
        border = cv2.BORDER_REPLICATE if kind == cv2.INTER_LINEAR else cv2.BORDER_CONSTANT
        return cv2.warpAffine(picture, shifted, (self.image_size, self.image_size), flags=kind, borderMode=border)


_PICTURES = (("jpg", "RGB"), ("mask.png", "L"))


def _open(data: bytes, mode: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).convert(mode)
