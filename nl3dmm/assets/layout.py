"""The UV chart of the embedded face: texel centres -> (azimuth, level) on the head, denser where detail is.

``level`` numbers the slices of the head: it is the height (mm) of a slice on the midline down to the chin, and
continues as arc length under it. Rows follow the lids and lips, so their edges stay sharp on coarse grids, and a few
rows are kept inside the closed mouth, which become its interior when the jaw opens.
"""

from collections.abc import Callable

import numpy as np

from nl3dmm.assets.anatomy import (
    EYE,
    EYE_HALF_WIDTH,
    MOUTH_HALF_WIDTH,
    MOUTH_HEIGHT,
    Lines,
    lid_lines,
    lip_fissure,
    lip_lines,
)
from nl3dmm.assets.fields import Array, monotone_cubic, step
from nl3dmm.assets.skull import head

AZIMUTH_LIMIT = np.deg2rad(94.0)
# fmt: off
ROW_KNOTS = np.array([
    # v, level
    (0.000, 100.0), (0.110, 76.0), (0.210, 52.0), (0.264, 40.0), (0.356, 28.0), (0.420, 12.0), (0.470, 0.0),
    (0.548, -14.0), (0.604, -27.0), (0.652, -34.6), (0.692, -35.4), (0.750, -45.0), (0.806, -57.0),
    (0.890, -78.0), (1.000, -112.0),
])
# fmt: on
EYE_LEVELS = (10.0, 28.0, 40.0, 46.0, 58.0)  # lid edges 28 and 40, lid fold 46; rows beyond 10 and 58 stay level
MOUTH_LEVELS = (-62.0, -45.0, -35.4, -34.6, -27.0, -13.0)
FISSURE_HALF_HEIGHT = 0.4


def chart(u: Array, v: Array, openness: Array | float = 1.0) -> tuple[Array, Array]:
    """Azimuth (rad) and level (mm) of UV points; the rows of the lids move with their ``openness``."""
    side = 2 * u - 1
    azimuth = AZIMUTH_LIMIT * (0.62 * side + 0.38 * side**3)
    level = monotone_cubic(v, ROW_KNOTS[:, 0], ROW_KNOTS[:, 1])
    return azimuth, level + _lid_shift(azimuth, level, openness) + _lip_shift(azimuth, level)


def texel_centers(uv_size: tuple[int, int]) -> tuple[Array, Array]:
    """``u`` and ``v`` of all texels, each (rows, columns)."""
    rows, columns = uv_size
    v, u = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return u, v


def locate(x: Array, y: Array) -> tuple[Array, Array]:
    """UV of points (x, y) of the frontal plane: inverse of ``head(*chart(u, v))`` by alternating bisection."""
    u, v = np.full_like(x, 0.5), np.full_like(y, 0.5)
    for _ in range(6):
        u = _bisect(lambda trial, v=v: head(*chart(trial, v))[..., 0] - x, u.shape)
        v = _bisect(lambda trial, u=u: y - head(*chart(u, trial))[..., 1], v.shape)
    return u, v


def locate_level(azimuth: Array, level: Array) -> tuple[Array, Array]:
    """UV of points given by azimuth (rad) and level (mm)."""
    u = _bisect(lambda trial: chart(trial, np.full_like(trial, 0.5))[0] - azimuth, azimuth.shape)
    return u, _bisect(lambda trial: level - chart(u, trial)[1], level.shape)


def _bisect(increasing: Callable[[Array], Array], size: tuple[int, ...]) -> Array:
    """Roots in [0, 1] of an increasing function, elementwise."""
    low, high = np.zeros(size), np.ones(size)
    for _ in range(32):
        middle = (low + high) / 2
        below = increasing(middle) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _lid_shift(azimuth: Array, level: Array, openness: Array | float) -> Array:
    """Shift of the levels that brings two rows, half flat and half lens-shaped on the map, onto the lid edges."""
    x, bend = _frontal(azimuth, EYE[1])
    bottom, lower, upper, fold, top = EYE_LEVELS
    lids, relaxed = lid_lines(x, openness), lid_lines(x)
    flat = (upper - lower) / 2 * _lens(lids.across)
    low, high = (lower + upper) / 2 - flat, (lower + upper) / 2 + flat
    rest = _soft_edges(relaxed)[1] - bend
    fold_place = rest + (fold - high) / (top - high) * (top - rest)  # the lid moves, the skin above its fold does not
    moved = [bottom, *(edge - bend for edge in _soft_edges(lids)), fold_place, top]
    weight = step(1.35 * EYE_HALF_WIDTH - np.abs(np.abs(x) - EYE[0]), 1.5)
    return weight * _polyline_shift(level, [bottom, low, high, np.full_like(x, fold), top], moved)


def _lip_shift(azimuth: Array, level: Array) -> Array:
    """Shift of the levels that brings four rows onto the borders of the lips and the fissure."""
    x, bend = _frontal(azimuth, MOUTH_HEIGHT)
    lips, fissure = lip_lines(x), lip_fissure(x)
    upper, lower = np.hypot(lips.upper - fissure, 1.2), np.hypot(fissure - lips.lower, 1.2)
    bottom, under, low, high, over, top = MOUTH_LEVELS
    lens = _lens(lips.across)
    rows = [bottom, low + (under - low) * lens, low, high, high + (over - high) * lens, top]
    offsets = [-lower, -FISSURE_HALF_HEIGHT, FISSURE_HALF_HEIGHT, upper]
    moved = [bottom, *(fissure + offset - bend for offset in offsets), top]
    weight = step(1.3 * MOUTH_HALF_WIDTH - np.abs(x), 2.0)
    return weight * _polyline_shift(level, rows, moved)


def _soft_edges(lines: Lines) -> tuple[Array, Array]:
    """Lower and upper edge, kept apart where the opening closes so that rows do not meet."""
    middle, half = (lines.upper + lines.lower) / 2, np.hypot((lines.upper - lines.lower) / 2, 0.8)
    return middle - half, middle + half


def _lens(across: Array) -> Array:
    """Height on the map of an opening relative to its middle: between a lens and a band."""
    return 0.75 + 0.25 * np.sqrt(np.clip(1 - across**2, 0, 1))


def _frontal(azimuth: Array, level: float) -> tuple[Array, Array]:
    """x of a slice and how far it has bent up from its level there."""
    point = head(azimuth, np.full_like(azimuth, level))
    return point[..., 0], point[..., 1] - level


def _polyline_shift(level: Array, knots: list[Array | float], moved: list[Array | float]) -> Array:
    """Piecewise-linear displacement that takes each (ascending) knot to its moved place, 0 outside."""
    shift = np.zeros_like(level)
    for k in range(len(knots) - 1):
        t = (level - knots[k]) / (knots[k + 1] - knots[k])
        start, end = moved[k] - knots[k], moved[k + 1] - knots[k + 1]
        shift = np.where((t >= 0) & (t <= 1), start + t * (end - start), shift)
    return shift
