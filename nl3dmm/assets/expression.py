"""Expressions of the embedded face: ARKit-like displacement fields at activation 1 (millimetres)."""

import numpy as np

from nl3dmm.assets.anatomy import MOUTH_HALF_WIDTH, lip_fissure
from nl3dmm.assets.fields import Array, bump, step
from nl3dmm.assets.identity import Term, mirrored
from nl3dmm.assets.layout import FISSURE_HALF_HEIGHT, chart
from nl3dmm.assets.skull import head
from nl3dmm.assets.surface import face_surface

JAW_AXIS = (8.0, 12.0)  # y, z of the joint, mm
JAW_ANGLE = np.deg2rad(20.0)

# fmt: off
SYMMETRIC: dict[str, list[Term]] = {
    "mouthPucker": [(24, -35, 12, 10, (-8.0, 0, 2.0)), (0, -30, 13, 5, (0, 0.3, 2.4)), (0, -42, 13, 5, (0, -0.3, 2.4))],
    "browInnerUp": [(13, 47, 10, 10, (0, 5.0, 0.5)), (8, 62, 12, 12, (0, 1.5, 0.3))],
    "cheekPuff": [(42, -28, 14, 13, (3.5, 0, 7.0)), (0, -30, 18, 5, (0, 0, 0.6))],
}
ONE_SIDED: dict[str, list[Term]] = {  # given for the left side
    "mouthSmile": [(25, -35, 9, 9, (5.0, 5.0, -2.5)), (33, -10, 12, 11, (0.8, 2.8, 3.0)),
                   (11, -35, 8, 7, (1.2, 1.3, -0.5)), (31, 20, 11, 5, (0, 1.2, 0.8))],
    "mouthFrown": [(25, -35, 8, 8, (0.5, -4.0, 0)), (22, -49, 9, 8, (0, -1.6, 1.0))],
    "mouthStretch": [(25, -36, 10, 9, (5.5, -1.2, -2.0))],
    "mouthUpperUp": [(10, -28, 9, 5, (0, 3.0, 0.6)), (19, -14, 6, 10, (0, 1.2, 0.5))],
    "mouthLowerDown": [(10, -43, 9, 6, (0, -3.2, 0.2))],
    "browOuterUp": [(42, 48, 12, 10, (0, 5.0, 0))],
    "browDown": [(18, 46, 15, 8, (-1.8, -4.0, 0.8))],
    "cheekSquint": [(32, 21, 13, 5.5, (0, 2.0, 1.4))],
    "noseSneer": [(14, -8, 7, 8, (0.7, 2.8, 0.8)), (10, 14, 5, 8, (0, 1.0, 1.0))],
}
# fmt: on


def expression_fields(u: Array, v: Array) -> dict[str, Array]:
    """Displacements (..., 3) at activation 1, by name; ``_L`` and ``_R`` are the subject's sides."""
    place = chart(u, v)
    x, y, _ = np.moveaxis(head(*place), -1, 0)
    surface = face_surface(*place)
    front = step(surface[..., 2] - 35, 10)
    fields = _jaw_fields(x, y, surface)
    fields |= {name: mirrored(x, y, front, terms) for name, terms in SYMMETRIC.items()}
    for name, terms in ONE_SIDED.items():
        left = _left(x, y, front * _lip_side(name, x, y), terms)
        fields |= {f"{name}_L": left, f"{name}_R": left[..., ::-1, :] * (-1, 1, 1)}
    for side, name in ((1, "L"), (-1, "R")):
        fields[f"eyeBlink_{name}"] = _lid_field(u, v, side, 0.02)
        fields[f"eyeWide_{name}"] = _lid_field(u, v, side, 1.25)
    return fields


def _left(x: Array, y: Array, weight: Array, terms: list[Term]) -> Array:
    weight = weight * step(x + 1, 3.0)
    return np.sum([(bump(x, y, t[:2], t[2:4]) * weight)[..., None] * np.array(t[4]) for t in terms], axis=0)


def _lip_side(name: str, x: Array, y: Array) -> Array:
    """Movements of one lip leave the other where it is."""
    if name not in ("mouthUpperUp", "mouthLowerDown"):
        return np.ones_like(x)
    above = _above_fissure(x, y)
    return above if name == "mouthUpperUp" else 1 - above


def _above_fissure(x: Array, y: Array) -> Array:
    """1 on the upper lip, 0 on the lower, linear inside the closed mouth, wide and soft beyond the corners."""
    beyond = np.maximum(np.abs(x) - 0.6 * MOUTH_HALF_WIDTH, 0)
    half = FISSURE_HALF_HEIGHT + 0.025 * beyond**2
    return np.clip(0.5 + (y - lip_fissure(x)) / (2 * np.minimum(half, 16)), 0, 1)


def _jaw_fields(x: Array, y: Array, surface: Array) -> dict[str, Array]:
    """Rigid motions of the mandible, faded out over the cheeks and at the lip line."""
    lower = (1 - _above_fissure(x, y))[..., None]
    height, depth = surface[..., 1] - JAW_AXIS[0], surface[..., 2] - JAW_AXIS[1]
    sine, cosine = np.sin(JAW_ANGLE), np.cos(JAW_ANGLE)
    opened_y = cosine * height - sine * depth - height
    opened_z = sine * height + cosine * depth - depth
    open_field = np.stack([np.zeros_like(height), opened_y, opened_z], -1)
    shift = step(surface[..., 2] - 35, 12)[..., None]
    return {
        "jawOpen": lower * open_field,
        "jawForward": lower * shift * (0, 0, 5.0),
        "jawLeft": lower * shift * (5.0, 0, 0),
        "jawRight": lower * shift * (-5.0, 0, 0),
    }


def _lid_field(u: Array, v: Array, side: int, openness: float) -> Array:
    """The face rebuilt with one eye more or less open; rows follow the lid edge, so it is a true motion of the skin."""
    amount = np.where((u - 0.5) * side > 0, openness, 1.0)
    return face_surface(*chart(u, v, amount), amount) - face_surface(*chart(u, v))
