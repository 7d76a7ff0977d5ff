"""Photos from shards as batches: image, landmarks and mask; what only a synthetic world knows is ``None``."""

import io
import json

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from nl3dmm.config import check_range
from nl3dmm.data.augment import NONE, PHOTOS, AugmentConfig, alter, random_motion
from nl3dmm.data.photo_faces import CROP_MARGIN
from nl3dmm.data.shards import ShardSet
from nl3dmm.errors import AssetError
from nl3dmm.geometry.plane import PlaneSimilarity
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch

_SALT = 21  # the synthetic world's are smaller


class PhotoSet:
    """Random access to the faces of prepared photos, framed as the encoder's crops are; 8 bits per colour value."""

    def __init__(self, shards: ShardSet, image_size: int, augment: AugmentConfig = PHOTOS, seed: int = 0):
        """``augment``: motions beyond the stored margin repeat its edge."""
        check_range("image_size", image_size, 8, 4096)
        self.shards, self.image_size, self.augment, self.seed = shards, image_size, augment, seed

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, indices: Int[Tensor, " batch"], visits: Int[Tensor, " batch"] | None = None) -> FaceBatch:
        """Faces; ``index`` is that of another face where one is damaged.

        Args:
            visits: numbers that tell apart all times a run sees a face; its augmentation is a function of them and the
                seed. Without them faces are framed exactly and stay as they are.
        """
        size, draws = self.image_size, None if visits is None else Draws(self.seed, visits, _SALT)
        motion = random_motion(NONE if draws is None else self.augment, draws or Draws(0, indices, 0), size)
        whole = torch.full_like(motion.shift, size / 2 * (1 - CROP_MARGIN))
        framing = PlaneSimilarity(
            motion.scale * size * CROP_MARGIN, motion.angle, motion.points(whole[:, None])[:, 0]
        )  # of a stored crop whose side is 1
        matrices = torch.cat([framing.matrix, framing.shift[..., None]], 2).double().numpy()
        faces = []
        for row, index in enumerate(indices.tolist()):  # one after the other: a face fits into the cache, a batch not
            face = self._face(index, matrices[row])
            faces.append(face if draws is None else alter(face, self.augment, draws[torch.tensor([row])]))
        return FaceBatch(  # collated: in a loader's process pictures are written to shared memory at once
            image=default_collate([face.image[0] for face in faces]),
            index=torch.cat([face.index for face in faces]),
            landmarks=default_collate([face.landmarks[0] for face in faces]),
            mask=default_collate([face.mask[0] for face in faces]),
        )

    def _face(self, index: int, matrix: Float[np.ndarray, "2 3"]) -> FaceBatch:
        """``matrix``: from (column, row, 1) of a stored crop whose side is 1 to the image."""
        sample = self.shards.read(index)
        try:
            image, mask = (np.asarray(_open(sample.members[name], mode)) for name, mode in _PICTURES)
            points = np.array(json.loads(sample.members["json"])["landmarks"]).reshape(68, 2)
        except Exception as error:  # the bytes are those that were written: then others wrote them
            raise AssetError(
                f"{self.shards.folder}: got sample {sample.key}, which cannot be decoded ({error!r}); expected jpg, "
                "mask.png and json as python -m nl3dmm.prep writes them. Make the shards with it."
            ) from error
        matrix = matrix / [[len(image), len(image), 1]]
        points = points @ matrix[:, :2].T + matrix[:, 2]
        image, mask = self._warp(image, matrix, cv2.INTER_LINEAR), self._warp(mask, matrix, cv2.INTER_NEAREST)
        return FaceBatch(
            image=torch.from_numpy(image).permute(2, 0, 1).float()[None].div_(255),
            index=torch.tensor([sample.index]),
            landmarks=torch.from_numpy(points.astype(np.float32))[None],
            mask=torch.from_numpy(mask).bool()[None],
        )

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
