"""The layers a face is painted with: drawn once per template, in several variants, averaged to texels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.assets import FaceTemplate
from nl3dmm.synthetic.hair_banks import HairBanks, build_hair
from nl3dmm.synthetic.layers import (
    Canvas,
    FaceSurface,
    Points,
    draw_bank,
    draw_lines,
    draw_polygon,
    draw_spots,
    smooth_curve,
    smooth_step,
)
from nl3dmm.types import TensorFields

IRIS_RADIUS = 5.9  # mm
FRECKLES_PER_LAYER = 140

Layer = Float[Tensor, "uv_height uv_width"]


@dataclass(frozen=True)
class SkinBanks(TensorFields):
    """Random layers (banks) and fixed ones; alphas and strengths in [0, 1], noise with deviation about 1."""

    patches: Float[Tensor, "patches uv_height uv_width"]
    blotches: Float[Tensor, "blotches uv_height uv_width"]
    grain: Float[Tensor, "grains uv_height uv_width"]
    freckles: Float[Tensor, "freckles uv_height uv_width"]
    moles: Float[Tensor, "moles uv_height uv_width"]
    spots: Float[Tensor, "spots uv_height uv_width"]
    lines: Float[Tensor, "lines uv_height uv_width"]
    stripes: Float[Tensor, "stripes uv_height uv_width"]
    iris: Float[Tensor, "eyes uv_height uv_width"]  # alpha
    iris_tone: Float[Tensor, "eyes uv_height uv_width"]  # factor of the iris colour
    pupil: Float[Tensor, "eyes uv_height uv_width"]  # alpha
    flush_regions: Float[Tensor, "regions uv_height uv_width"]  # cheeks, nose, sides, chin, forehead
    under_eye: Layer
    lids: Layer
    lips: Layer
    blush: Layer
    eye_shadow: Layer
    lashes: Layer
    liner: Layer
    eyeball: Layer
    sclera_tone: Layer
    mouth: Layer
    nostrils: Layer
    hair: HairBanks


def build_banks(template: FaceTemplate, seed: int) -> SkinBanks:
    """All layers of a template, on its device."""
    surface = FaceSurface(template)
    layers = _noise_layers(surface, seed) | _mark_layers(surface, seed) | _eye_layers(surface, seed)
    layers |= _region_layers(surface) | _mouth_layers(surface, template)
    regions = {name: template.regions[name].cpu() for name in ("left_eye", "right_eye", "nostrils")}
    layers["eyeball"] = torch.maximum(regions["left_eye"], regions["right_eye"])
    layers["nostrils"] = regions["nostrils"]
    return SkinBanks(**layers, hair=build_hair(surface, seed)).to(template.vertices.device)


def _noise_layers(surface: FaceSurface, seed: int) -> dict[str, Tensor]:
    """Skin structure from large patches to pores; averaging to texels already removes what they cannot hold."""

    def bank(salt: int, count: int, feature_mm: float, octaves: int) -> Tensor:
        rngs = (np.random.default_rng([seed, salt, variant]) for variant in range(count))
        return torch.stack([surface.average(surface.noise(rng, feature_mm, octaves)) for rng in rngs])

    stripes = [_lip_stripes(surface, np.random.default_rng([seed, 4, variant])) for variant in range(8)]
    return {
        "patches": bank(1, 24, 45.0, 2),
        "blotches": bank(2, 24, 9.0, 3),
        "grain": bank(3, 16, 2.4, 2),
        "stripes": torch.stack(stripes),
    }


def _lip_stripes(surface: FaceSurface, rng: np.random.Generator) -> Tensor:
    """Vertical furrows of the lips, 1 to 2 mm apart, with deviation about 1."""
    x = surface.sheet[..., 0]
    knots = np.arange(-40.0, 40.0)
    wide, fine = (np.interp(x * factor, knots * factor / 1.2, rng.normal(size=len(knots))) for factor in (1.0, 2.0))
    return surface.average(wide + 0.7 * fine)


def _mark_layers(surface: FaceSurface, seed: int) -> dict[str, Tensor]:
    return {
        "freckles": draw_bank(surface, 12, _freckles, [seed, 11]),
        "moles": draw_bank(surface, 40, _moles, [seed, 12]),
        "spots": draw_bank(surface, 16, _spots, [seed, 13]),
        "lines": draw_bank(surface, 8, _age_lines, [seed, 14]),
    }


def _freckles(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    nose, eyes, chin = surface.landmarks[33], surface.landmarks[36:48].mean(0), surface.landmarks[8]
    cheeks = rng.normal((33.0, nose[1] + 6), (17.0, 11.0), (int(0.7 * FRECKLES_PER_LAYER), 2))
    cheeks[:, 0] *= rng.choice((-1.0, 1.0), len(cheeks))
    bridge = rng.normal((0.0, nose[1] + 15), (15.0, 10.0), (int(0.14 * FRECKLES_PER_LAYER), 2))
    rest = rng.uniform((-85.0, chin[1]), (85.0, eyes[1] + 55), (int(0.16 * FRECKLES_PER_LAYER), 2))
    centres = np.concatenate([cheeks, bridge, rest])
    radii = 0.3 + rng.gamma(3.0, 0.16, len(centres))
    return draw_spots(surface, rng, centres, radii, rng.uniform(0.35, 1.0, len(centres)), 0.25)


def _moles(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    chin, eyes = surface.landmarks[8], surface.landmarks[36:48].mean(0)
    count = rng.integers(1, 4)
    centres = rng.uniform((-80.0, chin[1] - 5), (80.0, eyes[1] + 50), (count, 2))
    return draw_spots(surface, rng, centres, rng.gamma(3.0, 0.24, count) + 0.35, rng.uniform(0.4, 1.0, count), 0.25)


def _spots(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    mouth = surface.landmarks[48:60].mean(0)
    count = rng.integers(4, 14)
    centres = rng.normal((0.0, mouth[1] + 10), (40.0, 36.0), (count, 2))
    return draw_spots(surface, rng, centres, rng.uniform(0.7, 2.0, count), rng.uniform(0.4, 1.0, count), 0.6)


def _age_lines(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    """Forehead lines, crow's feet, nasolabial folds and bags."""
    marks = surface.landmarks
    curves = []
    for level in range(rng.integers(2, 5)):
        x = np.linspace(-1, 1, 24) * rng.uniform(24, 44) + rng.normal(0, 4)
        height = marks[17:27, 1].max() + 11 + 8 * level + 1.8 * np.cos(x * 0.09) + np.cumsum(rng.normal(0, 0.2, 24))
        curves.append(np.stack([x, height], axis=-1))
    for side in (-1.0, 1.0):
        along = np.linspace(0, 1, 12)
        for angle in rng.uniform(-0.7, 0.7, rng.integers(2, 5)):
            reach = along * rng.uniform(6, 14)
            corner = (abs(marks[45, 0]) + 4, marks[45, 1])
            drop = reach * np.sin(angle) - 0.012 * reach**2
            curves.append(np.stack([side * (corner[0] + reach * np.cos(angle)), corner[1] + drop], axis=-1))
        wing, mouth = (abs(marks[35, 0]) + 6, marks[35, 1] + 5), (abs(marks[54, 0]) + 7, marks[54, 1] + 2)
        bow = 3.5 * np.sin(np.pi * along)
        fold = np.stack([side * (wing[0] + (mouth[0] - wing[0]) * along + bow), wing[1] + (mouth[1] - wing[1]) * along])
        curves.append(fold.T)
        bag = smooth_curve(marks[[42, 47, 46, 45]] - (0.0, rng.uniform(6, 9)), 24) * (side, 1.0)
        curves.append(bag)
    return draw_lines(surface, curves, 0.8, 0.7)


