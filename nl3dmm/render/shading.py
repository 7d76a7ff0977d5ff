"""Light by the backend that renders."""

from typing import get_args, no_type_check

from jaxtyping import Float
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.geometry.lighting import Encoding
from nl3dmm.render._backends import operations
from nl3dmm.render._checks import check_choice, check_real


@no_type_check  # so that a wrong argument always meets the checks of this function; the backends' annotations are run
def shade(
    normals: Float[Tensor, "batch points 3"],
    sh_coefficients: Float[Tensor, "batch 3 9"],
    *,
    least_length: float = 0.0,
) -> Float[Tensor, "batch points 3"]:
    """That of ``geometry.lighting.shade``, ten times faster on CPU; differentiable once.

    Args:
        normals: of unit length. With ``least_length`` of any length: they are divided by it, or by ``least_length``
            where they are shorter.
    """
    check_real("normals", normals, (None, None, 3), "(batch, points, 3)")
    lengths = (len(normals), 3, 9)
    check_real("sh_coefficients", sh_coefficients, lengths, f"{lengths} like normals", like=normals)
    return operations(normals.device).shade(normals, sh_coefficients, float(least_length))


@no_type_check
def light_albedo(
    albedo: Float[Tensor, "maps height width textures 3"],
    shading: Float[Tensor, "batch height width 3"],
    encoding: Encoding,
) -> Float[Tensor, "batch height width textures 3"]:
    """That of ``geometry.lighting.light_albedo``, where element i of the batch takes map ``i % maps``.

    A map is decoded once, however many elements take it. Differentiable once on CPU.

    Raises:
        ShapeError: also where ``maps`` does not divide ``batch``.
    """
    check_real("shading", shading, (None, None, None, 3), "(batch, height, width, 3)")
    _, height, width, _ = shading.shape
    expected = f"(maps, {height}, {width}, textures, 3) like shading"
    check_real("albedo", albedo, (None, height, width, None, 3), expected, like=shading)
    check_shared("albedo", albedo, len(shading))
    check_choice("encoding", encoding, get_args(Encoding))
    return operations(shading.device).light_albedo(albedo, shading, encoding)


def check_shared(name: str, maps: Tensor, batch: int) -> None:
    """Each map serves the same number of batch elements."""
    if batch % max(len(maps), 1) or (batch > 0) != (len(maps) > 0):
        raise ShapeError(f"{name}: got batch {len(maps)}; expected a divisor of {batch}. Repeat or select elements.")
