"""Differentiable rendering with nvdiffrast's signatures and layouts, on CPU (numba or plain torch) and CUDA.

``rasterize -> interpolate -> texture``, all with row 0 of a tensor at clip-space y = -1, pixel centres at .5, and
``rast`` (batch, height, width, 4) = (u, v, z / w, triangle index + 1), zero on the background; a surface point is
``u * vertex0 + v * vertex1 + (1 - u - v) * vertex2``. Which triangle is seen carries no gradient.
"""

from typing import Any, Literal, no_type_check

from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render import _checks as checks
from nl3dmm.render._backends import operations


@no_type_check  # so that a wrong argument always meets the checks of this function; the backends' annotations are run
def rasterize(
    ctx: Any, pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], resolution: tuple[int, int]
) -> tuple[Float[Tensor, "batch height width 4"], Float[Tensor, "batch height width 0"]]:
    """Find the nearest triangle at each pixel centre.

    Both windings are drawn. Triangles are clipped at the view volume; those with an index that does not exist, a
    vertex that is not finite or no area (at 1/16 pixel) are skipped.

    Args:
        ctx: nvdiffrast context on CUDA; ``None`` takes a cached one. Not used on CPU.
        pos: clip space, visible where ``-w <= x, y, z <= w``; gradients reach x, y, w through u and v.
        resolution: height, width.

    Returns:
        ``rast`` and an empty tensor in the place of nvdiffrast's image-space derivatives.
    """
    checks.check_real("pos", pos, (None, None, 4), "(batch, vertices, 4)")
    checks.check_triangles(tri, pos.device)
    height, width = checks.checked_resolution(resolution)
    rast = operations(pos.device).rasterize(ctx, pos, tri, height, width)
    return rast, rast.new_empty(*rast.shape[:3], 0)


@no_type_check
def interpolate(
    attr: Float[Tensor, "#batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
) -> tuple[Float[Tensor, "batch height width channels"], Float[Tensor, "batch height width 0"]]:
    """Vertex attributes at each pixel, 0 on the background; gradients to ``attr`` and to u, v.

    ``tri`` may differ from the one that was rasterized (a UV index buffer), triangle for triangle.
    """
    checks.check_real("rast", rast, (None, None, None, 4), "(batch, height, width, 4)")
    checks.check_real("attr", attr, (None, None, None), "(batch, vertices, channels)", like=rast)
    checks.check_batch("attr", attr, len(rast))
    checks.check_triangles(tri, rast.device)
    out = operations(rast.device).interpolate(attr, rast, tri)
    return out, out.new_empty(*out.shape[:3], 0)


@no_type_check
def texture(
    tex: Float[Tensor, "#batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    *,
    filter_mode: Literal["linear", "nearest"] = "linear",
    boundary_mode: Literal["clamp", "wrap", "zero"] = "clamp",
    mask: Bool[Tensor, "batch height width"] | None = None,
) -> Float[Tensor, "batch height width channels"]:
    """Sample a texture; gradients to ``tex`` and, with linear filtering, to ``uv``.

    Texel (row, column) has its centre at ``u = (column + .5) / width, v = (row + .5) / height``. Coordinates outside of
    [0, 1] read the border texel (clamp), the opposite side (wrap) or 0 (zero).

    Args:
        mask: False pixels become 0, have no gradient and cost no time. Without it the background is sampled at (0, 0)
            like any other pixel.
    """
    checks.check_real("uv", uv, (None, None, None, 2), "(batch, height, width, 2)")
    checks.check_real("tex", tex, (None, None, None, None), "(batch, height, width, channels)", like=uv)
    checks.check_batch("tex", tex, len(uv))
    checks.check_texels(tex)
    checks.check_choice("filter_mode", filter_mode, ("linear", "nearest"))
    checks.check_choice("boundary_mode", boundary_mode, ("clamp", "wrap", "zero"))
    checks.check_mask(mask, uv)
    return operations(uv.device).texture(tex, uv, filter_mode, boundary_mode, mask)
