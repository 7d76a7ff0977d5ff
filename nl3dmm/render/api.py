"""Differentiable rendering with nvdiffrast's signatures and layouts, on CPU (numba or plain torch) and CUDA.

``rasterize -> interpolate -> texture -> antialias``, all with row 0 of a tensor at clip-space y = -1, pixel centres at
.5, and ``rast`` (batch, height, width, 4) = (u, v, z / w, triangle index + 1), zero on the background; a surface point
is ``u * vertex0 + v * vertex1 + (1 - u - v) * vertex2``. Which triangle is seen carries no gradient, except through
``antialias``.
"""

from collections.abc import Sequence
from typing import Any, Literal, no_type_check

from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render import _checks as checks
from nl3dmm.render._backends import operations
from nl3dmm.render.mipmaps import texture_construct_mip
from nl3dmm.render.silhouette import antialias_edges
from nl3dmm.render.topology import antialias_construct_topology_hash

FilterMode = Literal["auto", "nearest", "linear", "linear-mipmap-nearest", "linear-mipmap-linear"]
BoundaryMode = Literal["wrap", "clamp", "zero"]


@no_type_check  # so that a wrong argument always meets the checks of this function; the backends' annotations are run
def rasterize(
    ctx: Any,
    pos: Float[Tensor, "batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    resolution: tuple[int, int],
    ranges: Int[Tensor, "batch 2"] | None = None,
    grad_db: bool | None = None,
) -> tuple[Float[Tensor, "batch height width 4"], Float[Tensor, "batch height width _"]]:
    """Find the nearest triangle at each pixel centre.

    Both windings are drawn. Triangles are clipped at the view volume; those with an index that does not exist, a
    vertex that is not finite in float32 or no area (at 1/16 pixel) are skipped.

    Args:
        ctx: nvdiffrast context on CUDA; ``None`` takes a cached one. Not used on CPU.
        pos: clip space, visible where ``-w <= x, y, z <= w``; gradients reach x, y, w through u and v. Two axes in
            range mode: all images share the vertices.
        resolution: height, width.
        ranges: range mode: first triangle and number of triangles of each image, on CPU. Needs ``pos`` of two axes.
        grad_db: ``None`` computes no image-space derivatives; False computes them, True with gradients to ``pos``.

    Returns:
        ``rast`` and ``(du/dX, du/dY, dv/dX, dv/dY)`` per pixel, without channels if not asked for.
    """
    checks.check_positions(pos, ranges)
    checks.check_triangles(tri, pos.device)
    checks.check_ranges(ranges, len(tri))
    height, width = checks.checked_resolution(resolution)
    rast, rast_db = operations(pos.device).rasterize(ctx, pos, tri, height, width, ranges, grad_db)
    return rast, rast.new_empty(*rast.shape[:3], 0) if rast_db is None else rast_db


@no_type_check
def interpolate(
    attr: Float[Tensor, "#batch vertices channels"] | Float[Tensor, "vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
    rast_db: Float[Tensor, "batch height width 4"] | None = None,
    diff_attrs: Literal["all"] | Sequence[int] | None = None,
) -> tuple[Float[Tensor, "batch height width channels"], Float[Tensor, "batch height width _"]]:
    """Vertex attributes at each pixel, 0 on the background; gradients to ``attr`` and to u, v.

    ``tri`` may differ from the one that was rasterized (a UV index buffer), triangle for triangle.

    Args:
        attr: two axes: shared by all images, as in range mode.
        rast_db: what ``rasterize`` returned with ``grad_db``; needed for ``diff_attrs``.
        diff_attrs: channels whose image-space derivatives are wanted; negative numbers count from the end.

    Returns:
        The attributes, and ``dA/dX, dA/dY`` of each wanted channel in turn.
    """
    checks.check_real("rast", rast, (None, None, None, 4), "(batch, height, width, 4)")
    attr = checks.checked_attributes(attr, rast)
    checks.check_triangles(tri, rast.device)
    channels = checks.checked_channels(diff_attrs, attr.shape[2])
    checks.check_derivatives(rast_db, rast, channels)
    out, out_da = operations(rast.device).interpolate(attr, rast, tri, rast_db, channels)
    return out, out.new_empty(*out.shape[:3], 0) if out_da is None else out_da


@no_type_check
def texture(
    tex: Float[Tensor, "#batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    uv_da: Float[Tensor, "batch height width 4"] | None = None,
    mip_level_bias: Float[Tensor, "batch height width"] | None = None,
    mip: Sequence[Float[Tensor, "#batch _ _ channels"]] | None = None,
    filter_mode: FilterMode = "auto",
    boundary_mode: BoundaryMode = "wrap",
    max_mip_level: int | None = None,
    *,
    mask: Bool[Tensor, "batch height width"] | None = None,
) -> Float[Tensor, "batch height width channels"]:
    """Sample a texture; gradients to ``tex``, to mip levels and, unless filtering is nearest, to ``uv``.

    Texel (row, column) has its centre at ``u = (column + .5) / width, v = (row + .5) / height``. Coordinates outside of
    [0, 1] read the opposite side (wrap), the border texel (clamp) or 0 (zero).

    Args:
        uv_da: ``du/dX, du/dY, dv/dX, dv/dY`` per pixel, as ``interpolate`` gives them for the two UV channels. They
            choose the mip level: ``log2`` of the longer axis of the pixel's footprint in texels.
        mip_level_bias: added to the level.
        mip: levels 1, 2, ... of the pyramid; built by 2 x 2 means, up to ``max_mip_level``, where not given.
        filter_mode: ``auto`` is ``linear-mipmap-linear`` where ``uv_da`` or ``mip_level_bias`` is given, else
            ``linear``.
        mask: False pixels become 0, have no gradient and cost no time. Without it the background is sampled at (0, 0)
            like any other pixel.
    """
    checks.check_real("uv", uv, (None, None, None, 2), "(batch, height, width, 2)")
    checks.check_real("tex", tex, (None, None, None, None), "(batch, height, width, channels)", like=uv)
    checks.check_batch("tex", tex, len(uv))
    checks.check_texels(tex)
    checks.check_mask(mask, uv)
    checks.check_choice("boundary_mode", boundary_mode, ("wrap", "clamp", "zero"))
    filter_mode = checks.checked_filter_mode(filter_mode, uv, uv_da, mip_level_bias)
    levels = [tex]
    if "mipmap" in filter_mode:
        levels += (
            texture_construct_mip(tex, max_mip_level) if mip is None else checks.checked_mip(mip, tex, max_mip_level)
        )
    return operations(uv.device).texture(levels, uv, uv_da, mip_level_bias, filter_mode, boundary_mode, mask)


@no_type_check
def antialias(
    color: Float[Tensor, "batch height width channels"],
    rast: Float[Tensor, "batch height width 4"],
    pos: Float[Tensor, "#batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology_hash: Any = None,
    pos_gradient_boost: float = 1.0,
    *,
    mode: Literal["exact", "edge"] = "exact",
) -> Float[Tensor, "batch height width channels"]:
    """Blend colours across silhouettes, so that they depend on where the silhouette is: gradients to color and pos.

    Args:
        topology_hash: from ``antialias_construct_topology_hash(tri)``; made and kept for this ``tri`` where not given.
            nvdiffrast makes its own and does not ask for it.
        pos_gradient_boost: factor on the gradient of ``pos``.
        mode: ``exact`` is nvdiffrast's rule: only edges of triangles that are seen at a pixel centre count, so on
            meshes with triangles of about a pixel most of the silhouette gradient is missing. ``edge`` walks along
            every silhouette edge, whatever the size of its triangle: for mask losses on dense meshes.
    """
    checks.check_real("rast", rast, (None, None, None, 4), "(batch, height, width, 4)")
    checks.check_real("color", color, (*rast.shape[:3], None), "(batch, height, width, channels) like rast", like=rast)
    checks.check_corners(pos, rast)
    checks.check_triangles(tri, rast.device)
    checks.check_choice("mode", mode, ("exact", "edge"))
    topology = antialias_construct_topology_hash(tri) if topology_hash is None else topology_hash
    checks.check_topology(topology, tri)
    if mode == "edge":
        return antialias_edges(color, rast, pos, tri, topology, pos_gradient_boost)
    return operations(rast.device).antialias(color, rast, pos, tri, topology, pos_gradient_boost)
