"""Edits of a face's albedo, seen in its photo (paper section 4.5): pure functions on one photo and one mesh.

An edit is a layer, ``albedo' = keep * albedo + paint``. With ``photo = albedo * shading`` the edited photo is ``keep *
photo + paint * shading``: the estimated light decides on what is painted alone, and the photo's own texture stays as
far as the layer keeps it. The face is never drawn anew.
"""

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.assets.unwrap import cylinder, outermost_texels
from nl3dmm.errors import ImageError
from nl3dmm.geometry.camera import clip_from_object, project, rotate, zoom
from nl3dmm.geometry.lighting import Encoding, Light, decode_srgb, encode_srgb, light_from, shade
from nl3dmm.geometry.uv import erode, low_pass
from nl3dmm.render.api import interpolate, rasterize
from nl3dmm.render.normals import vertex_normals
from nl3dmm.render.scene import Surface
from nl3dmm.render.uv import UVObservation, unwrap_photo
from nl3dmm.stickers import Layer, Sticker, sticker_layer, sticker_plane
from nl3dmm.types import Camera

_FINE_ROWS = 512  # of the edited albedo map, at least: about 0.4 mm per texel
_MOST_SAMPLES, _MOST_POINTS = 4, 6_000_000  # per pixel and axis; in all
_LEAST_SHADING = 0.05  # darker skin says nothing of its albedo
_LEAST_FACTOR, _MOST_FACTOR = 0.1, 4.0  # of a new light
_UNSURE, _SURE = 0.15, 0.45  # cosine to the viewer: below the first the photo's albedo is not believed
_RIM = 0.06  # of the map's height, over which a new light fades towards the mesh's border
_ON_FACE, _SEEN, _HIDDEN = 0.9, 0.5, 0.02  # parts of a sticker: less of it is worth a warning, or refused


@dataclass(frozen=True)
class FaceInPhoto:
    """What edits need to know of a face; on the CPU."""

    photo: Float[Tensor, "3 height width"]
    template: FaceTemplate
    vertices: Float[Tensor, "1 vertices 3"]  # mm, object frame
    camera: Camera  # projects to pixels of the photo
    sh_coefficients: Float[Tensor, "1 3 9"]
    albedo: Float[Tensor, "1 3 uv_height uv_width"]  # the estimate: used where the photo shows none
    encoding: Encoding
    occluder: Bool[Tensor, "height width"] | None = None  # True: something else lies before the face

    def to_linear(self, colour: Tensor) -> Tensor:
        """To the space in which light is a factor."""
        return decode_srgb(colour) if self.encoding == "srgb" else colour

    def from_linear(self, light: Tensor) -> Tensor:
        return encode_srgb(light) if self.encoding == "srgb" else light

    def shading(self, sh_coefficients: Float[Tensor, "1 3 9"]) -> Float[Tensor, "1 vertices 3"]:
        normals = rotate(self.camera, vertex_normals(self.vertices, self.template.triangles))
        return shade(normals, sh_coefficients).clamp_min(_LEAST_SHADING)


@dataclass(frozen=True)
class Edit:
    """An edited photo. Where ``mask`` is False, ``picture`` is the photo, bit for bit."""

    photo: Float[Tensor, "3 height width"]
    picture: Float[Tensor, "3 height width"]
    albedo: Float[Tensor, "3 _ _"]  # the edited map in the template's UV layout, finer than the model's
    mask: Bool[Tensor, "height width"]
    visible: float  # part of the sticker that the photo shows


@dataclass(frozen=True)
class PhotoLayer:
    """``photo' = keep * photo + paint`` in linear light, for a part of the photo."""

    part: tuple[slice, slice]  # rows, columns
    keep: Float[Tensor, "3 rows columns"]
    paint: Float[Tensor, "3 rows columns"]
    mask: Bool[Tensor, "rows columns"]  # where it changes the photo


@torch.no_grad()
def apply_sticker(face: FaceInPhoto, sticker: Sticker, light: Float[Tensor, "1 3 9"] | None = None) -> Edit:
    """Lay a sticker on the albedo and show it in the photo, under the estimated light or a new one.

    Warns where less than half of the sticker is seen, or where it runs over the end of the mesh.

    Args:
        light: the whole face is lit by it instead.

    Raises:
        ConfigError: an unknown place, a point off the face, or a sticker larger than the face.
        ImageError: the photo shows nothing of where the sticker lies.
    """
    plane = sticker_plane(face.template, face.vertices, sticker)
    surface = fine_surface(face.template)
    seen = _unwrap(face, surface)
    points = surface.to_uv_map(plane[None].nan_to_num(_far(sticker))).permute(0, 2, 3, 1)
    on_map = sticker_layer(sticker, _prepared(face, sticker, min(surface.uv_size)), points)
    visible = _check_seen(face, surface, seen, on_map, sticker)
    albedo = face.from_linear(on_map.on(photo_albedo(face, surface, seen))).clamp(0, 1)
    picture, mask = _edited(face, photo_layer(face, sticker, plane, light))
    return Edit(face.photo, picture, albedo[0], mask, visible)


