"""Pictures to train a face detector on: dressed synthetic faces near and far, and what is no face."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.data.augment import AugmentConfig, colour, degrade, dress
from nl3dmm.data.dressing import landmarks_of, without_features
from nl3dmm.data.motion import mirror, transformed
from nl3dmm.geometry.plane import PlaneSimilarity, similarity_onto
from nl3dmm.nn.landmark_network import CROP_SIZE, FacePlace, place_of
from nl3dmm.synthetic.clutter import clutter
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch, TensorFields

FINDER_SIZE = 96  # px
NEAR, FAR, BLANK, CLUTTER = range(4)  # faces that fill the picture, small ones, heads without features, no head
_SHARES = (0.45, 0.35, 0.1, 0.1)
_NEAR_ZOOM, _FAR_ZOOM = (0.75, 0.95), (0.27, 0.75)
_TURN = math.radians(25)
_SALTS = {"picture": 31, "finder": 32, "regressor": 33, "tempting": 35}
_TEMPTING = 0.15  # share of the crops
_CHUNK = 32
_RIM = 8.0  # the inverse of the share of half a picture over which it fades
_DRESSED = AugmentConfig(background=0.4, hair=0.35, glasses=0.25, objects=0.25)
_CHANGED = AugmentConfig()


@dataclass(frozen=True)
class LandmarkPictures(TensorFields):
    """What ``finder_batch`` and ``regressor_batch`` choose from."""

    image: UInt8[Tensor, "pictures 3 size size"]
    landmarks: Float[Tensor, "pictures 68 2"]  # px; of a blank head, where they would be
    kind: Int[Tensor, " pictures"]


@dataclass(frozen=True)
class TrainingBatch(TensorFields):
    """Pictures with at most one face each."""

    image: Float[Tensor, "batch 3 size size"]
    landmarks: Float[Tensor, "batch 68 2"]  # px
    has_face: Float[Tensor, " batch"]  # 1 or 0


@dataclass(frozen=True)
class TemptingPlaces(TensorFields):
    """Where some network sees faces that are none."""

    picture: Int[Tensor, " places"]  # which of the pictures
    place: FacePlace


def draw_pictures(
    read: Callable[[Int[Tensor, " batch"]], FaceBatch],
    faces: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LandmarkPictures:
    """``count`` pictures of the ``faces`` samples that ``read`` gives, each dressed in its own way.

    Args:
        read: of a bank or a world; its pictures set the size.
    """
    parts = []
    for indices in torch.arange(count).split(_CHUNK):
        draws = Draws(seed, indices, _SALTS["picture"])
        kind = torch.bucketize(draws.uniform(0, 1), torch.tensor(_SHARES).cumsum(0)[:-1])
        parts.append(_picture(read(indices % faces), kind, draws))
        progress(int(indices[-1]) + 1, count)
    joined = (torch.cat(values) for values in zip(*parts, strict=True))
    return LandmarkPictures(*joined)


def _picture(face: FaceBatch, kind: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    size = face.image.shape[-1]
    batch = FaceBatch(face.image, face.index, face.landmarks, face.mask)  # what need not move is left behind
    batch = without_features(batch, draws, kind == BLANK)
    points = landmarks_of(batch)
    middle = (points.amin(1) + points.amax(1)) / 2
    is_far = (kind == FAR) | ((kind == BLANK) & (draws.chance(0.5) > 0))
    zoom = torch.where(is_far, draws.uniform(*_FAR_ZOOM), draws.uniform(*_NEAR_ZOOM))
    reach = torch.where(is_far, 0.38, 0.03)[:, None] * draws.uniform(-1, 1, 2)
    motion = similarity_onto(middle, size * (0.5 + reach), zoom, draws.uniform(-_TURN, _TURN))
    others = clutter(draws, size)
    batch = mirror(_moved(batch, motion, others), draws.chance(0.5) > 0)
    batch = dress(batch, _DRESSED, draws)
    image = torch.where((kind == CLUTTER).view(-1, 1, 1, 1), others, batch.image)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).contiguous(), landmarks_of(batch), kind


def finder_batch(pictures: LandmarkPictures, seed: int, rows: Int[Tensor, " batch"]) -> TrainingBatch:
    """Small faces anywhere; without a face: too large ones, upside-down ones, blank heads and clutter.

    Args:
        rows: which random numbers to use; step times batch size and up.
    """
    draws = Draws(seed, rows, _SALTS["finder"])
    chosen, kind = _choose_pictures(pictures, draws, (0.18, 0.5, 0.12, 0.2))
    size = pictures.image.shape[-1]
    upside_down = draws.chance(0.08) > 0
    too_large = kind == NEAR
    zoom = torch.where(too_large, draws.uniform(1.4, 2.6), draws.uniform(0.8, 1.25))
    angle = draws.uniform(-_TURN, _TURN) + math.pi * upside_down
    shift = draws.uniform(-0.14, 0.14, 2) * size
    centre = torch.full_like(shift, size / 2)
    motion = similarity_onto(centre, FINDER_SIZE / 2 + shift, zoom, angle)
    has_face = (kind == FAR) & ~upside_down
    return _training_batch(pictures, chosen, motion, FINDER_SIZE, has_face, draws)


def regressor_batch(
    pictures: LandmarkPictures, seed: int, rows: Int[Tensor, " batch"], tempting: TemptingPlaces | None = None
) -> TrainingBatch:
    """Crops as the finder and earlier passes place them; without a face: badly placed crops, blank heads and clutter.

    Args:
        rows: which random numbers to use; step times batch size and up.
        tempting: what else is no face.
    """
    draws = Draws(seed, rows, _SALTS["regressor"])
    chosen, kind = _choose_pictures(pictures, draws, (0.58, 0.2, 0.08, 0.14))
    misplaced = draws.chance(0.22) > 0
    place = _perturbed(place_of(pictures.landmarks[chosen]), misplaced, draws)
    anywhere = FacePlace(
        draws.uniform(0.1, 0.9, 2) * pictures.image.shape[-1], draws.uniform(12, 80), draws.uniform(-1, 1)
    )
    place = _either(kind == CLUTTER, anywhere, place)
    has_face = ((kind == NEAR) | (kind == FAR)) & ~misplaced
    if tempting is not None and len(tempting.picture):
        dice = Draws(seed, rows, _SALTS["tempting"])
        number = (dice.uniform(0, 1) * len(tempting.picture)).long().clamp_max(len(tempting.picture) - 1)
        is_tempting = dice.chance(_TEMPTING) > 0
        chosen = torch.where(is_tempting, tempting.picture[number], chosen)
        place = _either(is_tempting, tempting.place[number], place)
        has_face &= ~is_tempting
    return _training_batch(pictures, chosen, place.to_crop(), CROP_SIZE, has_face, draws)


def _perturbed(place: FacePlace, misplaced: Tensor, draws: Draws) -> FacePlace:
    """A first guess for one half, a second for the other; or a wrong one: beside the face, a part of it, or turned."""
    error = draws.uniform(0, 1).round() * 0.65 + 0.35
    shift = draws.normal(0.07, 0.2, 2) * error[:, None]
    growth, turn = draws.normal(0.12, 0.35) * error, draws.normal(0.14, 0.5) * error
    wrong = draws.uniform(0, 5).long()
    is_beside, is_part, is_far, is_turned = (misplaced & (wrong == kind) for kind in range(4))
    is_part |= misplaced & (wrong == 4)  # the most tempting: an eye and a corner of the mouth look like a profile
    away = draws.uniform(0, 2 * math.pi)
    direction = torch.stack([away.cos(), away.sin()], 1) * draws.uniform(0.6, 1.2, 1)
    shift = shift + direction * is_beside[:, None] + draws.uniform(-0.4, 0.4, 2) * (is_part | is_far)[:, None]
    growth = growth - draws.uniform(0.6, 1.5) * is_part + draws.uniform(0.7, 1.4) * is_far
    turn = turn + draws.uniform(1.8, 4.4) * is_turned
    return FacePlace(place.centre + shift * place.size[:, None], place.size * growth.exp(), place.angle + turn)


def _either(chosen: Tensor, yes: FacePlace, no: FacePlace) -> FacePlace:
    return FacePlace(
        torch.where(chosen[:, None], yes.centre, no.centre),
        torch.where(chosen, yes.size, no.size),
        torch.where(chosen, yes.angle, no.angle),
    )


def _choose_pictures(
    pictures: LandmarkPictures, draws: Draws, shares: tuple[float, ...]
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Random pictures with the given shares of the kinds, and their kinds; any picture for a kind that is missing."""
    wanted = torch.bucketize(draws.uniform(0, 1), torch.tensor(shares).cumsum(0)[:-1])
    place = draws.uniform(0, 1)
    chosen = torch.empty_like(wanted)
    for kind in range(len(shares)):
        of_kind = (pictures.kind == kind).nonzero()[:, 0]
        of_kind = of_kind if len(of_kind) else torch.arange(len(pictures.kind))
        here = wanted == kind
        chosen[here] = of_kind[(place[here] * len(of_kind)).long().clamp_max(len(of_kind) - 1)]
    return chosen, pictures.kind[chosen]


