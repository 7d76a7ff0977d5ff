"""Light in plain torch, by ``geometry.lighting``."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.geometry import lighting


def shade(
    normals: Float[Tensor, "batch points 3"], sh_coefficients: Float[Tensor, "batch 3 9"], least_length: float
) -> Float[Tensor, "batch points 3"]:
    unit = F.normalize(normals, dim=-1, eps=least_length) if least_length > 0 else normals
    return lighting.shade(unit, sh_coefficients)


def light_albedo(
    albedo: Float[Tensor, "maps height width textures 3"],
    shading: Float[Tensor, "batch height width 3"],
    encoding: lighting.Encoding,
) -> Float[Tensor, "batch height width textures 3"]:
    wearers = len(shading) // max(len(albedo), 1)
    by_map = shading.unflatten(0, (wearers, len(albedo)))
    return lighting.light_albedo(albedo, by_map[..., None, :], encoding).flatten(0, 1)
