"""Bootstrapping (Sung and Poggio, PAMI98): what a half-trained network takes for faces teaches it what is none."""

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from nl3dmm.data.augment import AugmentConfig, colour, degrade
from nl3dmm.data.landmark_pictures import FAR, NEAR, LandmarkPictures, TemptingPlaces
from nl3dmm.data.own_detector import OwnDetector
from nl3dmm.nn.landmark_network import FacePlace, LandmarkNetwork, place_of
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch, concatenate

_MIN_SIZE, _HEAT, _CONFIDENCE = 14.0, 0.12, 0.25
_SALT = 34


def tempting_places(
    network: LandmarkNetwork,
    pictures: LandmarkPictures,
    seed: int,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TemptingPlaces:
    """Search ``count`` random pictures, coloured and degraded as in training, for faces that are none."""
    detector = OwnDetector(network, min_size=_MIN_SIZE, heat=_HEAT)
    order = torch.randperm(len(pictures.kind), generator=torch.Generator().manual_seed(seed))[:count]
    truth = place_of(pictures.landmarks)
    found = []
    for done, number in enumerate(order.tolist()):
        progress(done, count)
        row = torch.tensor([number])
        batch, draws = FaceBatch(pictures.image[row].float() / 255, row), Draws(seed, row, _SALT)
        batch = degrade(colour(batch, AugmentConfig(), draws), AugmentConfig(), draws)
        judged = detector.judge(batch.image[0])
        wrong = judged.confidence > _CONFIDENCE
        if int(pictures.kind[number]) in (NEAR, FAR):
            wrong &= _is_elsewhere(place_of(judged.landmarks), truth[number])
        found.append(TemptingPlaces(row.expand(int(wrong.sum())), judged.crop[wrong]))
    return concatenate(found)


def _is_elsewhere(places: FacePlace, truth: FacePlace) -> Bool[Tensor, " faces"]:
    """Too far from the one true face, or of another size, to be taken for it."""
    away = (places.centre - truth.centre).norm(dim=1) > 0.5 * truth.size
    return away | ((places.size / truth.size).log().abs() > 0.55)