def _training_batch(
    pictures: LandmarkPictures, chosen: Tensor, motion: PlaneSimilarity, size: int, has_face: Tensor, draws: Draws
) -> TrainingBatch:
    image = motion.pictures(pictures.image[chosen].float() / 255, size)
    batch = FaceBatch(image, chosen, motion.points(pictures.landmarks[chosen]))
    batch = mirror(batch, draws.chance(_CHANGED.mirror) > 0)
    batch = degrade(colour(batch, _CHANGED, draws), _CHANGED, draws)
    return TrainingBatch(batch.image, landmarks_of(batch), has_face.float())


def _moved(batch: FaceBatch, motion: PlaneSimilarity, behind: Float[Tensor, "batch 3 size size"]) -> FaceBatch:
    """The moved pictures fade into what is behind them; those shrunk to less than half are smoothed first."""
    size = behind.shape[-1]
    smooth = F.avg_pool2d(batch.image, 3, 1, 1, count_include_pad=False)
    source = torch.where((motion.scale < 0.6).view(-1, 1, 1, 1), smooth, batch.image)
    rim = torch.linspace(0, _RIM, size // 2).clamp_max(1)
    rim = torch.cat([rim, rim.flip(0)])
    frame = motion.pictures((rim * rim[:, None])[None, None], size, "zeros")
    moved = transformed(replace(batch, image=source), motion)
    return replace(moved, image=moved.image * frame + behind * (1 - frame))
