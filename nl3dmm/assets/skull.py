"""The smooth head under the features: stacked super-elliptic slices that bend up towards the ears along the jaw."""

from functools import cache

import numpy as np

from nl3dmm.assets.fields import Array, profile

# fmt: off
SLICES = np.array([
    # level, height and depth on the midline, half width, depth of the side, rise of the side, exponent
    (-115,  -85.5,  64,  54,   8,  46, 1.90),
    (-102,  -83.5,  77,  58,  12,  51, 1.82),
    (-90,   -81.5,  89,  61.5, 16, 56, 1.78),
    (-82,   -79.0,  97,  64,  18,  59, 1.74),
    (-74,   -73.5, 102,  66,  19,  59, 1.74),
    (-64,   -64.0, 103.5, 68, 20,  54, 1.82),
    (-50,   -50,   103,  69.5, 20, 44, 1.95),
    (-35,   -35,   104,  70.5, 20, 35, 2.05),
    (-20,   -20,   103.5, 71, 20,  27, 2.10),
    (-5,     -5,   103,  72,  20,  20, 2.12),
    (15,     15,   103.5, 73, 20,  12, 2.10),
    (33,     33,   105,  73,  20,   5, 2.08),
    (45,     45,   107.5, 72.5, 19, 3, 2.10),
    (55,     55,   107,  72,  18,   2, 2.14),
    (70,     70,   103.5, 70.5, 16, 0, 2.18),
    (85,     85,    95.5, 67,  14, -4, 2.14),
    (100,   100,    82,  62,  12,  -8, 2.10),
], dtype=float)
# fmt: on
SMOOTHING = 6.5  # mm along the levels
RISE_POWER = 1.15
MIDLINE_ROUNDING = 0.06  # keeps slices with exponents < 2 smooth at x = 0


TABLE_LEVELS = np.linspace(-120.0, 105.0, 901)


@cache
def _table() -> Array:
    """Smoothed columns of ``SLICES`` at ``TABLE_LEVELS``."""
    return np.stack([profile(TABLE_LEVELS, SLICES[:, 0], column, SMOOTHING) for column in SLICES[:, 1:].T])


def head(azimuth: Array, level: Array) -> Array:
    """Points (..., 3) of the smooth head, mm; azimuth 0 is the midline, positive towards +x."""
    height, depth, width, side_depth, rise, exponent = (np.interp(level, TABLE_LEVELS, row) for row in _table())
    sine, cosine = np.sin(azimuth), np.cos(azimuth)
    across = (sine**2 + MIDLINE_ROUNDING) ** (exponent / 2) - MIDLINE_ROUNDING ** (exponent / 2)
    radius = (across + np.abs(cosine) ** exponent) ** (-1 / exponent)
    forward = radius * cosine
    bend = rise * np.maximum(1 - forward, 0) ** RISE_POWER
    return np.stack([width * radius * sine, height + bend, side_depth + (depth - side_depth) * forward], -1)
