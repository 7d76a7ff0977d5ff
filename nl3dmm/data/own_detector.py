"""Our own face detector: finder on an image pyramid, regressor on crops, each crop placed by the last landmarks."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.data.detected_faces import MIN_SIZE, OWN_CONFIDENCE, DetectedFaces, collect_faces
from nl3dmm.data.motion import mirrored_points
from nl3dmm.errors import AssetError
from nl3dmm.nn.landmark_network import CROP_SIZE, FacePlace, LandmarkNetwork, place_of
from nl3dmm.types import TensorFields, concatenate

WEIGHTS = Path(__file__).parents[1] / "weights" / "landmarks.safetensors"
SMALLEST = 18.0  # px of a face in the pyramid's finest picture
LARGEST = 56.0
_PEAKS, _CANDIDATES = 400, 48  # before and after overlapping ones are dropped
_PASSES = 3
_OVERLAP = 0.5  # share of the smaller of two boxes of one face


@dataclass(frozen=True)
class Judged(TensorFields):
    """Candidates of a photo."""

    crop: FacePlace  # the regressor's last
    landmarks: Float[Tensor, "faces 68 2"]  # px
    confidence: Float[Tensor, " faces"]  # the log odds of both networks add, as those of independent witnesses


class OwnDetector:
    """Finds upright to slanted faces (in-plane turn up to about 45 degrees), less well those in profile."""

    name = "own"

    def __init__(
        self,
        network: LandmarkNetwork | None = None,
        min_size: float | int = MIN_SIZE,
        heat: float | int = 0.25,
        confidence: float | int = OWN_CONFIDENCE,
    ):
        """Args:
        network: the shipped one by default.
        min_size: px of the smallest faces (brows to chin) looked for.
        heat: of the finder's candidates, [0, 1].
        confidence: of the faces returned, [0, 1].
        """
        check_range("detector.min_size", min_size, 8, 10_000)
        check_range("detector.heat", heat, 0, 1)
        check_range("detector.confidence", confidence, 0, 1)
        self.network = load_network() if network is None else network.eval()
        self.min_size, self.heat, self.confidence = min_size, heat, confidence

    def __call__(self, image: Float[Tensor, "3 height width"]) -> DetectedFaces:
        judged = self.judge(image)
        sure = judged.confidence > self.confidence
        landmarks, confidence = judged.landmarks[sure], judged.confidence[sure]
        kept = suppress(_squares(place_of(landmarks)), confidence, _OVERLAP, of_smaller=True)
        return collect_faces(landmarks[kept], confidence[kept], self.name)

    @torch.no_grad()
    def judge(self, image: Float[Tensor, "3 height width"]) -> Judged:
        """All that the finder takes for a face, with the regressor's verdict; one face may be there several times."""
        halves = _halves(image)
        place, heat = self._candidates(halves)
        crop, landmarks, face = place, image.new_zeros(0, 68, 2), image.new_zeros(0)
        for last in [False] * (_PASSES - 1) + [True]:
            if len(heat):
                landmarks, face = self._landmarks(halves, place, with_mirror=last)
                crop, place = place, place_of(landmarks)
        return Judged(crop, landmarks, (heat + face).sigmoid())

    def _candidates(self, halves: list[Tensor]) -> tuple[FacePlace, Float[Tensor, " faces"]]:
        """The finder's places on all scales with their log odds, best first."""
        height, width = halves[0].shape[-2:]
        scale = min(1.5, SMALLEST / self.min_size)
        found = [FacePlace(halves[0].new_zeros(0, 2), halves[0].new_zeros(0), halves[0].new_zeros(0))]
        heats = [halves[0].new_zeros(0)]  # all there is where a photo is smaller than the faces looked for
        while scale * max(height, width) >= SMALLEST:
            picture = _resized(halves, scale)
            maps = self.network.finder(picture)
            heat, places = maps.heat.flatten(), maps.places()
            hot = _is_peak(maps.heat).flatten() & (heat.sigmoid() > self.heat)
            hot &= (places.size > 0.7 * SMALLEST) & (places.size < 1.3 * LARGEST)
            # One ratio per axis: the resized sides are whole pixels.
            ratio = picture.new_tensor([width / picture.shape[-1], height / picture.shape[-2]])
            found.append(FacePlace(places.centre[hot] * ratio, places.size[hot] / scale, places.angle[hot]))
            heats.append(heat[hot])
            scale /= 2
        heat, order = torch.cat(heats).sort(descending=True, stable=True)
        places, heat = concatenate(found)[order[:_PEAKS]], heat[:_PEAKS]
        kept = suppress(_squares(places), heat, _OVERLAP)[:_CANDIDATES]
        return places[kept], heat[kept]

    def _landmarks(
        self, halves: list[Tensor], places: FacePlace, with_mirror: bool
    ) -> tuple[Float[Tensor, "faces 68 2"], Float[Tensor, " faces"]]:
        """One pass: landmarks in photo pixels, log odds of a face; of crops, or of them and their mirror images."""
        motion = places.to_crop()
        level = (1 / motion.scale).log2().floor().clamp(0, len(halves) - 1).long()
        crops = halves[0].new_empty(len(level), 3, CROP_SIZE, CROP_SIZE)
        for value in level.unique().tolist():
            here = level == value
            shrunk = FacePlace(places.centre[here] / 2**value, places.size[here] / 2**value, places.angle[here])
            crops[here] = shrunk.to_crop().pictures(halves[value][None], CROP_SIZE)
        output = self.network.regressor(crops)
        points, face = output.points, output.face
        if with_mirror:
            other = self.network.regressor(crops.flip(-1))
            points = (points + mirrored_points(other.points, CROP_SIZE)) / 2
            face = (face + other.face) / 2
        return motion.inverse().points(points), face


