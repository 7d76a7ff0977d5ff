"""How much of the fine albedo of a face an estimate holds: what is left of UV maps when their blur is taken away."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.geometry.uv import erode, low_pass

_SIGMA = 4 / 224  # of the map's width: 4 texels of the paper's map, 3 mm of a face
_ROUNDING = 1e-12  # mean square of what is left of a map without detail in float32
_TINY = 1e-20  # keeps 0 / 0 away


def detail_sigma(uv_size: tuple[int, int]) -> float:
    """Texels; the same part of the face for every map size."""
    return _SIGMA * uv_size[1]


def detail_region(skin: Float[Tensor, "uv_height uv_width"]) -> Bool[Tensor, "uv_height uv_width"]:
    """Skin texels at least one sigma away from anything else: the edges of lips and eyes are no detail of a person."""
    return erode(skin > 0.5, math.ceil(detail_sigma((skin.shape[0], skin.shape[1]))))


def high_pass(
    albedo: Float[Tensor, "batch channels uv_height uv_width"],
    mask: Bool[Tensor, "uv_height uv_width"],
    sigma: float,
) -> Float[Tensor, "batch channels uv_height uv_width"]:
    """The map less its Gaussian blur of ``sigma`` texels, in which only the mask's texels count; 0 outside the mask."""
    return (albedo - low_pass(albedo, mask, sigma)) * mask.to(albedo.dtype)


def detail_scores(
    albedo: Float[Tensor, "batch 3 uv_height uv_width"],
    truth: Float[Tensor, "batch 3 uv_height uv_width"],
    mean: Float[Tensor, "3 uv_height uv_width"],
    skin: Float[Tensor, "uv_height uv_width"],
    visible: Bool[Tensor, "batch uv_height uv_width"] | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """High-pass albedo of an estimate against the truth's, over ``detail_region`` and what is visible of it.

    Of both the high-pass of ``mean``, the average face's albedo, is taken away: what remains is the person's own, and
    to guess the average face recovers nothing. With these two maps as vectors e and t: ``detail_recovered = <e, t> /
    <t, t>``, the part of the true detail that the estimate holds in its place; ``detail_correlation = <e, t> / (|e|
    |t|)``; ``detail_energy = <e, e> / <t, t>``. All are 0 where nothing is to be recovered.
    """
    sigma = detail_sigma((skin.shape[0], skin.shape[1]))
    region = detail_region(skin) if visible is None else detail_region(skin) & visible
    weight = region.expand(len(truth), -1, -1)[:, None]
    estimate, target = ((high_pass(value - mean, skin > 0.5, sigma) * weight).flatten(1) for value in (albedo, truth))
    inner, own = (estimate * target).sum(1), (estimate**2).sum(1)
    energy = (target**2).sum(1)
    has_detail = energy > _ROUNDING * target.shape[1] * weight.float().mean((1, 2, 3))
    over_energy = torch.where(has_detail, 1 / energy.clamp_min(_TINY), 0)
    return {
        "detail_recovered": inner * over_energy,
        "detail_correlation": inner * over_energy.sqrt() / own.sqrt().clamp_min(_TINY),
        "detail_energy": own * over_energy,
    }
