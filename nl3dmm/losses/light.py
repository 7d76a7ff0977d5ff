"""Light regularisers: per-sample values, and one of the batch."""

from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.losses.pixels import masked_mean

_LEAST_AMBIENT = 0.1  # coefficient; a white light of brightness 1 has 3.54


def white_shading(shading: Float[Tensor, "batch points 3"]) -> Float[Tensor, " batch"]:
    """Light is white on average over each face: squared deviation of the mean shading's channels from their mean.

    It leaves the brightness free. ``white_shading_of_batch`` is what the released code has in its place.
    """
    mean = shading.mean(1)
    return ((mean - mean.mean(1, keepdim=True)) ** 2).mean(1)


def white_shading_of_batch(shading: Float[Tensor, "batch points 3"], target: float = 0.99) -> Float[Tensor, ""]:
    """Light is white and of brightness ``target`` on average over the batch (released code, not in the paper).

    One value for the batch: single lights may have any tint and brightness as long as they average out.
    """
    return ((shading.mean((0, 1)) - target) ** 2).mean()


def over_exposure(
    shading: Float[Tensor, "batch 3 uv_height uv_width"],
    texture: Float[Tensor, "batch 3 uv_height uv_width"],
    mask: Bool[Tensor, "uv_height uv_width"],
) -> Float[Tensor, " batch"]:
    """Shading beyond what a photo can hold: mean of |shading - 1| where the texture exceeds 1, 0 elsewhere.

    Released code, not in the paper. Only the shading gets a gradient.
    """
    excess = (shading - 1).abs() * (texture > 1)
    return masked_mean(excess.mean(1), mask.expand(len(shading), -1, -1))


def light_tint(sh_coefficients: Float[Tensor, "batch 3 9"]) -> Float[Tensor, " batch"]:
    """Hue belongs to the albedo: mean squared deviation of the ambient light's channels from grey, relative to it.

    Ours. albedo * light explains a skin tone by either factor; this prior chooses. It looks at the coefficients of
    band 0, the light's mean over all directions, divided by their mean over the channels. So it does not change with
    the brightness and, unlike ``white_shading``, cannot be lowered by dimming the light.
    """
    ambient = sh_coefficients[:, :, 0]
    return ((ambient / ambient.mean(1, keepdim=True).clamp_min(_LEAST_AMBIENT) - 1) ** 2).mean(1)
