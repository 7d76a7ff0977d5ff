"""The average face: the smooth head plus relief of forehead, orbits, cheeks, mouth, nose and eyes (millimetres)."""

import numpy as np

from nl3dmm.assets.anatomy import (
    EYE,
    EYE_HALF_WIDTH,
    EYEBALL_RADIUS,
    MOUTH_HALF_WIDTH,
    MOUTH_HEIGHT,
    brow_line,
    lid_lines,
    lip_fissure,
    lip_lines,
)
from nl3dmm.assets.fields import Array, bump, bumps, profile, ridge, smooth_maximum, step
from nl3dmm.assets.skull import head

# fmt: off
NOSE_RIDGE = np.array([  # height of the point of the face, how far the ridge stands out, its half width
    (-30, 0.0, 8.5), (-20, 0.6, 8.0), (-15.5, 6.0, 7.5), (-11.0, 15.5, 8.0), (-6.5, 23.5, 9.0), (-2.0, 25.0, 9.2),
    (3.0, 22.2, 8.2), (10.0, 17.6, 7.2), (20.0, 11.4, 6.6), (32.0, 5.4, 6.8), (42.0, 2.4, 8.5), (52.0, 0.0, 9.0),
    (60.0, 0.0, 9.0),
])
# fmt: on


def face_surface(azimuth: Array, level: Array, openness: Array | float = 1.0) -> Array:
    """Points (..., 3) of the average face; ``openness`` of the lids: 1 relaxed, 0 closed."""
    x, y, z = np.moveaxis(head(azimuth, level), -1, 0)
    front = step(z - 45, 7.0) * step(level + 92, 4.0)
    z = z + front * (_forehead(x, y) + _cheeks(x, y) + _jaw(x, y) + _mouth(x, y) + _nose(x, y))
    z = _eyes(x, y, z, openness)
    overhang = -3.0 * bump(x, y, (0, -9), (8, 3.5)) - 1.6 * bumps(x, y, (12, -11), (4.5, 3.5))
    return np.stack([x, y + front * overhang, z], -1)


def eye_opening(x: Array, y: Array, openness: Array | float = 1.0) -> Array:
    """Soft mask in [0, 1] of the visible eyeballs."""
    lids = lid_lines(x, openness)
    gap = np.minimum(lids.upper - y, y - lids.lower)
    return step(gap, 0.22) * step((1 - np.abs(lids.across)) * EYE_HALF_WIDTH, 0.3)


def _forehead(x: Array, y: Array) -> Array:
    distance = np.abs(x)
    lateral = (0.30 + 0.70 * (1 - ridge(x, 8.0))) * step(57 - distance, 5.0) * (1 - 0.4 * step(distance - 40, 6.0))
    relief = 3.6 * ridge(y - brow_line(x), 5.5) * lateral
    relief += 1.6 * bumps(x, y, (26, 74), (16, 12)) - 2.5 * bumps(x, y, (62, 50), (10, 14))
    relief += 2.2 * bump(x, y, (0, 46), (11, 6))
    return relief - 4.2 * bumps(x, y, (20, 34), (6.5, 8)) - 4.2 * bumps(x, y, (33, 32), (15, 8.5))


def _cheeks(x: Array, y: Array) -> Array:
    relief = 4.6 * bumps(x, y, (45, 6), (14, 12)) + 3.4 * bumps(x, y, (30, -6), (12, 13))
    relief -= 2.6 * bumps(x, y, (52, -28), (12, 15)) + 2.2 * bumps(x, y, (48, 31), (8, 9))
    relief -= 1.4 * bumps(x, y, (25, 17), (10, 5))
    along = np.clip((-10 - y) / 32, -0.3, 1.4)
    crease = 18 + 14.5 * np.maximum(along, 0) ** 1.25 + 3 * np.minimum(along, 0)
    window = step(along - 0.12, 0.10) * step(0.90 - along, 0.12)
    distance = np.abs(x) - crease
    return relief + window * (0.8 * ridge(distance - 6, 4.5) - 0.7 * ridge(distance, 2.6))


def _jaw(x: Array, y: Array) -> Array:
    relief = 6.0 * bump(x, y, (0, -34), (22, 15)) - 4.0 * bump(x, y, (0, -54), (16, 4.5))
    relief += 5.6 * bump(x, y, (0, -67), (14, 8.5)) + 1.0 * bumps(x, y, (8, -68), (6, 7))
    return relief + 1.6 * bumps(x, y, (36, -52), (12, 13))