def _eye_layers(surface: FaceSurface, seed: int) -> dict[str, Tensor]:
    """Iris and pupil for several gazes and pupil sizes, and the shading of the white."""
    draws = [_iris(surface, np.random.default_rng([seed, 21, variant])) for variant in range(24)]
    iris, tone, pupil = (torch.stack(layers) for layers in zip(*draws, strict=True))
    across, up = _from_eye_centre(surface, (0.0, 0.0))
    corners = np.exp(-(((np.hypot(across, up) - 15.0) / 4.0) ** 2))
    sclera = (1 - 0.30 * smooth_step((up - 3.0) / 0.8)) * (1 - 0.25 * corners)
    return {"iris": iris, "iris_tone": tone, "pupil": pupil, "sclera_tone": surface.average(sclera)}


def _from_eye_centre(surface: FaceSurface, gaze_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (mm, to the image's right and up) of all samples from the centre of the nearer iris."""
    x, y = surface.positions[..., 0], surface.positions[..., 1]
    right, left = (surface.landmark_positions[first : first + 6].mean(0) for first in (36, 42))
    on_left = x > 0
    return x - np.where(on_left, left[0], right[0]) - gaze_mm[0], y - np.where(on_left, left[1], right[1]) - gaze_mm[1]


def _iris(surface: FaceSurface, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    across, up = _from_eye_centre(surface, (float(rng.normal(0, 1.6)), float(rng.normal(0.3, 0.4))))
    radius, angle = np.hypot(across, up), np.arctan2(up, across)
    relative = radius / (IRIS_RADIUS * rng.uniform(0.95, 1.05))
    fibres = sum(rng.normal(0, 0.12) * np.cos(n * angle + rng.uniform(0, 6.3)) for n in range(5, 40, 3))
    collarette = 0.5 * rng.uniform(0, 1) * np.exp(-(((relative - 0.5) / 0.14) ** 2))
    limbus = 1 - 0.75 * smooth_step((relative - 0.86) / 0.05)
    alpha, tone = smooth_step((1 - relative) / 0.03), np.exp(fibres) * (1 + collarette) * limbus
    pupil = smooth_step((rng.uniform(1.6, 2.6) - radius) / 0.15)
    return surface.average(alpha), surface.average(tone), surface.average(pupil)


def _region_layers(surface: FaceSurface) -> dict[str, Tensor]:
    """Where skin is redder or darker, and where make-up goes."""
    marks = surface.landmarks
    eye, nose, mouth, chin = marks[42:48].mean(0), marks[30], marks[48:60].mean(0), marks[8]
    sides = smooth_step((np.abs(surface.sheet[..., 0]) - 100.0) / 8.0)
    cheeks = surface.bumps((43.0, nose[1] - 4), (17.0, 15.0))
    nose_tip, jaw = surface.bump((0.0, nose[1]), (11.0, 10.0)), surface.bump((0.0, chin[1] + 12), (13.0, 9.0))
    brow_top = marks[17:27, 1].max()
    forehead = smooth_step((surface.sheet[..., 1] - brow_top - 8) / 5.0)
    outside_lip = smooth_step((surface.sheet[..., 1] - mouth[1]) / 4.0)
    lid_shadow = surface.bumps((eye[0] + 1, eye[1] + 6), (12.5, 4.4)) * smooth_step(surface.sheet[..., 1] - eye[1])
    return {
        "flush_regions": torch.stack([surface.average(map_) for map_ in (cheeks, nose_tip, sides, jaw, forehead)]),
        "under_eye": surface.average(surface.bumps((eye[0] - 3, eye[1] - 9), (11.0, 3.6))),
        "lids": surface.average(surface.bumps((eye[0], eye[1] + 2), (15.0, 6.0))),
        "blush": surface.average(surface.bumps((48.0, nose[1] + 4), (16.0, 8.5), 0.45) * outside_lip),
        "eye_shadow": surface.average(lid_shadow.clip(0, 1)),
    } | _lash_layers(surface)


def _lash_layers(surface: FaceSurface) -> dict[str, Tensor]:
    """Upper and (fainter) lower lash line, lid crease; the liner is wider and has a wing."""
    marks = surface.landmarks
    upper = [smooth_curve(marks[36:40], 40), smooth_curve(marks[42:46], 40)]
    lower = [smooth_curve(marks[[36, 41, 40, 39]], 40), smooth_curve(marks[[42, 47, 46, 45]], 40)]
    raised = [curve + np.array((0.0, 0.5)) for curve in upper]
    lashes = draw_lines(surface, raised, 1.6, 0.35)
    crease = draw_lines(surface, [curve * (1.02, 1.0) + (0.0, 4.2) for curve in upper], 0.8, 0.6)
    under = draw_lines(surface, [curve - (0.0, 0.4) for curve in lower], 0.6, 0.4)
    liner = draw_lines(surface, [*raised, *lower], 2.2, 0.4)
    alpha = np.maximum.reduce([1.4 * lashes, 0.30 * crease, 0.45 * under]).clip(0, 1)
    return {"lashes": surface.pull(alpha), "liner": surface.pull(np.maximum(1.5 * lashes, liner).clip(0, 1))}


def _mouth_layers(surface: FaceSurface, template: FaceTemplate) -> dict[str, Tensor]:
    """Lips inside their outline; the dark mouth is the template's own region and the line between the lips."""
    marks = surface.landmarks
    outline: Points = smooth_curve(marks[48:60], 200, closed=True)
    inner = template.regions["mouth"].cpu()
    line = surface.pull(draw_lines(surface, [smooth_curve(marks[[48, 60, 61, 62, 63, 64, 54]], 80)], 1.0, 0.45))
    return {
        "lips": surface.pull(draw_polygon(surface, outline, 0.5)),
        "mouth": torch.maximum(inner, (1.2 * line).clamp(max=0.75)),
    }
