"""Pictures without a face: what a face detector must not take for one, and backgrounds richer than plain walls.

Overlapping shapes of all sizes have edges and shades as photos have them (the "dead leaves" model); gratings, text and
skin-coloured blobs are what detectors fall for.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.synthetic.draws import Draws

_SHAPES, _FACTS = 28, 12  # random numbers of one shape: kind, place, size, angle, colour, ...
_SKIN = ((0.95, 0.78, 0.68), (0.80, 0.58, 0.46), (0.55, 0.36, 0.26), (0.30, 0.19, 0.14))
_TEXT = "AEMRSWabegkomnstxz0358%&@#"


def clutter(draws: Draws, size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """Shapes upon shapes under smooth light."""
    count = draws.uniform(0, 1) ** 2 * _SHAPES
    facts = draws.uniform(0, 1, _SHAPES, _FACTS)
    palette = draws.uniform(0, 1, 4, 3) * draws.uniform(0.2, 1, 1, 1) + draws.uniform(0, 0.3, 1, 1)
    palette = torch.cat([palette, torch.tensor(_SKIN).expand(len(palette), -1, -1)], 1).clamp(0, 1)
    light = draws.uniform(0.5, 1.1, 1, 4, 4)
    pictures = [
        _draw(size, facts[row, : int(count[row]) + 1].numpy(), palette[row].numpy()) for row in range(len(palette))
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    smooth = torch.nn.functional.interpolate(light, (size, size), mode="bilinear", align_corners=False)
    return (pixels * smooth).clamp(0, 1)


def _draw(size: int, facts: np.ndarray, palette: np.ndarray) -> np.ndarray:
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = _colour(facts[0], palette)
    for fact in facts:
        _KINDS[min(int(fact[0] * len(_KINDS)), len(_KINDS) - 1)](canvas, fact, _colour(fact, palette))
    return canvas


def _colour(fact: np.ndarray, palette: np.ndarray) -> tuple[float, ...]:
    chosen = palette[min(int(fact[1] * len(palette)), len(palette) - 1)] * (0.6 + 0.6 * fact[2])
    return tuple((chosen.clip(0, 1) * 255).tolist())


def _place(canvas: np.ndarray, fact: np.ndarray) -> tuple[tuple[int, int], int, int, float]:
    """Centre, two radii and an angle in degrees; small shapes are the most frequent."""
    size = len(canvas)
    radius = size * 0.4 * fact[5] ** 2 + 1
    centre = (int(fact[3] * size), int(fact[4] * size))
    return centre, int(radius) + 1, int(radius * (0.3 + 1.2 * fact[6])) + 1, float(fact[7]) * 360


def _ellipse(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    centre, first, second, angle = _place(canvas, fact)
    thickness = -1 if fact[8] < 0.75 else 1 + int(fact[9] * 3)
    cv2.ellipse(canvas, centre, (first, second), angle, 0, 360, colour, thickness, cv2.LINE_AA)


def _polygon(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    centre, first, second, angle = _place(canvas, fact)
    corners = cv2.ellipse2Poly(centre, (first, second), int(angle), 0, 360, (72, 90, 90, 120)[int(fact[8] * 3.99)])
    cv2.fillConvexPoly(canvas, np.asarray(corners), colour, cv2.LINE_AA)


def _bar(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    """A stroke with round ends: branches, fingers, poles."""
    size = len(canvas)
    (column, row), _, _, angle = _place(canvas, fact)
    length = size * (0.1 + fact[5])
    end = (int(column + length * np.cos(angle)), int(row + length * np.sin(angle)))
    cv2.line(canvas, (column, row), end, colour, 1 + int(fact[8] ** 2 * size * 0.12), cv2.LINE_AA)


def _stripes(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    """Parallel bars in a box: blinds, shirts, windows."""
    (column, row), first, second, _ = _place(canvas, fact)
    step = 2 + int(fact[8] * len(canvas) * 0.1)
    box = canvas[max(row - second, 0) : row + second, max(column - first, 0) : column + first]
    stripes = box if fact[9] < 0.5 else box.swapaxes(0, 1)
    for start in range(0, len(stripes), 2 * step):
        stripes[start : start + step] = colour


def _dots(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    """Two dots over a bar on a blob: what has the layout of a face without being one."""
    (column, row), first, _, angle = _place(canvas, fact)
    turn = np.deg2rad(angle)
    right, down = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    for across, along in ((-0.5, -0.3), (0.5, -0.3), (0.1, 0.6 * fact[10]))[: 2 + int(fact[8] < 0.3)]:
        point = (column, row) + first * (across * right + along * down)
        radius = 1 + int(first * 0.25 * fact[9])
        cv2.circle(canvas, (int(point[0]), int(point[1])), radius, colour, -1, cv2.LINE_AA)


def _text(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    (column, row), first, _, _ = _place(canvas, fact)
    letters = "".join(_TEXT[int(value * 1e4) % len(_TEXT)] for value in fact)
    cv2.putText(canvas, letters, (column - first, row), int(fact[8] * 7.99), 0.2 + first / 40, colour, 1, cv2.LINE_AA)


def _noise(canvas: np.ndarray, fact: np.ndarray, colour: tuple[float, ...]) -> None:
    """Grain of some size in a box: grass, gravel, fabric, leaves."""
    (column, row), first, second, _ = _place(canvas, fact)
    box = canvas[max(row - 2 * second, 0) : row + 2 * second, max(column - 2 * first, 0) : column + 2 * first]
    if box.size == 0:
        return
    grain = np.random.default_rng(int(fact[10] * 2**31)).uniform(0, 1, (1 + box.shape[0] // 3, 1 + box.shape[1] // 3))
    weight = cv2.resize(grain.astype(np.float32), box.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    box[:] = (box * (1 - weight * fact[9]) + np.array(colour) * weight * fact[9]).astype(np.uint8)


_KINDS = (_ellipse, _ellipse, _polygon, _bar, _bar, _stripes, _dots, _text, _noise, _noise)
