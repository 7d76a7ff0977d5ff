"""Meshes with UV textures under a camera and a light -> images."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.geometry.camera import clip_from_object, rotate
from nl3dmm.geometry.lighting import Encoding
from nl3dmm.geometry.uv import sample_uv_map, uv_map_from_vertices, vertices_from_uv_grid
from nl3dmm.render._checks import check_choice
from nl3dmm.render.api import interpolate, rasterize, texture
from nl3dmm.render.normals import vertex_normals
from nl3dmm.render.shading import check_shared, light_albedo, shade
from nl3dmm.types import Camera, TensorFields

ShadingDomain = Literal["uv", "vertex", "screen"]
_LEAST_NORMAL = 1e-3  # between opposite unit normals; dividing by less would let one pixel outweigh all gradients


@dataclass(frozen=True)
class Surface(TensorFields):
    """What does not change from face to face: topology and UV coordinates.

    Without texel tables vertex k is texel k in row-major order. Tables cover every texel: those outside the mesh
    repeat the nearest one inside, so that bilinear sampling at a border reads no empty texel.
    """

    triangles: Int[Tensor, "triangles 3"]
    uv: Float[Tensor, "vertices 2"]
    uv_size: tuple[int, int]
    texel_triangle: Int[Tensor, "uv_height uv_width"] | None = None
    texel_barycentric: Float[Tensor, "uv_height uv_width 3"] | None = None

    def to_uv_map(
        self, values: Float[Tensor, "batch vertices channels"]
    ) -> Float[Tensor, "batch channels uv_height uv_width"]:
        """Vertex values interpolated at texels."""
        if self.texel_triangle is None or self.texel_barycentric is None:
            return values.transpose(1, 2).unflatten(2, self.uv_size)
        return uv_map_from_vertices(values, self.triangles, self.texel_triangle, self.texel_barycentric)

    def to_vertices(
        self, uv_map: Float[Tensor, "batch channels uv_height uv_width"]
    ) -> Float[Tensor, "batch vertices channels"]:
        """Map values at the vertices."""
        return vertices_from_uv_grid(uv_map) if self.texel_triangle is None else sample_uv_map(uv_map, self.uv)


@dataclass(frozen=True)
class Rendering(TensorFields):
    """Images of one geometry per batch element, one per texture; black where nothing is drawn."""

    images: Float[Tensor, "batch textures 3 height width"]  # RGB as the encoding says, not clipped
    mask: Bool[Tensor, "batch height width"]
    shading: Float[Tensor, "batch vertices 3"]
    normals: Float[Tensor, "batch vertices 3"]  # camera frame, unit length


@dataclass(frozen=True)
class SeenMesh(TensorFields):
    """Meshes under a camera and a light, before any texture is on them: what stays when albedos alone change."""

    fragments: Float[Tensor, "batch height width 4"]
    mask: Bool[Tensor, "batch height width"]
    uv: Float[Tensor, "batch height width 2"]
    shading: Float[Tensor, "batch vertices 3"]
    normals: Float[Tensor, "batch vertices 3"]  # camera frame, unit length


def render_textures(
    vertices: Float[Tensor, "batch vertices 3"],
    albedos: Float[Tensor, "maps textures 3 uv_height uv_width"],
    camera: Camera,
    sh_coefficients: Float[Tensor, "batch 3 9"],
    surface: Surface,
    image_size: tuple[int, int],
    encoding: Encoding,
    shading: ShadingDomain = "uv",
) -> Rendering:
    """Draw each mesh once with several albedo maps: one rasterisation, one shading, one texture fetch.

    Args:
        albedos: ``maps`` divides ``batch``: mesh i wears map ``i % maps``.
        shading: where albedo meets light. ``uv``: vertex shading is carried to the texels and the lit map is fetched,
            as in the paper, so that colour conversion costs per texel. ``vertex``: vertex shading is carried to the
            pixels and lights the fetched albedo. ``screen``: normals are carried to the pixels and shaded there.
    """
    check_choice("shading", shading, get_args(ShadingDomain))
    seen = see_mesh(vertices, camera, sh_coefficients, surface, image_size)
    if shading != "screen":
        return wear_textures(seen, albedos, surface, encoding, shading)
    with torch.autocast(vertices.device.type, enabled=False):
        values, _ = interpolate(seen.normals, seen.fragments, surface.triangles)
        return _lit(seen, albedos, shade_pixels(values, sh_coefficients), encoding)


def see_mesh(
    vertices: Float[Tensor, "batch vertices 3"],
    camera: Camera,
    sh_coefficients: Float[Tensor, "batch 3 9"],
    surface: Surface,
    image_size: tuple[int, int],
) -> SeenMesh:
    """The first half of ``render_textures``: rasterisation, normals, vertex shading."""
    with torch.autocast(vertices.device.type, enabled=False):
        clip = clip_from_object(camera, vertices, image_size)
        fragments, _ = rasterize(None, clip, surface.triangles, image_size)
        normals = rotate(camera, vertex_normals(vertices, surface.triangles))
        uv, _ = interpolate(surface.uv[None], fragments, surface.triangles)
        return SeenMesh(fragments, fragments[..., 3] > 0, uv, shade(normals, sh_coefficients), normals)


def wear_textures(
    seen: SeenMesh,
    albedos: Float[Tensor, "maps textures 3 uv_height uv_width"],
    surface: Surface,
    encoding: Encoding,
    shading: Literal["uv", "vertex"] = "uv",
) -> Rendering:
    """The second half: albedo maps on meshes that are already seen; arguments as of ``render_textures``."""
    check_shared("albedos", albedos, len(seen.mask))
    with torch.autocast(albedos.device.type, enabled=False):
        if shading == "vertex":
            return _lit(seen, albedos, interpolate(seen.shading, seen.fragments, surface.triangles)[0], encoding)
        at_texels = surface.to_uv_map(seen.shading).permute(0, 2, 3, 1)
        lit = light_albedo(albedos.permute(0, 3, 4, 1, 2), at_texels, encoding)
        return _rendering(seen, _fetch(lit, seen.uv, seen.mask))


def _lit(
    seen: SeenMesh, albedos: Tensor, at_pixels: Float[Tensor, "batch height width 3"], encoding: Encoding
) -> Rendering:
    """Albedo fetched first, then lit at the pixels."""
    check_shared("albedos", albedos, len(seen.mask))
    fetched = _fetch(albedos.permute(0, 3, 4, 1, 2), seen.uv, seen.mask)
    return _rendering(seen, light_albedo(fetched, at_pixels, encoding))


def _rendering(seen: SeenMesh, pixels: Float[Tensor, "batch height width textures 3"]) -> Rendering:
    return Rendering(pixels.permute(0, 3, 4, 1, 2), seen.mask, seen.shading, seen.normals)


def _fetch(
    maps: Float[Tensor, "maps uv_height uv_width textures 3"],
    uv: Float[Tensor, "batch height width 2"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, "batch height width textures 3"]:
    """All maps in one texture fetch; 0 where the mask is False."""
    if len(maps) < len(uv):
        maps = maps.repeat(len(uv) // len(maps), 1, 1, 1, 1)
    return texture(maps.flatten(3), uv, boundary_mode="clamp", mask=mask).unflatten(-1, (-1, 3))


def shade_pixels(
    normals: Float[Tensor, "batch height width 3"], sh_coefficients: Float[Tensor, "batch 3 9"]
) -> Float[Tensor, "batch height width 3"]:
    """Shading at interpolated normals of any length."""
    return shade(normals.flatten(1, 2), sh_coefficients, least_length=_LEAST_NORMAL).view_as(normals)


def render_geometry(
    vertices: Float[Tensor, "batch vertices 3"],
    camera: Camera,
    surface: Surface,
    image_size: tuple[int, int],
) -> Float[Tensor, "batch 3 height width"]:
    """Grey clay pictures on black, lit softly from the viewer's upper left: to look at the shape alone."""
    batch = len(vertices)
    grey = vertices.new_full((batch, 1, 3, *surface.uv_size), 0.75)
    light = vertices.new_zeros(batch, 3, 9)
    light[:, :, 0], light[:, :, 1], light[:, :, 2], light[:, :, 3] = 1.1, 0.45, 0.75, -0.35
    return render_textures(vertices, grey, camera, light, surface, image_size, "none").images[:, 0].clamp(0, 1)


def composite(
    image: Float[Tensor, "batch 3 height width"],
    background: Float[Tensor, "batch 3 height width"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, "batch 3 height width"]:
    """``image`` where the mask is True, ``background`` elsewhere."""
    return torch.where(mask[:, None], image, background)
