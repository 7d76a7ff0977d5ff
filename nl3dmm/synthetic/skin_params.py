"""What one synthetic face is made of: a random draw keyed by ``(seed, index)``, as small tensors with a batch axis."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.types import TensorFields

SALT = 0x5C1  # keeps these draws apart from other samplers that use the same (seed, index)

# Linear RGB.
HAIR_COLOURS = (
    (0.010, 0.008, 0.007),
    (0.030, 0.018, 0.012),
    (0.075, 0.042, 0.024),
    (0.160, 0.090, 0.045),
    (0.300, 0.205, 0.110),
    (0.170, 0.060, 0.022),
)
GREY_HAIR = (0.240, 0.230, 0.220)
HAIR_ODDS_DARK = (0.66, 0.31, 0.03, 0.0, 0.0, 0.0)
HAIR_ODDS_LIGHT = (0.14, 0.31, 0.26, 0.15, 0.08, 0.06)
IRIS_COLOURS = (
    (0.050, 0.024, 0.012),
    (0.100, 0.050, 0.020),
    (0.130, 0.105, 0.040),
    (0.100, 0.140, 0.075),
    (0.090, 0.160, 0.250),
    (0.180, 0.240, 0.290),
)
IRIS_ODDS_DARK = (0.8, 0.2, 0.0, 0.0, 0.0, 0.0)
IRIS_ODDS_LIGHT = (0.22, 0.25, 0.15, 0.12, 0.16, 0.10)
LIPSTICKS = ((0.42, 0.025, 0.04), (0.28, 0.015, 0.06), (0.52, 0.14, 0.13), (0.18, 0.02, 0.07), (0.48, 0.09, 0.17))
EYE_SHADOWS = ((0.20, 0.13, 0.09), (0.17, 0.12, 0.20), (0.10, 0.15, 0.20), (0.26, 0.11, 0.09), (0.07, 0.06, 0.06))
BEARDS = ("none", "stubble", "full", "goatee", "moustache")
BEARD_ODDS = (0.30, 0.27, 0.19, 0.13, 0.11)
BEARD_ZONES = {"moustache": (1.0, 0.0, 0.0), "goatee": (1.0, 1.0, 0.0), "full": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Mix(TensorFields):
    """A weighted sum of a few variants of one bank of layers."""

    variants: Int[Tensor, "batch terms"]  # taken modulo the number of variants in the bank
    weights: Float[Tensor, "batch terms"]


@dataclass(frozen=True)
class SkinParameters(TensorFields):
    """Skin, features, hair and make-up of each face; colours are linear RGB, strengths about [0, 1]."""

    melanin: Float[Tensor, " batch"]  # 0 lightest, 1 darkest skin
    haemoglobin: Float[Tensor, " batch"]  # about .2 pale to .6 ruddy
    pigment: Mix  # large patches of more or less melanin
    flush: Mix  # large patches of more or less blood
    blotches: Mix
    grain: Mix
    region_flush: Float[Tensor, "batch regions"]  # cheeks, nose, sides, chin, forehead
    under_eye: Float[Tensor, " batch"]
    freckles: Mix
    moles: Mix
    spots: Mix
    lines: Mix
    hair_colour: Float[Tensor, "batch 3"]
    brow_colour: Float[Tensor, "batch 3"]
    brows: Mix
    beard_zones: Float[Tensor, "batch zones"]  # density of moustache, goatee, cheeks and jaw
    stubble_zones: Float[Tensor, "batch zones"]
    beard_edges: Mix
    beard_hairs: Mix
    lip_tone: Float[Tensor, "batch 2"]  # added melanin, added haemoglobin
    lip_stripes: Mix
    lipstick: Float[Tensor, " batch"]
    lipstick_colour: Float[Tensor, "batch 3"]
    blush: Float[Tensor, " batch"]
    eye_shadow: Float[Tensor, " batch"]
    eye_shadow_colour: Float[Tensor, "batch 3"]
    liner: Float[Tensor, " batch"]
    iris_colour: Float[Tensor, "batch 3"]
    eyes: Mix
    sclera: Float[Tensor, " batch"]
    gain: Float[Tensor, "batch 3"]  # overall gain and hue jitter, about 1


def draw_skin(seed: int, index: int) -> SkinParameters:
    """The face number ``index`` of the world ``seed`` (batch of one).

    Raises:
        ShapeError: ``seed`` or ``index`` is negative.
    """
    if seed < 0 or index < 0:
        raise ShapeError(f"seed, index: got {seed}, {index}; expected 0 or more. Number the faces from 0.")
    rng = np.random.default_rng([seed, index, SALT])
    melanin = rng.uniform(0.05, 1.0) ** 1.3
    masculine, age = bool(rng.random() < 0.5), float(rng.beta(1.2, 2.0))
    values = {"melanin": melanin} | _draw_tone(rng) | _draw_marks(rng, melanin, age)
    values |= _draw_hair(rng, melanin, masculine, age) | _draw_eyes(rng, melanin)
    values |= _draw_make_up(rng, melanin, masculine)
    return SkinParameters(**{name: _batched(value) for name, value in values.items()})


def _batched(value: Any) -> Any:
    return value if isinstance(value, Mix) else torch.tensor(np.asarray(value, np.float32)[None])


def _mix(rng: np.random.Generator, weights) -> Mix:
    weights = np.atleast_1d(np.asarray(weights, np.float32))
    variants = rng.integers(0, 1 << 20, len(weights))
    return Mix(torch.from_numpy(variants[None]), torch.from_numpy(weights[None]))


def _noise_mix(rng: np.random.Generator, strength: float) -> Mix:
    weights = rng.normal(size=3)
    return _mix(rng, strength * weights / np.linalg.norm(weights))


def _some(rng: np.random.Generator, odds: float, low: float, high: float) -> float:
    """Uniform in [low, high] with probability ``odds``, else 0."""
    value = rng.uniform(low, high)
    return value if rng.random() < odds else 0.0


def _draw_tone(rng: np.random.Generator) -> dict:
    gain = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.018, 3))
    return {
        "haemoglobin": rng.uniform(0.20, 0.58),
        "pigment": _noise_mix(rng, rng.uniform(0.03, 0.10)),
        "flush": _noise_mix(rng, rng.uniform(0.03, 0.10)),
        "blotches": _noise_mix(rng, rng.uniform(0.02, 0.10)),
        "grain": _noise_mix(rng, rng.uniform(0.02, 0.08)),
        "region_flush": rng.uniform((0.05, 0.08, 0.03, 0.0, -0.12), (0.42, 0.45, 0.30, 0.18, 0.02)),
        "under_eye": rng.uniform(0.1, 1.0) ** 1.5,
        "lip_tone": (rng.uniform(0.02, 0.14), rng.uniform(0.45, 1.15)),
        "lip_stripes": _noise_mix(rng, rng.uniform(0.05, 0.16)),
        "gain": gain,
    }


def _draw_marks(rng: np.random.Generator, melanin: float, age: float) -> dict:
    freckled = _some(rng, 0.12 if melanin > 0.5 else 0.40, 0.3, 1.0)
    return {
        "freckles": _mix(rng, 0.34 * freckled * rng.uniform(0.2, 1.0, 4)),
        "moles": _mix(rng, [_some(rng, 0.35, 0.4, 1.0) for _ in range(4)]),
        "spots": _mix(rng, _some(rng, 0.45, 0.4, 1.0) * rng.uniform(0, 1, 3)),
        "lines": _mix(rng, age * rng.uniform(0.3, 1.0, 2)),
    }


def _draw_hair(rng: np.random.Generator, melanin: float, masculine: bool, age: float) -> dict:
    odds = HAIR_ODDS_DARK if melanin > 0.5 else HAIR_ODDS_LIGHT
    hair = np.array(HAIR_COLOURS[rng.choice(len(odds), p=odds)]) * rng.uniform(0.8, 1.2)
    hair += (np.array(GREY_HAIR) - hair) * np.clip(rng.normal(2.5 * age - 1.4, 0.3), 0, 1)
    kind = BEARDS[rng.choice(len(BEARDS), p=BEARD_ODDS)] if masculine else "none"
    density = rng.uniform(0.75, 1.0)
    shadow = rng.uniform(0.0, 0.25) if masculine else 0.0  # what a razor leaves
    stubble = rng.uniform(0.35, 1.0) if kind == "stubble" else shadow
    return {
        "hair_colour": hair,
        "brow_colour": hair * rng.uniform(0.6, 1.0),
        "brows": _mix(rng, [rng.uniform(0.7, 1.1) if masculine else rng.uniform(0.5, 1.05)]),
        "beard_zones": np.array(BEARD_ZONES.get(kind, (0.0, 0.0, 0.0))) * density * rng.uniform(0.85, 1.0, 3),
        "stubble_zones": stubble * rng.uniform(0.6, 1.0, 3),
        "beard_edges": _mix(rng, [1.0]),
        "beard_hairs": _mix(rng, [1.0]),
    }


def _draw_eyes(rng: np.random.Generator, melanin: float) -> dict:
    odds = IRIS_ODDS_DARK if melanin > 0.5 else IRIS_ODDS_LIGHT
    return {
        "iris_colour": np.array(IRIS_COLOURS[rng.choice(len(odds), p=odds)]) * rng.uniform(0.8, 1.2),
        "eyes": _mix(rng, [1.0]),
        "sclera": rng.uniform(0.78, 1.05),
    }


def _draw_make_up(rng: np.random.Generator, melanin: float, masculine: bool) -> dict:
    wears = not masculine and rng.random() < 0.6
    dimming = 1.0 - 0.4 * melanin
    lipstick = np.array(LIPSTICKS[rng.integers(len(LIPSTICKS))]) * rng.uniform(0.8, 1.2) * dimming
    shadow = np.array(EYE_SHADOWS[rng.integers(len(EYE_SHADOWS))]) * rng.uniform(0.8, 1.2) * dimming
    return {
        "lipstick": _some(rng, 0.75 * wears, 0.45, 0.95),
        "lipstick_colour": lipstick,
        "blush": _some(rng, 0.6 * wears, 0.2, 0.8),
        "eye_shadow": _some(rng, 0.6 * wears, 0.25, 0.8),
        "eye_shadow_colour": shadow,
        "liner": rng.uniform(0.6, 1.0) if wears else rng.uniform(0.25, 0.7),
    }