def _mouth(x: Array, y: Array) -> Array:
    lips, fissure = lip_lines(x), lip_fissure(x)
    inside = step(MOUTH_HALF_WIDTH + 1 - np.abs(x), 1.0)
    arch = np.sqrt(np.clip(1 - lips.across**2, 0, 1))
    above = (y - fissure) / np.maximum(lips.upper - fissure, 0.8)
    below = (fissure - y) / np.maximum(fissure - lips.lower, 0.8)
    upper = 5.6 * ridge(above - 0.40, 0.50) * (0.30 + 0.70 * arch)
    lower = 5.8 * ridge(below - 0.42, 0.42) * (0.20 + 0.80 * arch)
    relief = inside * (smooth_maximum(upper, lower, 0.7) - 0.7 * np.log(2))
    relief -= inside * (1.5 + 4.5 * arch) * ridge(y - fissure, 0.5)
    relief += 0.4 * inside * arch * ridge(above - 1.0, 0.12)
    philtrum = step(-20 - y, 2.0) * step(y + 30, 1.5)
    relief += philtrum * (0.35 * ridge(np.abs(x) - 4.2, 1.8) - 0.6 * ridge(x, 2.2))
    corner = (MOUTH_HALF_WIDTH + 0.8, MOUTH_HEIGHT - 0.3)
    return relief - 1.9 * bumps(x, y, corner, (3.0, 2.6)) + 1.0 * bumps(x, y, (32, -38), (3.8, 6.5))


def _nose(x: Array, y: Array) -> Array:
    height = profile(y, NOSE_RIDGE[:, 0], NOSE_RIDGE[:, 1], 2.6)
    width = profile(y, NOSE_RIDGE[:, 0], NOSE_RIDGE[:, 2], 3.0)
    nose = height * np.exp(-0.7 * (x / width) ** 2)
    nose += 5.0 * bumps(x, y, (10 - 0.14 * y, 9), (5.8, 13))
    wing = np.hypot((np.abs(x) - 11.0) / 5.8, (y + 8.0) / 6.2)
    wings = 11.5 * np.exp(-0.5 * wing**2.6) + 4.0 * bumps(x, y, (7, -1), (6, 6))
    nose = smooth_maximum(nose, wings, 3.2) - 3.2 * np.log(2) * np.exp(-(((nose - wings) / 6) ** 2))
    outside = step(np.abs(x) - 12, 1.6) * step(y + 14, 2.0)
    nose -= 1.3 * outside * ridge(wing - 1.5, 0.22)
    nose += 1.6 * bump(x, y, (0, -3.5), (6, 4.5))
    return nose - 7.5 * bumps(x, y, (6.2, -13.4), (2.9, 2.2), power=2.5)


def _eyes(x: Array, y: Array, z: Array, openness: Array | float) -> Array:
    """Lids wrapped round the eyeballs, and the eyeballs in their opening."""
    lids, opening = lid_lines(x, openness), eye_opening(x, y, openness)
    near = step((1.1 - np.abs(lids.across)) * EYE_HALF_WIDTH, 1.2)
    around = step((1.35 - np.abs(lids.across)) * EYE_HALF_WIDTH, 1.2) * step(19 - np.abs(y - EYE[1]), 1.0)
    skin = z + around * (smooth_maximum(z, _ball(x, y, EYEBALL_RADIUS + 1.5, 0.83), 1.8) - 0.3 - z)
    fold = lid_lines(x).upper + 3.4 - 0.6 * lids.across
    skin += near * (
        1.0 * ridge(y - fold - 2.7, 2.0) - 0.9 * ridge(y - fold, 0.8) - 0.25 * ridge(y - lids.lower + 5, 1.4)
    )
    skin += near * 0.3 * (ridge(y - lids.lower + 0.8, 0.6) + ridge(y - lids.upper - 0.6, 0.5))
    cornea = 1.0 * bumps(x, y, EYE[:2], (3.6, 3.4))
    ball = np.minimum(_ball(x, y, EYEBALL_RADIUS, 0.74) + cornea, skin - 0.3)
    return skin + (ball - skin) * opening


def _ball(x: Array, y: Array, radius: float, breadth: float) -> Array:
    """Front of an eyeball, continued by a steep cone; ``breadth`` < 1 widens it, so that the corners do not sink."""
    distance = np.hypot(breadth * (np.abs(x) - EYE[0]), y - EYE[1])
    cap = EYE[2] + np.sqrt(np.maximum(radius**2 - distance**2, 0))
    return cap - 2.2 * np.maximum(distance - radius, 0)
