"""Soft region masks of the embedded face, drawn on its UV map."""

import numpy as np

from nl3dmm.assets.anatomy import EYE, MOUTH_HALF_WIDTH, brow_line, lip_fissure, lip_lines
from nl3dmm.assets.fields import Array, step
from nl3dmm.assets.layout import FISSURE_HALF_HEIGHT, chart
from nl3dmm.assets.skull import head
from nl3dmm.assets.surface import eye_opening


def face_regions(u: Array, v: Array) -> dict[str, Array]:
    """All regions of ``FaceTemplate.regions`` over UV points (edges about 1 mm soft)."""
    azimuth, level = chart(u, v)
    x, y, z = np.moveaxis(head(azimuth, level), -1, 0)
    front = step(z - 50, 2.0)
    lips, fissure = lip_lines(x), lip_fissure(x)
    within = front * step(MOUTH_HALF_WIDTH - np.abs(x), 0.5)
    mouth = within * step(FISSURE_HALF_HEIGHT - np.abs(y - fissure), 0.12)
    eyeballs = front * eye_opening(x, y)
    regions = {
        "left_eye": eyeballs * (x > 0),
        "right_eye": eyeballs * (x < 0),
        "eyes": front * step(1 - np.hypot((np.abs(x) - EYE[0]) / 22, (y - EYE[1] - 1) / 13), 0.05),
        "brows": front * _brows(x, y),
        "nose": front * _nose(x, y),
        "nostrils": front * step(1 - np.hypot((np.abs(x) - 6.4) / 3.8, (y + 13.6) / 2.6), 0.12),
        "lips": within * step(np.minimum(lips.upper - y, y - lips.lower), 0.4) * (1 - mouth),
        "mouth": mouth,
        "face": step(np.deg2rad(66) - np.abs(azimuth), 0.03) * step(level + 78, 1.5) * step(78 - level, 1.5),
    }
    covered = ("left_eye", "right_eye", "brows", "nostrils", "lips", "mouth")
    regions["skin"] = np.prod([1 - regions[name] for name in covered], axis=0)
    return regions


def _brows(x: Array, y: Array) -> Array:
    thickness = np.interp(np.abs(x), [9, 14, 38, 56], [2.5, 4.2, 3.4, 1.0])
    ends = step(np.abs(x) - 10, 0.8) * step(55 - np.abs(x), 0.8)
    return ends * step(thickness - np.abs(y - brow_line(x)), 0.6)


def _nose(x: Array, y: Array) -> Array:
    half_width = np.interp(y, [-17, -10, 0, 14, 34], [13, 19, 16, 11, 9])
    return step(half_width - np.abs(x), 0.8) * step(y + 17, 0.6) * step(36 - y, 1.0)
