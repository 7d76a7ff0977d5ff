"""The 68 iBUG landmarks of the embedded face as UV points, exact at any density; and pathway boxes from landmarks."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from nl3dmm.assets.anatomy import EYE, EYE_HALF_WIDTH, MOUTH_HALF_WIDTH, brow_line, lid_lines, lip_fissure, lip_lines
from nl3dmm.assets.fields import Array
from nl3dmm.assets.layout import FISSURE_HALF_HEIGHT, locate, locate_level
from nl3dmm.assets.template import Box

# fmt: off
MIRROR_68 = np.array([
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46,
    39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
])
JAW_AZIMUTH = np.deg2rad([78, 76, 73, 69, 63, 53, 39, 20, 0])  # visible contour from ear to chin
JAW_LEVEL = np.array([32, 6, -20, -46, -67, -77, -82, -84.5, -85])
LID_EDGE = 0.4  # mm beside the opening: on the skin, not on the step down to the eyeball
NOSE_POINTS = {
    27: (0.0, 33.0), 28: (0.0, 20.0), 29: (0.0, 8.0), 30: (0.0, -4.0),
    31: (-12.5, -13.5), 32: (-6.3, -16.0), 33: (0.0, -16.5),
}
# fmt: on


class Pathway(NamedTuple):
    """A part's box: as large as on the paper's map of 192 x 224 texels and ``margin`` times its landmarks' extent."""

    landmarks: range
    height: int = 0  # texels of the paper's map
    width: int = 0
    down: float = 0.0  # texels of the paper's map from the landmarks' centre to the box's
    inwards: float = 0.0
    margin: tuple[float, float] = (1.1, 1.1)  # rows, columns


# Spec table 3b; shifts are those that turn the paper's landmark areas into its boxes.
PATHWAYS = {
    "right_eye": Pathway(range(36, 42), 40, 48, down=-3.5, inwards=3.5),
    "left_eye": Pathway(range(42, 48), 40, 48, down=-3.5, inwards=3.5),
    "nose": Pathway(range(27, 36), 56, 48, down=-5.0),
    "mouth": Pathway(range(48, 68), 64, 96, down=10.0),
}
# The embedded chart magnifies the parts themselves, so that their extent is the measure.
EMBEDDED_PATHWAYS = {
    "right_eye": Pathway(range(36, 42), margin=(2.2, 1.15)),
    "left_eye": Pathway(range(42, 48), margin=(2.2, 1.15)),
    "nose": Pathway(range(27, 36), margin=(1.15, 1.3)),
    "mouth": Pathway(range(48, 68), margin=(2.0, 1.3)),
}
_PAPER_SIZE = (192, 224)


@cache
def landmark_uv() -> Float[ndarray, "68 2"]:
    """UV of the landmarks: the right half and the midline are placed, the left half is their mirror image."""
    u, v = np.full(68, np.nan), np.full(68, np.nan)
    u[:9], v[:9] = locate_level(-JAW_AZIMUTH, JAW_LEVEL)
    frontal, x, y = _frontal_points()
    u[frontal], v[frontal] = locate(x, y)
    missing = np.isnan(u)
    u[missing], v[missing] = 1 - u[MIRROR_68[missing]], v[MIRROR_68[missing]]
    u[np.arange(68) == MIRROR_68] = 0.5
    points = np.stack([u, v], -1)
    points.flags.writeable = False  # cached
    return points


def _frontal_points() -> tuple[Int[ndarray, " points"], Float[ndarray, " points"], Float[ndarray, " points"]]:
    """Number, x and y (on the smooth head) of the subject's right half (image left, x <= 0) and the midline."""
    corners = (EYE[0] + EYE_HALF_WIDTH + 2 * LID_EDGE, EYE[0] - EYE_HALF_WIDTH - 2 * LID_EDGE)
    curves: list[tuple[Sequence[int], Sequence[float | int], Callable[[Array], Array]]] = [
        (range(17, 22), (53, 44, 33, 22, 12), lambda x: brow_line(x) + 1.5),
        ((36, 39), corners, lambda x: lid_lines(x).lower),
        ((37, 38), (36.5, 26.5), lambda x: lid_lines(x).upper + LID_EDGE),
        ((40, 41), (26.5, 36.5), lambda x: lid_lines(x).lower - LID_EDGE),
        ((48, 60), (MOUTH_HALF_WIDTH, MOUTH_HALF_WIDTH - 3), lip_fissure),
        ((49, 50, 51), (15, 5.2, 0), lambda x: lip_lines(x).upper),
        ((57, 58, 59), (0, 5.5, 15), lambda x: lip_lines(x).lower),
        ((61, 62), (9, 0), lambda x: lip_fissure(x) + FISSURE_HALF_HEIGHT),
        ((66, 67), (0, 9), lambda x: lip_fissure(x) - FISSURE_HALF_HEIGHT),
    ]
    ids, x, y = list(NOSE_POINTS), *([point[k] for point in NOSE_POINTS.values()] for k in (0, 1))
    for numbers, distances, curve in curves:
        right = -np.array(distances, dtype=float)
        ids, x, y = [*ids, *numbers], [*x, *right], [*y, *curve(right)]
    return np.array(ids), np.array(x), np.array(y)


def pathway_boxes(
    uv: Float[ndarray, "68 2"], uv_size: tuple[int, int], pathways: Mapping[str, Pathway] = PATHWAYS
) -> dict[str, Box]:
    """Local pathways round eyes, nose and mouth from where the landmarks are; sizes are multiples of 8.

    The paper's landmarks give the paper's boxes. Symmetric under the column mirror and inside the map; the two eyes
    have one size and one row.
    """
    symmetric = (uv + uv[MIRROR_68] * (-1, 1) + (1, 0)) / 2
    return {name: _box(symmetric[list(pathway.landmarks)], pathway, uv_size) for name, pathway in pathways.items()}


def _box(points: Float[ndarray, "points 2"], pathway: Pathway, uv_size: tuple[int, int]) -> Box:
    rows, columns = uv_size
    row_scale, column_scale = rows / _PAPER_SIZE[0], columns / _PAPER_SIZE[1]
    (left, top), (right, bottom) = points.min(0) * (columns, rows), points.max(0) * (columns, rows)
    height = _multiple_of_8(max(pathway.height * row_scale, (bottom - top) * pathway.margin[0]), rows)
    width = _multiple_of_8(max(pathway.width * column_scale, (right - left) * pathway.margin[1]), columns)
    row = round((top + bottom) / 2 + pathway.down * row_scale - height / 2)
    # Rounded by distance from the axis, so that a box and its mirror image round the same way.
    offset = (left + right) / 2 - columns / 2
    distance = abs(offset) - pathway.inwards * column_scale
    column = round(columns / 2 + math.copysign(round(distance - width / 2 % 1) + width / 2 % 1, offset) - width / 2)
    return Box(min(max(row, 0), rows - height), min(max(column, 0), columns - width), height, width)


def _multiple_of_8(size: float, limit: int) -> int:
    return max(min(8 * round(size / 8), limit // 8 * 8), 8)
