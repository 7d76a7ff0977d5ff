"""Two small networks that find faces and their 68 landmarks: a finder on whole pictures, a regressor on crops."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nl3dmm.geometry.plane import PlaneSimilarity, similarity_onto
from nl3dmm.nn.blocks import conv_bn_elu, initialise
from nl3dmm.types import TensorFields

CROP_SIZE = 64  # px
CROP_FILL = 0.62  # a face's size over the crop's side
STRIDE = 8  # px per cell of the finder's maps
MEAN_SIZE = 30.0  # px of a face that the finder predicts with 0
_FINDER, _REGRESSOR = (16, 32, 64), (24, 48, 96, 160)
_HIDDEN = 192
_WINDOW = 5  # cells over which the finder evens out brightness and contrast
_MIN_DEVIATION = 0.005  # of the crop's side


@dataclass(frozen=True)
class FacePlace(TensorFields):
    """Where faces are, how large and how turned, in pixels of a picture."""

    centre: Float[Tensor, "faces 2"]  # of the upright landmarks' box
    size: Float[Tensor, " faces"]  # px, the longer side of that box
    angle: Float[Tensor, " faces"]  # radians, clockwise from upright

    def to_crop(self) -> PlaneSimilarity:
        """Picture to crop: upright, in the middle, ``CROP_FILL`` of the side."""
        middle = torch.full_like(self.centre, CROP_SIZE / 2)
        return similarity_onto(self.centre, middle, CROP_FILL * CROP_SIZE / self.size, -self.angle)


def place_of(landmarks: Float[Tensor, "faces 68 2"]) -> FacePlace:
    """Upright is from the middle of the mouth to the middle of the eyes."""
    up = landmarks[:, 36:48].mean(1) - landmarks[:, 48:68].mean(1)
    angle = torch.atan2(up[:, 0], -up[:, 1])
    turned = PlaneSimilarity(torch.ones_like(angle), -angle, torch.zeros_like(up))
    upright = turned.points(landmarks)
    low, high = upright.amin(1), upright.amax(1)
    centre = turned.inverse().points(((low + high) / 2)[:, None])[:, 0]
    return FacePlace(centre, (high - low).amax(1).clamp_min(1), angle)


@dataclass(frozen=True)
class FinderMaps(TensorFields):
    """One value per cell of ``STRIDE`` px."""

    heat: Float[Tensor, "batch rows columns"]  # logit: a face's centre is in this cell
    offset: Float[Tensor, "batch 2 rows columns"]  # of the centre from the cell's, in cells
    log_size: Float[Tensor, "batch rows columns"]  # of the face's size over ``MEAN_SIZE``
    turn: Float[Tensor, "batch 2 rows columns"]  # cosine and sine of the face's angle, up to a factor

    def places(self) -> FacePlace:
        """What every cell says, as one list: batch, rows, columns."""
        rows, columns = self.heat.shape[1:]
        axes = (torch.arange(n, device=self.heat.device) + 0.5 for n in (columns, rows))
        cells = torch.stack(torch.meshgrid(*axes, indexing="xy"))
        centre = (cells + self.offset) * STRIDE
        angle = torch.atan2(self.turn[:, 1], self.turn[:, 0])
        size = MEAN_SIZE * self.log_size.clamp(-2, 2).exp()
        return FacePlace(centre.permute(0, 2, 3, 1).reshape(-1, 2), size.flatten(), angle.flatten())


class FaceFinder(nn.Module):
    """Fully convolutional; sees faces of about 16 to 52 px, so an image pyramid in steps of 2 sees all."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _FINDER
        self.trunk = nn.Sequential(
            conv_bn_elu(3, first, 2),
            conv_bn_elu(first, second, 2),
            _Residual(second),
            conv_bn_elu(second, third, 2),
            *(_Residual(third) for _ in range(4)),
        )
        self.head = nn.Conv2d(third, 6, 1)
        initialise(self)
        nn.init.constant_(self.head.get_parameter("bias")[:1], -3.0)  # faces are rare

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> FinderMaps:
        """Args: image: RGB in [0, 1]."""
        maps = self.head(self.trunk(_even(image))).float()
        return FinderMaps(maps[:, 0], maps[:, 1:3], maps[:, 3], maps[:, 4:6])


@dataclass(frozen=True)
class CropLandmarks(TensorFields):
    """What the regressor says of crops."""

    points: Float[Tensor, "batch 68 2"]  # crop px
    deviation: Float[Tensor, "batch 68"]  # crop px, expected distance from the truth
    face: Float[Tensor, " batch"]  # logit: the crop shows a face in its middle