def light_as_bright(face: FaceInPhoto, light: Light) -> Float[Tensor, "1 3 9"]:
    """A light (``geometry.lighting.light_from``) with the brightness and colour of the photo's.

    The mean shading of the vertices that face the viewer stays.

    Raises:
        ConfigError, ShapeError: of ``light_from``.
    """
    other = light_from(light)[None]
    normals = rotate(face.camera, vertex_normals(face.vertices, face.template.triangles))[0]
    front = normals[:, 2] > 0
    old, new = (face.shading(each)[0][front].mean(0) for each in (face.sh_coefficients, other))
    return other * (old / new)[:, None]


@lru_cache(maxsize=2)
def fine_surface(template: FaceTemplate) -> Surface:
    """The template's surface with texels of less than half a millimetre; kept for the next call."""
    rows, columns = template.uv_size
    factor = -(-_FINE_ROWS // rows)
    marks = template.landmarks(template.vertices[None])[0].numpy()
    radius = torch.from_numpy(cylinder(marks).radius(template.vertices.numpy()))
    size = (rows * factor, columns * factor)
    index, weights = outermost_texels(template.uv, template.triangles, radius, size)
    rows_of, columns_of = (torch.from_numpy(axis) for axis in _nearest_true((index >= 0).numpy()))
    return Surface(template.triangles, template.uv, size, index[rows_of, columns_of], weights[rows_of, columns_of])


def _nearest_true(mask: Bool[ndarray, "rows columns"]) -> Int[ndarray, "2 rows columns"]:
    """Row and column of the nearest texel in the mask."""
    return np.asarray(distance_transform_edt(~mask, return_distances=False, return_indices=True))


def photo_albedo(face: FaceInPhoto, surface: Surface, seen: UVObservation) -> Float[Tensor, "1 3 rows columns"]:
    """What the photo shows, less its shading; the estimate where the photo shows little. In linear light."""
    shown = face.to_linear(seen.colour[:, :3]) / surface.to_uv_map(face.shading(face.sh_coefficients))
    estimate = F.interpolate(face.albedo, surface.uv_size, mode="bilinear", align_corners=False)
    sure = ((seen.confidence - _UNSURE) / (_SURE - _UNSURE)).clamp(0, 1)[:, None]
    return torch.lerp(face.to_linear(estimate), shown, sure)


def _unwrap(face: FaceInPhoto, surface: Surface) -> UVObservation:
    """Of the photo; what the occluder hides is not visible."""
    hidden = torch.zeros_like(face.photo[:1]) if face.occluder is None else face.occluder[None].to(face.photo)
    seen = unwrap_photo(torch.cat([face.photo, hidden])[None], face.camera, face.vertices, surface)
    visible = seen.visible & (seen.colour[:, 3] < 0.5)
    return replace(seen, visible=visible, confidence=seen.confidence * visible)


def _check_seen(face: FaceInPhoto, surface: Surface, seen: UVObservation, layer: Layer, sticker: Sticker) -> float:
    """Part of the sticker that is seen."""
    area = _texel_areas(face, surface) * layer.alpha[0, 0]
    height, width = sticker.sides_mm
    whole = float(sticker.picture[3].mean()) * height * width
    visible = float((area * seen.visible[0]).sum()) / max(whole, 1e-6)
    if visible < _HIDDEN:
        raise ImageError(
            f"at: got {sticker.at!r}, of which the photo shows nothing; expected a place that it shows. "
            "Choose a place on the other side, or a sticker with something on it."
        )
    on_face = float(area.sum()) / whole
    if on_face < _ON_FACE:
        warnings.warn(f"sticker: {100 * (1 - on_face):.0f} % of it lies beyond the face's surface", stacklevel=4)
    if visible < _SEEN * on_face:
        warnings.warn(f"sticker: the photo shows {100 * visible:.0f} % of it, the rest is hidden", stacklevel=4)
    return min(visible, 1.0)


def _texel_areas(face: FaceInPhoto, surface: Surface) -> Float[Tensor, "rows columns"]:
    """mm^2; 0 off the mesh, where the map repeats its border."""
    positions = surface.to_uv_map(face.vertices)[0].permute(1, 2, 0)
    down, right = torch.gradient(positions, dim=(0, 1))
    return torch.linalg.cross(down, right).norm(dim=-1)


def photo_layer(
    face: FaceInPhoto,
    sticker: Sticker,
    plane: Float[Tensor, "vertices 2"],
    light: Float[Tensor, "1 3 9"] | None = None,
) -> PhotoLayer:
    """A sticker as the photo shows it, under the estimated light or a new one; several samples per pixel.

    Args:
        plane: as ``sticker_plane`` gives it.
    """
    height, width = face.photo.shape[1:]
    reached = plane.isfinite().all(1) if light is None else torch.ones_like(plane[:, 0], dtype=torch.bool)
    pixels, _ = project(face.camera, face.vertices[:, reached])
    left, top = pixels[0].amin(0).floor().long().clamp_min(0).tolist()
    right, bottom = pixels[0].amax(0).ceil().long().minimum(torch.tensor([width, height])).tolist()
    size = (max(bottom - top, 1), max(right - left, 1))
    part = (slice(top, top + size[0]), slice(left, left + size[1]))
    samples = min(max(int((_MOST_POINTS / (size[0] * size[1])) ** 0.5), 1), _MOST_SAMPLES)
    view = zoom(face.camera, samples, face.vertices.new_tensor([left, top]))
    keep, paint, touched = _factors(face, sticker, plane, light, view, (size[0] * samples, size[1] * samples))
    mask = F.max_pool2d(touched.float(), samples)[0, 0] > 0
    if face.occluder is not None:
        mask &= ~face.occluder[part]
    return PhotoLayer(part, F.avg_pool2d(keep, samples)[0], F.avg_pool2d(paint, samples)[0], mask)


def _edited(
    face: FaceInPhoto, layer: PhotoLayer
) -> tuple[Float[Tensor, "3 height width"], Bool[Tensor, "height width"]]:
    """The photo with a layer on it, and where that is."""
    picture, mask = face.photo.clone(), torch.zeros_like(face.photo[0], dtype=torch.bool)
    old = picture[:, layer.part[0], layer.part[1]]
    new = face.from_linear(layer.keep * face.to_linear(old) + layer.paint).clamp(0, 1)
    picture[:, layer.part[0], layer.part[1]] = torch.where(layer.mask, new, old)
    mask[layer.part] = layer.mask
    return picture, mask


def _factors(
    face: FaceInPhoto,
    sticker: Sticker,
    plane: Float[Tensor, "vertices 2"],
    light: Float[Tensor, "1 3 9"] | None,
    view: Camera,
    size: tuple[int, int],
) -> tuple[Float[Tensor, "1 3 rows columns"], Float[Tensor, "1 3 rows columns"], Bool[Tensor, "1 1 rows columns"]]:
    """``keep`` and lit ``paint`` at the pixels of a view, and where they change it."""
    triangles = face.template.triangles
    fragments, _ = rasterize(None, clip_from_object(view, face.vertices, size), triangles, size)
    covered = fragments[..., 3] > 0
    factors = torch.ones_like(face.vertices) if light is None else _relighting(face, light)
    values = [plane[None].nan_to_num(_far(sticker)), face.shading(face.sh_coefficients), factors]
    drawn, _ = interpolate(torch.cat(values, -1), fragments, triangles)
    points = drawn[..., :2].masked_fill(~covered[..., None], torch.nan)
    along = int(float(view.scale[0]) * sticker.size_mm) + 1  # pixels
    layer = sticker_layer(sticker, _prepared(face, sticker, along), points)
    shading, factor = drawn[..., 2:].permute(0, 3, 1, 2).split(3, 1)
    # Interpolated ones need not be ones to the last bit.
    factor = torch.ones_like(factor) if light is None else torch.where(covered[:, None], factor, 1)
    touched = (layer.alpha > 0) | (factor != 1).any(1, keepdim=True)
    return layer.keep * factor, layer.paint * shading * factor, touched


def _relighting(face: FaceInPhoto, light: Float[Tensor, "1 3 9"]) -> Float[Tensor, "1 vertices 3"]:
    """New over old shading, fading to 1 where the mesh ends."""
    template = face.template
    factor = (face.shading(light) / face.shading(face.sh_coefficients)).clamp(_LEAST_FACTOR, _MOST_FACTOR)
    rim = max(round(_RIM * template.uv_size[0]), 1)
    inner = erode(template.uv_mask, rim)
    soft = low_pass(inner.float()[None, None], torch.ones_like(inner), rim / 2)
    return 1 + template.surface().to_vertices(soft) * (factor - 1)


def _prepared(face: FaceInPhoto, sticker: Sticker, most: int) -> Float[Tensor, "4 _ _"]:
    """The sticker's picture in linear light, colours multiplied by alpha, at most ``most`` pixels long."""
    colour, alpha = sticker.picture[:3], sticker.picture[3:]
    linear = torch.cat([face.to_linear(colour) * alpha, alpha])
    height, width = linear.shape[1:]
    if max(height, width) <= most:
        return linear
    size = [max(1, round(side * most / max(height, width))) for side in (height, width)]
    return F.interpolate(linear[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def _far(sticker: Sticker) -> float:
    """mm: no point of the sticker, nor of a triangle between it and such a point, but for a sliver."""
    return 1e4 * sticker.size_mm
