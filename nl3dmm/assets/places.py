"""Named places of a face, found by its landmarks on any topology. Left and right are the subject's."""

import torch

from nl3dmm.assets.landmarks import MIRROR_68
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import ConfigError
from nl3dmm.geometry.uv import uv_grid

# Weights of landmarks whose sum is a point near the place: the nearest skin of the mean face is meant.
_MIDDLE: dict[str, dict[int, float]] = {
    "forehead": {21: 0.5, 22: 0.5, 27: 0.45, 33: -0.45},
    "nose_bridge": {28: 1.0},
    "nose": {30: 1.0},
    "upper_lip": {33: 0.5, 51: 0.5},
    "chin": {8: 0.45, 57: 0.55},
}
_LEFT: dict[str, dict[int, float]] = {
    "cheek": {46: 0.2, 54: 0.35, 14: 0.25, 35: 0.2},
    "temple": {26: 0.6, 16: 0.4},
    "jaw": {12: 0.5, 54: 0.5},
}
PLACES = (*_MIDDLE, *(f"{side}_{name}" for name in _LEFT for side in ("left", "right")))


def check_place(place: str) -> None:
    """Raises: ConfigError: there is no such place."""
    if place not in PLACES:
        raise ConfigError(f"at: got {place!r}; expected (u, v) or one of {', '.join(PLACES)}. Choose one.")


def place_uv(template: FaceTemplate, place: str) -> tuple[float, float]:
    """UV point of a place in ``PLACES``.

    Raises:
        ConfigError: there is no such place.
    """
    check_place(place)
    side, _, name = place.partition("_")
    if side == "right":
        u, v = place_uv(template, f"left_{name}")
        return 1 - u, v  # the UV layout is symmetric, landmarks nearly so
    middle = place in _MIDDLE
    u, v = _nearest_skin(template, _MIDDLE[place] if middle else _LEFT[name])
    return (0.5, v) if middle else (u, v)


def _nearest_skin(template: FaceTemplate, weights: dict[int, float]) -> tuple[float, float]:
    """Of a combination of landmarks on the mean face and of its mirror image, seen from the left."""
    marks = template.landmarks(template.vertices[None])[0]
    target = torch.zeros_like(marks[0])
    for number, weight in weights.items():
        other = marks[int(MIRROR_68[number])] * marks.new_tensor([-1, 1, 1])
        target = target + weight * (marks[number] + other) / 2
    positions = template.surface().to_uv_map(template.vertices[None])[0].flatten(1).T
    skin = (template.uv_mask & (template.regions["skin"] > 0.5)).flatten()
    distance = (positions - target).norm(dim=1).masked_fill(~skin, torch.inf)
    u, v = uv_grid(template.uv_size)[int(distance.argmin())].tolist()
    return u, v
