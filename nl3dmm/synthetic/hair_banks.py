"""Brows and beards: hair strokes and the zones they grow in."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.synthetic.layers import Canvas, FaceSurface, draw_bank, draw_hairs, draw_lines, smooth_curve, smooth_step
from nl3dmm.types import TensorFields


@dataclass(frozen=True)
class HairBanks(TensorFields):
    """Coverage by hair in [0, 1]."""

    brows: Float[Tensor, "brows uv_height uv_width"]
    hairs: Float[Tensor, "hairs uv_height uv_width"]
    stubble: Float[Tensor, "stubbles uv_height uv_width"]
    zones: Float[Tensor, "edges zones uv_height uv_width"]  # moustache, goatee, cheeks and jaw


def build_hair(surface: FaceSurface, seed: int) -> HairBanks:
    zones = [_beard_zones(surface, np.random.default_rng([seed, 34, variant])) for variant in range(10)]
    return HairBanks(
        brows=draw_bank(surface, 24, _brows, [seed, 31]),
        hairs=draw_bank(surface, 6, _beard_hairs, [seed, 32]),
        stubble=draw_bank(surface, 4, _stubble, [seed, 33]),
        zones=torch.stack(zones),
    )


def _brows(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    """A pair of brows of random width, arch, height and number of hairs over a soft shadow."""
    width, arch, shift = rng.uniform(0.65, 1.4), rng.normal(0, 1.0), rng.normal(0, 0.8)
    count = int(rng.uniform(280, 560) * width)
    roots, angles, shadows = [], [], []
    for side, marks in ((-1.0, range(21, 16, -1)), (1.0, range(22, 27))):
        bend = np.stack([np.zeros(5), shift + arch * np.sin(np.linspace(0, np.pi, 5))], axis=-1)
        curve = smooth_curve(surface.landmarks[list(marks)] + bend, 200)
        tangent = np.gradient(curve, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        place = rng.beta(1.15, 1.25, count)
        at = (place * 199).astype(int)
        half = 3.7 * width * np.interp(place, (0, 0.1, 0.35, 0.7, 1), (0.55, 0.95, 1.0, 0.7, 0.22))
        offset = rng.normal(0, 0.48, count).clip(-1, 1) * half
        normal = np.stack([-side * tangent[at, 1], side * tangent[at, 0]], axis=-1)
        roots.append(curve[at] + normal * (offset - 0.6)[:, None])
        lift = np.interp(place, (0, 0.15, 0.5, 1), (1.1, 0.75, 0.35, -0.05)) + rng.normal(0, 0.16, count)
        lift -= 0.5 * offset / half * np.interp(place, (0, 0.5, 1), (0, 0.6, 0.7))
        angles.append(np.arctan2(tangent[at, 1], tangent[at, 0]) + side * lift)
        shadows.append(curve)
    lengths = rng.uniform(3.0, 6.5, 2 * count)
    order = rng.permutation(2 * count)
    hairs = draw_hairs(surface, rng, np.concatenate(roots)[order], np.concatenate(angles)[order], lengths)
    soft = draw_lines(surface, shadows, 4.2 * width, 1.1)
    return np.maximum(hairs, rng.uniform(0.35, 0.7) * soft)


def _lower_face(surface: FaceSurface, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random roots below the eyes and the direction in which hair grows there: down, outwards beside the chin."""
    eye, mouth, chin = surface.landmarks[42:48].mean(0), surface.landmarks[48:60].mean(0), surface.landmarks[8]
    roots = rng.uniform((-125.0, chin[1] - 40), (125.0, eye[1] + 5), (count, 2))
    x, y = roots.T
    spread = np.where(y > mouth[1] + 4, 0.05, 0.035 * np.abs(x).clip(0, 20))
    return roots, -np.pi / 2 + np.sign(x) * spread + rng.normal(0, 0.3, count)


def _beard_hairs(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    roots, angles = _lower_face(surface, rng, 7000)
    return draw_hairs(surface, rng, roots, angles, rng.uniform(2.5, 8.0, len(roots)))


def _stubble(surface: FaceSurface, rng: np.random.Generator) -> Canvas:
    roots, angles = _lower_face(surface, rng, 16000)
    return draw_hairs(surface, rng, roots, angles, rng.uniform(0.4, 1.2, len(roots)))


def _beard_zones(surface: FaceSurface, rng: np.random.Generator) -> Float[Tensor, "zones uv_height uv_width"]:
    """Moustache, goatee, and cheeks with jaw: random cheek line, ragged edges; the painter leaves out the lips."""
    marks = surface.landmarks
    ragged = 1.6 * surface.noise(rng, 7.0, 3)
    x, y = np.abs(surface.sheet[..., 0]) + ragged, surface.sheet[..., 1] + ragged
    corner, mouth, eye, chin = abs(marks[54, 0]), marks[[48, 54], 1].mean(), marks[42:48, 1].mean(), marks[8, 1]
    philtrum = 1 - 0.75 * np.exp(-((x / 2.2) ** 2)) * (rng.random() < 0.5)
    moustache = smooth_step((marks[33, 1] - 3.5 - y) / 0.9) * smooth_step((y - mouth + 1) / 1.2) * philtrum
    moustache = moustache * smooth_step((corner + rng.uniform(2, 8) - x) / 1.6)
    goatee = smooth_step((mouth - 6 - y) / 1.5) * smooth_step((corner + rng.uniform(0, 6) - x) / 2.0)
    ring = smooth_step((mouth + 3 - y) / 1.2) * np.exp(-(((x - corner - 4.5) / 3.2) ** 4)) * (rng.random() < 0.7)
    heights = np.array((0.0, 0.0, -3.0, 10.0, 32.0, eye - mouth, eye - mouth + 20)) + rng.uniform(-8, 8)
    cheek_line = mouth + np.interp(x, (0, 20, 45, 70, 95, 110, 120), heights)
    jaw = smooth_step((cheek_line - y) / 3.0) * smooth_step((x - 0.9 * corner) / 3.0)
    neck = smooth_step((y - chin + rng.uniform(20, 35)) / 3.0)
    zones = (moustache, np.maximum(goatee, ring), jaw)
    return torch.stack([surface.average(zone * neck) for zone in zones])