class LandmarkRegressor(nn.Module):
    """Crop -> 68 points, each with its uncertainty, and whether there is a face at all.

    The points come from a linear layer on all cells: unlike heat maps it also places points that are hidden or outside.
    """

    mean_points: Tensor

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *_REGRESSOR)
        stages = [(conv_bn_elu(i, o, 2), _Residual(o)) for i, o in pairwise(channels)]
        self.trunk = nn.Sequential(*(layer for stage in stages for layer in stage), nn.Flatten())
        cells = math.ceil(CROP_SIZE / 2 ** len(_REGRESSOR)) ** 2
        self.hidden = nn.Linear(channels[-1] * cells, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, 68 * 3 + 1)
        initialise(self)
        nn.init.normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        self.register_buffer("mean_points", torch.zeros(68, 2))  # in sides of the crop, from its middle

    def forward(self, crops: Float[Tensor, "batch 3 size size"]) -> CropLandmarks:
        """Args: crops: RGB in [0, 1]; each is standardised, so that brightness and contrast do not matter."""
        level = crops.mean((1, 2, 3), keepdim=True)
        spread = (crops.square().mean((1, 2, 3), keepdim=True) - level.square()).clamp_min(0).sqrt()
        features = F.elu(self.hidden(self.trunk((crops - level) / (spread + 0.02))))
        values = self.head(features).float()
        points, log_deviation, face = values.split((136, 68, 1), 1)
        return CropLandmarks(
            points=(points.unflatten(1, (68, 2)) * 0.1 + self.mean_points + 0.5) * CROP_SIZE,
            deviation=((log_deviation.clamp(-4, 4) - 3).exp() + _MIN_DEVIATION) * CROP_SIZE,
            face=face[:, 0],
        )


class LandmarkNetwork(nn.Module):
    """Finder and regressor; ``data.detection`` runs them on photos."""

    def __init__(self) -> None:
        super().__init__()
        self.finder = FaceFinder()
        self.regressor = LandmarkRegressor()


def finder_loss(maps: FinderMaps, place: FacePlace, has_face: Float[Tensor, " batch"]) -> dict[str, Float[Tensor, ""]]:
    """Focal loss of the heat (Law and Deng, ECCV18) and L1 of place, size and angle near the centre.

    Args:
        place: the one face of every picture; any finite values where there is none.
        has_face: 1 or 0.
    """
    rows, columns = maps.heat.shape[1:]
    axes = (torch.arange(n, device=maps.heat.device) + 0.5 for n in (columns, rows))
    offset = place.centre[:, :, None, None] / STRIDE - torch.stack(torch.meshgrid(*axes, indexing="xy"))
    width = (place.size / STRIDE / 6)[:, None, None]
    target = torch.exp(-offset.square().sum(1) / (2 * width**2)) * has_face[:, None, None]
    is_centre = (offset.abs().amax(1) <= 0.5) & (has_face[:, None, None] > 0)
    probability = maps.heat.sigmoid()
    positive = F.softplus(-maps.heat) * (1 - probability) ** 2 * is_centre
    negative = F.softplus(maps.heat) * probability**2 * (1 - target) ** 4 * ~is_centre
    count = is_centre.sum().clamp_min(1)
    near = (offset.square().sum(1) < 1.0).float() * has_face[:, None, None]
    size = (place.size / MEAN_SIZE).log()[:, None, None]
    turn = torch.stack([place.angle.cos(), place.angle.sin()], 1)[:, :, None, None]
    errors = (maps.offset - offset).abs().sum(1) + 2 * (maps.log_size - size).abs()
    errors = errors + 2 * (maps.turn - turn).abs().sum(1)
    return {"heat": (positive + negative).sum() / count, "place": (errors * near).sum() / near.sum().clamp_min(1)}


def regressor_loss(
    output: CropLandmarks, points: Float[Tensor, "batch 68 2"], has_face: Float[Tensor, " batch"]
) -> dict[str, Float[Tensor, ""]]:
    """Negative log likelihood of the distances (a plane Laplace density) and cross entropy of face or no face."""
    distance = (output.points - points).norm(dim=-1)
    likelihood = (distance / output.deviation + 2 * (output.deviation / CROP_SIZE).log()).mean(1)
    count = has_face.sum().clamp_min(1)
    return {
        "points": (likelihood * has_face).sum() / count,
        "distance": ((distance.mean(1) / CROP_SIZE) * has_face).sum() / count,
        "face": F.binary_cross_entropy_with_logits(output.face, has_face),
    }


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block = conv_bn_elu(channels, channels)

    def forward(self, features: Float[Tensor, "batch channels rows columns"]) -> Tensor:
        return features + self.block(features)


def _even(image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Less the mean and over the deviation of the surroundings, so that dark and pale corners look alike."""

    def around(values: Tensor) -> Tensor:
        cells = F.avg_pool2d(values, STRIDE, ceil_mode=True)
        return F.interpolate(
            F.avg_pool2d(cells, _WINDOW, 1, _WINDOW // 2, count_include_pad=False),
            image.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )

    mean = around(image.mean(1, keepdim=True))
    variance = around(image.square().mean(1, keepdim=True)) - mean.square()
    return (image - mean) / (variance.clamp_min(0).sqrt() + 0.05)
