"""Choose a face detector: our own, which is shipped, or MediaPipe's or dlib's where they are installed."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.data.detected_faces import MIN_SIZE, OWN_CONFIDENCE, DetectedFaces, FaceDetector, collect_faces
from nl3dmm.data.images import ImageSource, read_image
from nl3dmm.errors import AssetError, BackendError, ConfigError

__all__ = ["DetectedFaces", "FaceDetector", "collect_faces", "detect_landmarks", "load_detector"]

# Which of MediaPipe's 478 points lie where iBUG's 68 are: the visible outline of a frontal face, and the inner points.
_MEDIAPIPE_68 = (
    *(127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 82, 13, 312, 308, 317, 14, 87),
)
_CENTRE = 0.5  # dlib counts from the first pixel's centre


def detect_landmarks(
    image: ImageSource,
    detector: FaceDetector | str = "own",
    min_size: float | int = MIN_SIZE,
    max_faces: int | None = None,
) -> DetectedFaces:
    """Find the faces of a photo.

    Args:
        image: whatever ``read_image`` reads; EXIF orientation is applied, pixels are those of the upright photo.
        detector: ``own``, ``mediapipe:PATH.task``, ``dlib:PATH.dat``, or any callable of the same kind.
        min_size: px; smaller faces (brows to chin) are not looked for by our own detector, nor returned by others.
        max_faces: return the largest only.

    Raises:
        ImageError, ShapeError: see ``read_image``.
        ConfigError, AssetError, BackendError: see ``load_detector``.
    """
    check_range("max_faces", 1 if max_faces is None else max_faces, 1, 1_000_000)
    find = load_detector(detector, min_size) if isinstance(detector, str) else detector
    found = find(read_image(image).cpu())
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(1)
    return found[sides >= 0.8 * min_size][:max_faces]  # what is looked for is known to a fifth


def load_detector(
    name: str = "own", min_size: float | int = MIN_SIZE, confidence: float | int = OWN_CONFIDENCE
) -> FaceDetector:
    """A detector by name.

    Args:
        min_size: px of the smallest faces that our own looks for; others look for what they were made for.
        confidence: least one of the faces that our own returns.

    Raises:
        ConfigError: unknown name.
        AssetError: the model file is missing or damaged.
        BackendError: the package is not installed.
    """
    if name == "own":
        from nl3dmm.data.own_detector import OwnDetector  # here: whoever reads a photo need not load networks

        return OwnDetector(min_size=min_size, confidence=confidence)
    kind, path = _plugin(name)
    return _PLUGINS[kind](path)


def detector_identity(name: str) -> str:
    """What its results depend on: kind and SHA-256 of its weights, wherever the file lies.

    Raises:
        ConfigError, AssetError: see ``load_detector``.
    """
    if name == "own":
        from nl3dmm.data.own_detector import WEIGHTS

        kind, path = name, WEIGHTS
    else:
        kind, path = _plugin(name)
    return f"{kind}:sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def _plugin(name: str) -> tuple[str, Path]:
    """Kind and model file."""
    kind, _, path = name.partition(":")
    if kind not in _PLUGINS or not path:
        raise ConfigError(f"detector: got {name!r}; expected own, mediapipe:PATH.task or dlib:PATH.dat. Choose one.")
    if not Path(path).is_file():
        raise AssetError(f"detector: got {path}, which is no file; expected {kind}'s model file. Check the path.")
    return kind, Path(path)


class MediaPipeDetector:
    """MediaPipe's face landmarker; needs ``pip install mediapipe`` and its ``face_landmarker.task``."""

    name = "mediapipe"

    def __init__(self, model: Path, max_faces: int = 20):
        try:
            import mediapipe  # pyright: ignore[reportMissingImports]
            from mediapipe.tasks.python import BaseOptions, vision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("mediapipe", error) from error
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model)), num_faces=max_faces
        )
        try:
            self._landmarker = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise _damaged(model, error) from error
        self._image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)

    def __call__(self, image: Float[Tensor, "3 height width"]) -> DetectedFaces:
        """MediaPipe gives no confidence: it is 1."""
        height, width = image.shape[-2:]
        faces = self._landmarker.detect(self._image(_levels(image))).face_landmarks
        points = [[(face[index].x * width, face[index].y * height) for index in _MEDIAPIPE_68] for face in faces]
        landmarks = torch.tensor(points, dtype=torch.float32).view(-1, 68, 2)
        return collect_faces(landmarks, torch.ones(len(landmarks)), self.name)


class DlibDetector:
    """dlib's HOG detector and 68-point predictor; needs ``pip install dlib`` and a shape predictor's ``.dat``."""

    name = "dlib"

    def __init__(self, model: Path):
        try:
            import dlib  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("dlib", error) from error
        self._find = dlib.get_frontal_face_detector()
        try:
            self._predict = dlib.shape_predictor(str(model))
        except RuntimeError as error:
            raise _damaged(model, error) from error

    def __call__(self, image: Float[Tensor, "3 height width"]) -> DetectedFaces:
        """dlib's score, a margin of about 0 to 3, becomes a confidence by a sigmoid."""
        pixels = _levels(image)
        boxes, scores, _ = self._find.run(pixels, 1, 0.0)
        shapes = [self._predict(pixels, box).parts() for box in boxes]
        points = [[(part.x + _CENTRE, part.y + _CENTRE) for part in shape] for shape in shapes]
        landmarks = torch.tensor(points, dtype=torch.float32).view(-1, 68, 2)
        return collect_faces(landmarks, torch.tensor(list(scores), dtype=torch.float32).sigmoid(), self.name)


_PLUGINS = {"mediapipe": MediaPipeDetector, "dlib": DlibDetector}


def _levels(image: Float[Tensor, "3 height width"]) -> np.ndarray:
    """Rows of 8-bit RGB pixels."""
    return np.ascontiguousarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _missing(package: str, error: ImportError) -> BackendError:
    return BackendError(
        f"detector: got {package}, which cannot be imported ({error}); expected an installed package. "
        f'pip install {package}, or use detector="own".'
    )


def _damaged(model: Path, error: Exception) -> AssetError:
    return AssetError(f"detector: got {model}, which cannot be read ({error}); expected a model file. Get it again.")
