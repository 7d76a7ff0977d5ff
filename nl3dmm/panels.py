"""Pictures of what a model does: training panels, one face per column, and what figures are made of."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.data.crop import Crop
from nl3dmm.geometry.camera import project, rotation_from_euler, weak_perspective, zoom
from nl3dmm.geometry.lighting import directional_light, light_albedo, white_light
from nl3dmm.losses.pixels import pixel_distance
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.render.scene import Rendering, composite, render_geometry, render_textures
from nl3dmm.types import Camera, FaceBatch

_GAP = 2  # px between pictures
_FIT_SIZE = 256  # px of each picture of a fit
_ERROR_SCALE = 0.4  # colour distance shown at the end of the error scale
_SUPER_SAMPLING = 2
_FILL = 0.94  # of a picture that shows a shape alone
_GREY = 0.75
_GLIMPSE = 16  # px of a picture whose shading alone is wanted


def stack_rows(rows: list[Float[Tensor, "columns 3 _ _"]]) -> Float[Tensor, "3 height width"]:
    """One picture from rows of equally many pictures, on white."""
    width = max(row.shape[-1] for row in rows)
    lines = []
    for row in rows:
        pad = width - row.shape[-1]
        padded = torch.nn.functional.pad(row, (pad // 2, pad - pad // 2 + _GAP, 0, _GAP), value=1.0)
        lines.append(torch.cat(list(padded), dim=-1))
    return torch.cat(lines, dim=-2).clamp(0, 1)


def on_white(
    picture: Float[Tensor, "batch 3 height width"], share: Float[Tensor, "*#shape"]
) -> Float[Tensor, "batch 3 height width"]:
    """The picture where ``share`` is 1, white where it is 0."""
    return picture.clamp(0, 1) * share + (1 - share)


def error_picture(
    image: Float[Tensor, "batch 3 height width"], target: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch 3 height width"]:
    """Colour distance from black over red to white."""
    level = (pixel_distance(image, target) / _ERROR_SCALE).clamp(0, 1)[:, None]
    return torch.cat([(3 * level).clamp(0, 1), (3 * level - 1).clamp(0, 1), (3 * level - 2).clamp(0, 1)], 1)


@torch.no_grad()
def model_panel(
    model: FaceModel, batch: FaceBatch, face: Face, geometry: Geometry | None = None
) -> Float[Tensor, "3 height width"]:
    """Rows: input, (S~,A~), (S~,A), (S,A~), (S,A), error; albedo truth, proxy, final; clay truth, proxy, final.

    Rows of truth appear where the batch knows it.
    """
    geometry = geometry or model.decode(face.latents)
    size = (batch.image.shape[-2], batch.image.shape[-1])
    drawn = model.render_four(face, geometry, size)
    over = [
        composite(drawn.proxy_proxy, batch.image, drawn.proxy_mask),
        composite(drawn.proxy_final, batch.image, drawn.proxy_mask),
        composite(drawn.final_proxy, batch.image, drawn.final_mask),
        composite(drawn.final_final, batch.image, drawn.final_mask),
    ]
    rows = [batch.image, *over, error_picture(over[3].clamp(0, 1), batch.image)]
    mask = model.template.uv_mask
    albedos = [geometry.maps.albedo_proxy, geometry.maps.albedo_final]
    albedos = albedos if batch.albedo is None else [batch.albedo, *albedos]
    rows += [torch.where(mask, albedo, torch.ones_like(albedo)) for albedo in albedos]
    if batch.vertices is not None and batch.camera is not None:
        rows.append(render_geometry(batch.vertices, batch.camera, model.surface, size))
    for vertices in (geometry.vertices_proxy, geometry.vertices_final):
        rows.append(render_geometry(vertices, face.camera, model.surface, size))
    return stack_rows(rows)


@torch.no_grad()
def fit_panel(
    model: FaceModel, face: Face, geometry: Geometry, photo: Float[Tensor, "3 _ _"], crop: Crop
) -> Float[Tensor, "3 height width"]:
    """Photo crop, overlay, clay, and below error, albedo proxy, albedo final.

    Args:
        face: its camera projects to pixels of the crop.
    """
    size, factor = (_FIT_SIZE, _FIT_SIZE), _FIT_SIZE / crop.size
    picture = replace(crop, size=_FIT_SIZE, scale=crop.scale * factor).image(photo)[None]
    face = replace(face, camera=zoom(face.camera, factor))
    drawn = model.render_final(face, geometry, size)
    over = composite(drawn.images[:, 0].clamp(0, 1), picture, drawn.mask)
    clay = render_geometry(geometry.vertices_final, face.camera, model.surface, size)
    maps = (geometry.maps.albedo_proxy, geometry.maps.albedo_final)
    masked = [torch.where(model.template.uv_mask, albedo, torch.ones_like(albedo)) for albedo in maps]
    albedos = [F.interpolate(albedo, size, mode="bilinear") for albedo in masked]
    return stack_rows([torch.cat([picture, over, clay]), torch.cat([error_picture(over, picture), *albedos])])


@torch.no_grad()
def drawn_over(
    model: FaceModel,
    face: Face,
    vertices: Float[Tensor, "batch vertices 3"],
    albedos: Float[Tensor, "batch textures 3 uv_height uv_width"],
    image: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, "batch textures 3 height width"]:
    """Meshes with several albedos on the images, with smooth edges."""
    height, width = (side * _SUPER_SAMPLING for side in image.shape[-2:])
    drawn = model.render(replace(face, camera=zoom(face.camera, _SUPER_SAMPLING)), vertices, albedos, (height, width))
    colour = F.avg_pool2d(drawn.images.clamp(0, 1).flatten(1, 2), _SUPER_SAMPLING).unflatten(1, (-1, 3))
    covered = F.avg_pool2d(drawn.mask[:, None].to(image.dtype), _SUPER_SAMPLING)
    return colour + (image * (1 - covered))[:, None]


@torch.no_grad()
def clay(
    model: FaceModel, vertices: Float[Tensor, "batch vertices 3"], yaw: Float[Tensor, " batch"], side: int
) -> Float[Tensor, "batch 3 {side} {side}"]:
    """Grey pictures on white of shapes turned by ``yaw`` degrees, in the frame of the mean face."""
    drawn = _sculpture(model, vertices, yaw, side * _SUPER_SAMPLING)
    picture = on_white(drawn.images[:, 0], drawn.mask[:, None].to(vertices.dtype))
    return F.avg_pool2d(picture, _SUPER_SAMPLING)


@torch.no_grad()
def clay_map(
    model: FaceModel, vertices: Float[Tensor, "batch vertices 3"]
) -> Float[Tensor, "batch 3 uv_height uv_width"]:
    """The shading of ``clay`` from the front, in UV space."""
    shading = _sculpture(model, vertices, vertices.new_zeros(len(vertices)), _GLIMPSE).shading
    return light_albedo(torch.tensor(_GREY), model.surface.to_uv_map(shading), "srgb").clamp(0, 1)


def _sculpture(model: FaceModel, vertices: Tensor, yaw: Tensor, size: int) -> Rendering:
    """Of even grey, lit from the viewer's upper left."""
    towards = F.normalize(vertices.new_tensor([-0.6, 0.7, 0.8]), dim=-1)
    light = white_light(1, 0.22).to(vertices) + directional_light(towards, vertices.new_full((3,), 0.75))
    grey = vertices.new_full((1, 1, 3, *model.surface.uv_size), _GREY)
    lights = light.expand(len(vertices), -1, -1)
    return render_textures(vertices, grey, _view(model, yaw, size), lights, model.surface, (size, size), "srgb")


def _view(model: FaceModel, yaw: Float[Tensor, " batch"], side: int) -> Camera:
    """Cameras that show the mean face, upright and turned (degrees), in the middle of square pictures."""
    points = model.template.vertices[model.template.triangles.unique()].expand(len(yaw), -1, -1)
    zero = torch.zeros_like(yaw)
    rotation = rotation_from_euler(zero, torch.deg2rad(yaw), zero)
    scale = _FILL * side / (points[0].amax(0) - points[0].amin(0))[:2].max().expand(len(yaw))
    origin = scale.new_zeros(len(yaw), 2)
    pixels, _ = project(weak_perspective(rotation, origin, scale, origin), points)
    return weak_perspective(rotation, origin, scale, side / 2 - (pixels.amin(1) + pixels.amax(1)) / 2)