def load_network(path: Path = WEIGHTS) -> LandmarkNetwork:
    """The network of a weights file, whose card (``.json`` beside it) holds its SHA-256.

    Raises:
        AssetError: a file is missing, or is not what the card says.
    """
    card = path.with_suffix(".json")
    if not path.is_file() or not card.is_file():
        raise AssetError(f"{path}: got no such file or no card beside it; expected both. Install nl3dmm again.")
    try:
        stated = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise AssetError(f"{card}: got {error!r}; expected an object with sha256. Install nl3dmm again.") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != stated:
        raise AssetError(f"{path}: got SHA-256 {digest}; expected {stated} as in its card. Install nl3dmm again.")
    network = LandmarkNetwork()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    weights = counters | {name: value.float() for name, value in load_file(path).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise AssetError(f"{path}: got weights of another network; expected this version's. Train again.") from error
    return network.eval()


def suppress(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], overlap: float, of_smaller: bool = False
) -> Int[Tensor, " kept"]:
    """Indices of boxes, best first, none of which overlaps a better one by more than ``overlap``.

    Overlap is intersection over union, or over the smaller box: then also the boxes within a better one go.
    """
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(2)
    whole = torch.minimum(area[:, None], area) if of_smaller else area[:, None] + area - shared
    is_same: Bool[Tensor, "boxes boxes"] = shared > overlap * whole
    kept: list[int] = []
    for index in order.tolist():
        if not is_same[index, kept].any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


def _squares(places: FacePlace) -> Float[Tensor, "faces 4"]:
    half = places.size[:, None] / 2
    return torch.cat([places.centre - half, places.centre + half], 1)


def _halves(image: Float[Tensor, "3 height width"]) -> list[Float[Tensor, "3 _ _"]]:
    """The photo, its half, its quarter, ... down to crops' size."""
    halves = [image]
    while min(halves[-1].shape[-2:]) >= 2 * CROP_SIZE:
        halves.append(F.avg_pool2d(halves[-1], 2))
    return halves


def _resized(halves: list[Tensor], scale: float) -> Float[Tensor, "1 3 _ _"]:
    """The photo at a scale, from the smallest of its halves that is not smaller."""
    height, width = halves[0].shape[-2:]
    size = [max(16, round(side * scale)) for side in (height, width)]
    source = next(half for half in reversed(halves) if half.shape[-1] >= size[1] or half is halves[0])
    return F.interpolate(source[None], size, mode="bilinear", align_corners=False, antialias=True)


def _is_peak(heat: Float[Tensor, "batch rows columns"]) -> Bool[Tensor, "batch rows columns"]:
    return heat == F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]
