"""UV maps for meshes that bring none: a cylinder round the head, and regions drawn from the 68 landmarks."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from numpy import ndarray
from torch import Tensor

from nl3dmm.assets.ict import texel_tables
from nl3dmm.assets.landmarks import MIRROR_68

RADIUS = 80.0  # mm from the axis to the skin, on average
AZIMUTH_LIMIT = np.deg2rad(100.0)
ABOVE_BROWS, BELOW_CHIN = 50.0, 30.0  # mm
FACE_AZIMUTH, FACE_ABOVE_BROWS = np.deg2rad(66.0), 25.0  # of the area that metrics use; mm
FINENESS = 8  # drawn pixels per texel and axis


class Cylinder(NamedTuple):
    """A vertical cylinder: columns are azimuths, rows are heights, both even."""

    axis: float  # z of the axis, mm
    top: float  # y, mm
    bottom: float

    @property
    def size(self) -> Float[ndarray, "2"]:
        """Width and height of the map on a head of the usual radius, mm."""
        return np.array([2 * AZIMUTH_LIMIT * RADIUS, self.top - self.bottom])

    def uv(self, points: Float[ndarray, "points 3"]) -> Float[ndarray, "points 2"]:
        azimuth = np.arctan2(points[:, 0], points[:, 2] - self.axis)
        u = 0.5 + azimuth / (2 * AZIMUTH_LIMIT)
        return np.stack([u, (self.top - points[:, 1]) / (self.top - self.bottom)], -1)

    def radius(self, points: Float[ndarray, "points 3"]) -> Float[ndarray, " points"]:
        return np.hypot(points[:, 0], points[:, 2] - self.axis)


def cylinder(marks: Float[ndarray, "68 3"]) -> Cylinder:
    """Round a head given by its landmarks (mm): from above the brows to below the chin, ear to ear.

    The axis lies between the ends of the jaw line.
    """
    return Cylinder(
        axis=float(marks[[0, 16], 2].mean()),
        top=float(marks[17:27, 1].max()) + ABOVE_BROWS,
        bottom=float(marks[8, 1]) - BELOW_CHIN,
    )


def inside(uv: Float[ndarray, "points 2"]) -> Bool[ndarray, " points"]:
    return np.all((uv >= 0) & (uv <= 1), axis=1)


def outermost_texels(
    uv: Float32[Tensor, "vertices 2"],
    triangles: Int[Tensor, "triangles 3"],
    radius: Float[Tensor, " vertices"],
    uv_size: tuple[int, int],
) -> tuple[Int[Tensor, "uv_height uv_width"], Float[Tensor, "uv_height uv_width 3"]]:
    """``texel_tables`` where the map folds over itself: the outermost triangle of a texel is seen."""
    order = radius[triangles].mean(1).argsort()  # at equal depth the rasterizer sees the later one
    index, weights = texel_tables(uv, triangles[order], uv_size)
    return torch.where(index >= 0, order[index.clamp_min(0)], -1), weights


def landmark_regions(
    uv_marks: Float[ndarray, "68 2"], chart: Cylinder, uv_mask: Bool[Tensor, "uv_height uv_width"]
) -> dict[str, Float32[Tensor, "uv_height uv_width"]]:
    """The template's regions within the mask, from the mirror-symmetric outlines that the landmarks give."""
    symmetric = (uv_marks + uv_marks[MIRROR_68] * (-1, 1) + (1, 0)) / 2
    points = symmetric * chart.size  # mm, +x to the right, +y down

    def area(*outlines: ndarray) -> Tensor:
        return _filled([outline / chart.size for outline in outlines], (uv_mask.shape[0], uv_mask.shape[1]))

    right_eye, inner = points[36:42], _opened(points[60:68])
    eyeball, lips, mouth = area(right_eye), _both(area(points[48:60])), _both(area(inner))
    regions = {
        "right_eye": eyeball,
        "left_eye": eyeball.flip(1),
        "eyes": _both(area(_scaled(right_eye, 1.6, 3.2))),
        "brows": _both(area(_brow(points[17:22]))),
        "nose": _both(area(cv2.convexHull(_nose(points)[:, None].astype(np.float32))[:, 0])),
        "nostrils": _both(area(_ellipse(points[32] - (0, 2.4), 3.8, 2.6))),
        "lips": (lips - mouth).clamp_min(0),
        "mouth": mouth,
        "face": _both(area(_face(points, chart.size))),
    }
    covered = ("left_eye", "right_eye", "brows", "nostrils", "lips", "mouth")
    regions["skin"] = torch.stack([1 - regions[name] for name in covered]).prod(0)
    return {name: region * uv_mask for name, region in regions.items()}


def _filled(outlines: Sequence[ndarray], uv_size: tuple[int, int]) -> Float32[Tensor, "uv_height uv_width"]:
    """Share of each texel that the outlines (UV) enclose."""
    rows, columns = uv_size
    canvas = np.zeros((rows * FINENESS, columns * FINENESS), np.uint8)
    scale = np.array([columns, rows]) * FINENESS
    cv2.fillPoly(canvas, [np.rint(outline * scale - 0.5).astype(np.int32) for outline in outlines], 1)
    shares = canvas.reshape(rows, FINENESS, columns, FINENESS).mean((1, 3), dtype=np.float32)
    return torch.from_numpy(shares)


def _both(right: Tensor) -> Tensor:
    """Together with its mirror image."""
    return torch.maximum(right, right.flip(1))


def _scaled(outline: ndarray, across: float, down: float) -> ndarray:
    centre = outline.mean(0)
    return centre + (outline - centre) * (across, down)


def _opened(inner: ndarray) -> ndarray:
    """The inner lips' outline, half a millimetre apart where they are closed."""
    corner = np.array([0.0, 0.5])
    return np.concatenate([inner[:1], inner[1:4] - corner, inner[4:5], inner[5:] + corner])


def _brow(upper_edge: ndarray) -> ndarray:
    above, below = np.array([0.0, -1.0]), np.array([0.0, 5.0])
    return np.concatenate([upper_edge + above, upper_edge[::-1] + below])


def _nose(points: ndarray) -> ndarray:
    wings = points[33] + (points[31:36] - points[33]) * (1.5, 1.0) + (0, 1)
    root, half_width = points[27:28], np.array([9.0, 0.0])
    return np.concatenate([root - half_width, root + half_width, wings - (0, 8), wings])


def _ellipse(centre: ndarray, across: float, down: float) -> ndarray:
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return centre + np.stack([across * np.cos(angle), down * np.sin(angle)], -1)


def _face(points: ndarray, size: ndarray) -> ndarray:
    half = FACE_AZIMUTH * RADIUS
    left, right = size[0] / 2 - half, size[0] / 2 + half
    top, bottom = points[17:27, 1].min() - FACE_ABOVE_BROWS, points[8, 1]
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
