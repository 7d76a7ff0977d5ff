"""Where things are on the embedded face: the curves of lips, lids and brows in the frontal plane (millimetres).

Numbers are rounded proportions of an average adult head, set by hand. While they were chosen, the landmark coordinates
and pictures of the ICT-FaceKit mean (MIT) were looked at for comparison; no optimiser fitted them, none of its data is
stored.
The frame is the object frame with the origin between the ears, at the height of the middle of the nose.
"""

from dataclasses import dataclass

import numpy as np

from nl3dmm.assets.fields import Array, ridge

EYE = (31.5, 33.0, 83.0)  # centre of the left eyeball
EYEBALL_RADIUS = 12.0
EYE_HALF_WIDTH = 15.0
MOUTH_HEIGHT, MOUTH_HALF_WIDTH = -35.0, 25.5


@dataclass(frozen=True)
class Lines:
    """Upper and lower edge of an opening as heights over x, and the position across it (0 centre, 1 corner)."""

    upper: Array
    lower: Array
    across: Array


def lip_fissure(x: Array) -> Array:
    """Height of the line where the lips meet."""
    across = np.minimum(np.abs(x) / MOUTH_HALF_WIDTH, 1.25)
    return MOUTH_HEIGHT + 0.9 * np.cos(2.6 * across) - 0.5 - 0.8 * ridge(x, 3.0)


def lip_lines(x: Array) -> Lines:
    """Upper and lower border of the red of the lips, closed at the corners."""
    across = np.abs(x) / MOUTH_HALF_WIDTH
    inside, fissure = np.clip(across, 0, 1), lip_fissure(x)
    bow = 0.80 + 0.22 * ridge(np.abs(x) - 5.2, 3.2) - 0.10 * ridge(x, 1.9)
    upper = fissure + 7.6 * (1 - inside**1.8) * bow
    lower = fissure - 9.6 * (1 - inside**2.4) ** 0.9
    return Lines(upper, lower, across)


def lid_lines(x: Array, openness: Array | float = 1.0) -> Lines:
    """Lid edges of both eyes; ``across`` is signed, -1 at the inner and +1 at the outer corner.

    ``openness`` 1 is the relaxed eye, 0 the closed one (the upper lid comes down to the lower).
    """
    across = (np.abs(x) - EYE[0]) / EYE_HALF_WIDTH
    span = np.clip(1 - across**2, 0, 1)
    axis = EYE[1] - 0.4 + 0.9 * across
    lower = axis - 3.7 * span**0.85 * (1 + 0.22 * across)
    upper = axis + 6.2 * span**0.65 * (1 - 0.10 * across)
    return Lines(lower + (upper - lower) * openness, lower, across)


def brow_line(x: Array) -> Array:
    """Height of the middle of the eyebrow."""
    distance = np.abs(x)
    return 46.5 + 5.0 * np.exp(-(((distance - 36) / 17) ** 2)) - 0.10 * np.maximum(distance - 46, 0)
