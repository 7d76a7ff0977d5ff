"""Pictures of what a model does, one face per column."""

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.losses.pixels import pixel_distance
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.render.scene import composite, render_geometry
from nl3dmm.types import FaceBatch

_GAP = 2  # px between pictures
_ERROR_SCALE = 0.4  # colour distance shown at the end of the error scale


def stack_rows(rows: list[Float[Tensor, "columns 3 _ _"]]) -> Float[Tensor, "3 height width"]:
    """One picture from rows of equally many pictures, on white."""
    width = max(row.shape[-1] for row in rows)
    lines = []
    for row in rows:
        pad = width - row.shape[-1]
        padded = torch.nn.functional.pad(row, (pad // 2, pad - pad // 2 + _GAP, 0, _GAP), value=1.0)
        lines.append(torch.cat(list(padded), dim=-1))
    return torch.cat(lines, dim=-2).clamp(0, 1)


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
