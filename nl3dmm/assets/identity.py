"""Identity variation of the embedded face: about 50 mirrored displacement fields, each at one standard deviation."""

from collections.abc import Callable

import numpy as np

from nl3dmm.assets.fields import Array, Number, bump, step
from nl3dmm.assets.layout import chart
from nl3dmm.assets.skull import head
from nl3dmm.assets.surface import face_surface

Term = tuple[Number, Number, Number, Number, tuple[Number, Number, Number]]  # centre x y, width x y, displacement x y z

SPREAD = 0.82  # brings the mean distance of random faces from the mean, after alignment, to 3 mm
# fmt: off
GLOBAL: list[Callable[[Array, Array, Array], tuple]] = [  # proportions of the whole face, mm
    lambda x, y, z: (0.040 * x, 0, 0),
    lambda x, y, z: (0, 0.038 * y, 0),
    lambda x, y, z: (0, 0, 0.050 * (z - 60)),
    lambda x, y, z: (0.030 * x, 0.030 * y, 0.030 * (z - 40)),
    lambda x, y, z: (0, -3.0 * step(-y - 25, 12), 0),
    lambda x, y, z: (0, 2.8 * step(y - 46, 10), 0),
    lambda x, y, z: (0, -1.9 * step(12 - y, 10), 0),
    lambda x, y, z: (0.0010 * x * y, 0, 0),
    lambda x, y, z: (0, 0, 3.2 * np.exp(-(((y + 5) / 35) ** 2)) - 1.5),
    lambda x, y, z: (0, 0, -0.11 * np.clip(y - 40, 0, 90)),
]
LOCAL: list[list[Term]] = [  # (x > 0 is mirrored)
    [(56, -50, 17, 20, (3.8, 0, 0.5))],  # jaw width
    [(62, -42, 14, 16, (1.5, -3.0, 0))],  # jaw angle
    [(14, -74, 11, 11, (2.8, 0, -0.8))],  # chin width
    [(0, -70, 19, 12, (0, 0, 1.2))],  # chin forward
    [(0, -80, 20, 13, (0, -1.1, 0))],  # chin down
    [(0, -70, 3, 6, (0, 0, -0.35))],  # chin cleft
    [(47, 6, 14, 12, (1.3, 0, 2.5))],  # cheekbones
    [(42, -28, 17, 17, (1.9, 0, 3.4))],  # cheeks full
    [(30, -8, 11, 11, (0, 0.5, 1.8))],  # cheek apples
    [(18, -86, 26, 10, (0.5, -2.5, 1.0))],  # under the chin
    [(62, 50, 13, 17, (2.4, 0, 0))],  # temples
    [(26, 47, 20, 6.5, (0, 0, 1.6)), (0, 47, 10, 6.5, (0, 0, 0.5))],  # brow ridge
    [(30, 48, 21, 7, (0, 2.0, 0))],  # brow height
    [(12, 46, 9, 6, (0, -1.0, 0)), (50, 46, 10, 6, (0, 1.4, 0))],  # brow tilt
    [(31.5, 33, 18, 12, (1.4, 0, 0))],  # eye spacing
    [(45, 33, 8, 8, (0.8, 0, 0)), (18, 33, 7, 8, (-0.7, 0, 0)), (31.5, 40, 11, 4, (0, 0.6, 0))],  # eye size
    [(46, 33, 8, 7, (0, 1.1, 0)), (17, 33, 7, 7, (0, -0.7, 0))],  # eye tilt
    [(31.5, 32, 17, 11, (0, 0, -1.8))],  # eye depth
    [(31.5, 43, 13, 3.5, (0, -0.5, 1.4))],  # lid fold
    [(31, 20, 11, 4.5, (0, 0, 0.9))],  # bags under the eyes
    [(0, -10, 20, 12, (0, -1.2, 0))],  # nose length
    [(13, -9, 8, 10, (1.7, 0, 0))],  # nose width
    [(0, -5, 12, 12, (0, 0, 1.3))],  # nose protrusion
    [(0, -6, 9, 8, (0, 1.0, 0.1))],  # nose tip up
    [(0, 18, 9, 13, (0, 0, 1.0))],  # bridge height
    [(0, 13, 6, 8, (0, 0, 0.8))],  # hump
    [(9, 15, 6, 14, (1.1, 0, 0))],  # bridge width
    [(5, -5, 5, 6, (1.0, 0, 0))],  # tip width
    [(0, 33, 9, 7, (0, 0, -0.8))],  # depth of the root
    [(14, -11, 5, 5, (1.2, 0.5, 0.3))],  # flare
    [(25, -35, 11, 11, (2.1, 0, -0.5))],  # mouth width
    [(0, -35, 30, 14, (0, 0.8, 0))],  # mouth height
    [(0, -35, 21, 13, (0, 0, 1.1))],  # mouth forward
    [(0, -30, 17, 3.5, (0, 0.55, 0.40))],  # upper lip
    [(0, -41, 16, 4, (0, -0.65, 0.45))],  # lower lip
    [(25, -35, 8, 6, (0, 1.0, 0))],  # corners
    [(5.2, -28, 3.5, 3, (0, 0.5, 0.1)), (0, -28, 2.5, 3, (0, -0.3, 0))],  # cupid's bow
    [(0, -22, 3, 6, (0, 0, -0.2)), (4.5, -22, 2.5, 6, (0, 0, 0.3))],  # philtrum
    [(0, -30, 19, 6, (0, 0, 0.7)), (0, -43, 19, 7, (0, 0, -0.6))],  # overbite
    [(25, -20, 4, 11, (0, 0, -0.8)), (32, -20, 6, 11, (0, 0, 0.8))],  # nasolabial fold
]
ASYMMETRIC: list[list[Term]] = [
    [(0, 0, 10, 17, (0.45, 0, 0))],
    [(0, -72, 42, 22, (0.8, 0, 0))],
    [(31, 33, 19, 15, (0, 0.7, 0))],
    [(24, -35, 13, 11, (0, 0.8, 0))],
    [(44, -15, 19, 21, (0.8, 0, 1.4))],
]
# fmt: on


def identity_fields(u: Array, v: Array) -> list[Array]:
    """Displacements (..., 3) in mm at one standard deviation."""
    place = chart(u, v)
    x, y, _ = np.moveaxis(head(*place), -1, 0)
    surface = face_surface(*place)
    z = surface[..., 2]
    front = step(z - 20, 12)
    fields = [np.stack(np.broadcast_arrays(*mode(x, y, z)), -1) for mode in GLOBAL]
    fields += [mirrored(x, y, front, terms) for terms in LOCAL]
    fields += [mirrored(x, y, front, terms, sign=-1) for terms in ASYMMETRIC]
    return [SPREAD * field for field in fields]


def mirrored(x: Array, y: Array, weight: Array, terms: list[Term], sign: int = 1) -> Array:
    """Sum of hills of displacement and their mirror images (times ``sign``; -1 makes the field asymmetric)."""
    total = np.zeros((*x.shape, 3))
    for cx, cy, sx, sy, (dx, dy, dz) in terms:
        near, far = (bump(side * x, y, (cx, cy), (sx, sy)) * weight for side in (1, -1))
        total += near[..., None] * (dx, dy, dz) + sign * far[..., None] * (-dx, dy, dz)
    return total
