"""Spherical-harmonics light and colour encoding."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.errors import ConfigError, ShapeError

Encoding = Literal["none", "srgb"]
SH_CONSTANTS = (0.28209479177387814, 0.4886025119029199, 1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
SH_SCALES = tuple(SH_CONSTANTS[i] for i in (0, 1, 1, 1, 2, 2, 3, 2, 4))  # basis = scale * polynomial of the normal
Light = Float[Tensor, "*shape"] | Sequence[float] | str  # see light_from
NAMED_LIGHTS = {  # where the light comes from, camera frame; the zero vector: from everywhere
    "ambient": (0, 0, 0),
    "front": (0, 0, 1),
    "above": (0, 1, 0.5),
    "below": (0, -1, 0.5),
    "image_left": (-1, 0.2, 0.4),
    "image_right": (1, 0.2, 0.4),
}
_AMBIENT, _DIRECTED = 0.3, 0.7  # of a light that is given by its direction


def sh_basis(normals: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 9"]:
    """Nine real orthonormal spherical harmonics at unit normals in the camera frame.

    Order ``1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2`` (Ramamoorthi and Hanrahan 2001); constants in ``SH_CONSTANTS``.
    """
    return torch.stack(_polynomials(normals), -1) * normals.new_tensor(SH_SCALES)


def shade(
    normals: Float[Tensor, "batch points 3"], sh_coefficients: Float[Tensor, "batch 3 9"]
) -> Float[Tensor, "batch points 3"]:
    """Shading per point and colour channel; linear in the coefficients, may be negative."""
    planes = torch.stack(_polynomials(normals), 1)  # (batch, 9, points): all reads and writes are contiguous
    return (sh_coefficients * sh_coefficients.new_tensor(SH_SCALES) @ planes).transpose(1, 2)


def _polynomials(normals: Float[Tensor, "*batch 3"]) -> list[Float[Tensor, "*batch"]]:
    x, y, z = normals.unbind(-1)
    return [torch.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]


def white_light(batch: int, brightness: float = 1.0) -> Float[Tensor, "batch 3 9"]:
    """Coefficients of a uniform white light: shading equals ``brightness`` for every normal."""
    coefficients = torch.zeros(batch, 3, 9)
    coefficients[:, :, 0] = brightness / SH_CONSTANTS[0]
    return coefficients


def directional_light(
    direction: Float[Tensor, "*batch 3"], intensity: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 9"]:
    """Coefficients of distant light from unit ``direction`` (camera frame): Lambert's clamped cosine up to band 2.

    A normal that faces the light is shaded ``1.0625 * intensity`` (the truncated series overshoots by 1/16).
    """
    bands = direction.new_tensor([math.pi] + [2 * math.pi / 3] * 3 + [math.pi / 4] * 5)
    return intensity[..., :, None] * (bands * sh_basis(direction))[..., None, :]


def light_from(light: Light) -> Float[Tensor, "3 9"]:
    """Coefficients of a light that is given by them, by a name of ``NAMED_LIGHTS``, or by where it comes from.

    Args:
        light: a direction (x, y, z) is in the camera frame, of any length; some even light is added, so that shadows
            are not black.

    Raises:
        ConfigError: unknown name.
        ShapeError: neither (3, 9) coefficients nor a direction, or not finite.
    """
    if isinstance(light, str):
        if light not in NAMED_LIGHTS:
            raise ConfigError(f"light: got {light!r}; expected one of {', '.join(NAMED_LIGHTS)}. Choose one.")
        light = NAMED_LIGHTS[light]
        if not any(light):
            return white_light(1)[0]
    values = torch.as_tensor(light, dtype=torch.float32)
    if tuple(values.shape) not in ((3, 9), (3,)):
        raise ShapeError(
            f"light: got shape {tuple(values.shape)}; expected finite (3, 9) coefficients, or a direction (x, y, z). "
            "Give one of them or a name."
        )
    if not values.isfinite().all() or not values.any():
        raise ShapeError(f"light: got {values.tolist()}; expected finite numbers, not all 0. Change them.")
    if values.ndim == 2:
        return values
    direction = F.normalize(values, dim=0)
    return white_light(1, _AMBIENT)[0] + directional_light(direction, values.new_full((3,), _DIRECTED))


def decode_srgb(colour: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """sRGB value to linear intensity (IEC 61966-2-1); values below 0 continue the linear toe."""
    toe = colour / 12.92
    return torch.where(colour <= 0.04045, toe, ((colour.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def encode_srgb(intensity: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Linear intensity to sRGB value; values below 0 continue the linear toe, values above 1 are not clipped."""
    toe = intensity * 12.92
    return torch.where(intensity <= 0.0031308, toe, 1.055 * intensity.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def light_albedo(
    albedo: Float[Tensor, "*#shape"], shading: Float[Tensor, "*#shape"], encoding: Encoding
) -> Float[Tensor, "*#shape"]:
    """``texture = albedo * shading`` in the space that ``encoding`` names (``docs/conventions.md``); broadcasts."""
    if encoding == "none":
        return albedo * shading
    return encode_srgb(decode_srgb(albedo) * shading)
