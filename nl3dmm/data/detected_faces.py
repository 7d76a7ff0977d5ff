"""What every face detector returns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from nl3dmm.types import TensorFields

MIN_SIZE = 40.0  # px
OWN_CONFIDENCE = 0.9  # least one of a face that our own detector returns


@dataclass(frozen=True)
class DetectedFaces(TensorFields):
    """The faces of one photo, largest first; pixels (column, row), (0, 0) = corner of the image."""

    landmarks: Float[Tensor, "faces 68 2"]  # iBUG order; may lie outside the image
    boxes: Float[Tensor, "faces 4"]  # left, top, right, bottom of the landmarks
    confidence: Float[Tensor, " faces"]  # [0, 1]
    source: str  # name of the detector

    def __len__(self) -> int:
        return len(self.landmarks)


@runtime_checkable
class FaceDetector(Protocol):
    """Finds the faces of an RGB image in [0, 1] with their landmarks."""

    name: str

    def __call__(self, image: Float[Tensor, "3 height width"]) -> DetectedFaces: ...


def collect_faces(
    landmarks: Float[Tensor, "faces 68 2"], confidence: Float[Tensor, " faces"], source: str
) -> DetectedFaces:
    """Boxes from the landmarks; largest face first."""
    boxes = landmarks.new_zeros(len(landmarks), 4)
    if len(landmarks):
        boxes[:, :2], boxes[:, 2:] = landmarks.amin(1), landmarks.amax(1)
    order = (boxes[:, 2:] - boxes[:, :2]).amax(1).argsort(descending=True)
    return DetectedFaces(landmarks[order], boxes[order], confidence[order], source)
