"""Normal maps: what a shape map knows that its mesh is too coarse to carry."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.geometry.uv import uv_grid
from nl3dmm.render.normals import vertex_normals
from nl3dmm.render.scene import Surface

_TINY = 1e-12  # below any length (mm), area (mm^2) or UV area that means something


@dataclass(frozen=True)
class Relief:
    """A tangent-space normal map and its vertex tangents, both as glTF wants them."""

    normals: Float[Tensor, "3 uv_height uv_width"]  # unit: along +u, up the rows, out of the surface
    tangents: Float[Tensor, "vertices 4"]  # unit, towards +u; the sign of the bitangent ``cross(normal, tangent)``


def texel_normals(
    vertices: Float[Tensor, "vertices 3"], shape_map: Float[Tensor, "3 uv_height uv_width"], surface: Surface
) -> Float[Tensor, "3 uv_height uv_width"]:
    """Unit normals in the object frame: those of the mesh, bent by the heights of the map between its vertices.

    Args:
        shape_map: mm, offsets from the mean; the mesh has them sampled at its vertices.
    """
    mesh_normals = surface.to_uv_map(vertex_normals(vertices[None], surface.triangles))[0]
    smooth = F.normalize(mesh_normals, dim=0)
    if surface.texel_triangle is None:
        return smooth  # a vertex per texel: nothing lies between
    carried = surface.to_uv_map(surface.to_vertices(shape_map[None]))[0]
    height = torch.where(_shown(surface), ((shape_map - carried) * smooth).sum(0), 0)
    along_u, along_v = (edge[surface.texel_triangle] for edge in _directions(vertices, surface))
    across = torch.linalg.cross(along_u, along_v)
    area = across.norm(dim=-1, keepdim=True)
    out = across / area.clamp_min(_TINY)
    down, right = (slope[..., None] for slope in torch.gradient(height))
    # The gradient on the surface: its products with along_u and along_v are the differences between texels.
    rows, columns = surface.uv_size
    slope = right * columns * torch.linalg.cross(along_v, out) + down * rows * torch.linalg.cross(out, along_u)
    slope = torch.where(area > _TINY, slope / area.clamp_min(_TINY), 0)
    return F.normalize(smooth - slope.permute(2, 0, 1), dim=0)


def bake_relief(
    vertices: Float[Tensor, "vertices 3"], normals: Float[Tensor, "3 uv_height uv_width"], surface: Surface
) -> Relief:
    """Texel normals in the frames that a viewer interpolates from the mesh.

    Args:
        normals: of ``texel_normals``.
    """
    at_vertices = vertex_normals(vertices[None], surface.triangles)[0]
    along_u, along_v = _directions(vertices, surface)
    tangents = F.normalize(_without(_at_vertices(along_u, surface, len(vertices)), at_vertices), dim=1)
    tangents = torch.where(tangents.norm(dim=1, keepdim=True) > 0.5, tangents, _any_across(at_vertices))
    up = -_at_vertices(along_v, surface, len(vertices))  # v runs down the rows
    upward = (torch.linalg.cross(at_vertices, tangents) * up).sum(1, keepdim=True)
    signs = torch.where(upward < 0, -1.0, 1.0)
    frames = torch.cat([tangents, torch.linalg.cross(at_vertices, tangents) * signs, at_vertices], dim=1)
    along, upwards, out = surface.to_uv_map(frames[None])[0].unflatten(0, (3, 3))
    in_frame = torch.stack([(normals * F.normalize(axis, dim=0)).sum(0) for axis in (along, upwards, out)])
    return Relief(F.normalize(in_frame, dim=0), torch.cat([tangents, signs], dim=1))


def _shown(surface: Surface) -> Bool[Tensor, "uv_height uv_width"]:
    """Texels whose centres lie on the triangle that they name; the others repeat a neighbour."""
    named = surface.to_uv_map(surface.uv[None])[0].flatten(1).T
    texels = (named - uv_grid(surface.uv_size, named.device)) * named.new_tensor(surface.uv_size[::-1])
    return (texels.abs().amax(1) < 0.01).view(surface.uv_size)


def _directions(
    vertices: Float[Tensor, "vertices 3"], surface: Surface
) -> tuple[Float[Tensor, "triangles 3"], Float[Tensor, "triangles 3"]]:
    """mm on each triangle per unit of u and of v; zero where a triangle has no area in UV space."""
    points, uv = vertices[surface.triangles], surface.uv[surface.triangles]
    first, second = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    (u1, v1), (u2, v2) = (uv[:, 1] - uv[:, 0]).unbind(1), (uv[:, 2] - uv[:, 0]).unbind(1)
    area = u1 * v2 - u2 * v1
    scale = torch.where(area.abs() > _TINY, 1 / torch.where(area.abs() > _TINY, area, 1), 0)[:, None]
    return (v2[:, None] * first - v1[:, None] * second) * scale, (u1[:, None] * second - u2[:, None] * first) * scale


def _at_vertices(values: Float[Tensor, "triangles 3"], surface: Surface, vertices: int) -> Float[Tensor, "vertices 3"]:
    """Sums of unit directions over the triangles around each vertex."""
    unit = F.normalize(values, dim=1).repeat_interleave(3, dim=0)
    return values.new_zeros(vertices, 3).index_add(0, surface.triangles.flatten(), unit)


def _without(vectors: Float[Tensor, "count 3"], normals: Float[Tensor, "count 3"]) -> Float[Tensor, "count 3"]:
    """The parts that lie in the planes of unit normals."""
    return vectors - (vectors * normals).sum(1, keepdim=True) * normals


def _any_across(normals: Float[Tensor, "count 3"]) -> Float[Tensor, "count 3"]:
    """Unit vectors at right angles to the normals, near +x where they can be."""
    x, y = normals.new_tensor([1, 0, 0]), normals.new_tensor([0, 1, 0])
    return F.normalize(_without(torch.where(normals[:, :1].abs() > 0.9, y, x), normals), dim=1)
