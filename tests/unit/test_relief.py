"""Normal maps of a map that is finer than its mesh: a rippled sheet whose vertices the ripples leave alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nl3dmm.assets.ict import texel_tables
from nl3dmm.geometry.uv import fill_outwards, sample_uv_map, uv_grid
from nl3dmm.render import vertex_normals
from nl3dmm.render.relief import bake_relief, texel_normals
from nl3dmm.render.scene import Surface

SIZE, CELLS, SIDE_MM, HEIGHT_MM = (96, 128), 8, 80.0, 0.3
INSIDE = (slice(4, -4), slice(4, -4))


def sheet(mirrored: bool = False, bend: float = 0.0) -> tuple[torch.Tensor, Surface]:
    """A square of 80 mm with a vertex per cell corner; u runs to +x, or to -x."""
    v, u = torch.meshgrid(*[torch.linspace(0, 1, CELLS + 1)] * 2, indexing="ij")
    x, y = (u - 0.5) * SIDE_MM, (0.5 - v) * SIDE_MM
    vertices = torch.stack([x, y, -bend * x * x / SIDE_MM], -1).view(-1, 3)
    index = torch.arange((CELLS + 1) ** 2).view(CELLS + 1, CELLS + 1)
    a, b, c, d = (part.flatten() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    triangles = torch.cat([torch.stack([a, c, d], 1), torch.stack([a, d, b], 1)])
    uv = torch.stack([1 - u if mirrored else u, v], -1).view(-1, 2)
    return vertices, Surface(triangles, uv, SIZE, *texel_tables(uv, triangles, SIZE))


def ripples(uv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Height in mm, zero at every vertex, and its slopes along u and down v, mm per unit."""
    wave = math.pi * CELLS
    u, v = uv.unbind(-1)
    return (
        HEIGHT_MM * torch.sin(wave * u) * torch.sin(wave * v),
        HEIGHT_MM * wave * torch.cos(wave * u) * torch.sin(wave * v),
        HEIGHT_MM * wave * torch.sin(wave * u) * torch.cos(wave * v),
    )


def rippled_map() -> torch.Tensor:
    height = ripples(uv_grid(SIZE))[0].view(SIZE)
    return torch.stack([torch.zeros(SIZE), torch.zeros(SIZE), height])


@pytest.mark.parametrize("mirrored", [False, True])
def test_normals_are_those_of_the_ripples(mirrored):
    vertices, surface = sheet(mirrored)
    normals = texel_normals(vertices, rippled_map(), surface)
    _, along_u, down_v = (part.view(SIZE) / SIDE_MM for part in ripples(uv_grid(SIZE)))
    expected = F.normalize(torch.stack([along_u if mirrored else -along_u, down_v, torch.ones(SIZE)]), dim=0)
    difference = (normals - expected).norm(dim=0)[INSIDE]
    assert float(along_u.abs().max()) > 0.09  # about 5 degrees
    assert float(difference.mean()) < 0.006
    assert float(difference.max()) < 0.03


def test_what_the_mesh_carries_is_not_there_twice():
    vertices, surface = sheet(bend=0.5)
    smooth = texel_normals(vertices, torch.zeros(3, *SIZE), surface)
    carried = surface.to_uv_map(vertices[None])[0]  # linear between the vertices
    again = texel_normals(vertices, carried, surface)
    assert float((again - smooth).norm(dim=0)[INSIDE].mean()) < 0.01
    relief = bake_relief(vertices, smooth, surface).normals
    torch.testing.assert_close(relief, torch.tensor([0.0, 0, 1])[:, None, None].expand_as(relief), atol=1e-5, rtol=0)


def test_what_the_map_holds_beside_the_mesh_does_not_matter():
    """Decoders extrapolate freely there; the rim of the face must not show it."""
    vertices, surface = sheet()
    low, high = torch.tensor([32.5 / 128, 24.5 / 96]), torch.tensor([95.5 / 128, 71.5 / 96])  # centres of texels
    uv = low + surface.uv * (high - low)
    triangle, weights = texel_tables(uv, surface.triangles, SIZE)
    shown = triangle >= 0
    assert bool(shown[[24, 71]].any())
    assert bool(shown[:, [32, 95]].any())
    beside = torch.full((3, *SIZE), 30.0)
    beside[:, 24:72, 32:96] = 0
    surface = Surface(surface.triangles, uv, SIZE, *fill_outwards(triangle, weights))
    normals = texel_normals(vertices, beside, surface)[:, shown]
    torch.testing.assert_close(normals, torch.tensor([0.0, 0, 1])[:, None].expand_as(normals), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_viewer_rebuilds_the_normals(mirrored):
    """As glTF says: ``cross(normal, tangent) * w`` is the second axis, the vertex normal the third."""
    vertices, surface = sheet(mirrored, bend=0.3)
    normals = texel_normals(vertices, rippled_map(), surface)
    relief = bake_relief(vertices, normals, surface)
    assert (relief.tangents[:, 3] == (-1 if mirrored else 1)).all()
    assert (relief.tangents[:, 0] * (-1 if mirrored else 1) > 0.9).all()  # towards +u
    smooth = surface.to_vertices(texel_normals(vertices, torch.zeros(3, *SIZE), surface)[None])[0]
    smooth = F.normalize(smooth, dim=1)
    bitangents = torch.linalg.cross(smooth, relief.tangents[:, :3]) * relief.tangents[:, 3:]
    assert (bitangents[:, 1] > 0.9).all()  # up the rows
    axes = surface.to_uv_map(torch.cat([relief.tangents[:, :3], bitangents, smooth], 1)[None])[0].unflatten(0, (3, 3))
    rebuilt = F.normalize((axes * relief.normals[:, None]).sum(0), dim=0)
    assert float((rebuilt - normals).norm(dim=0)[INSIDE].max()) < 0.02


def test_tangents_exist_where_uv_has_no_area():
    vertices, surface = sheet()
    squeezed = replace(surface, uv=torch.full_like(surface.uv, 0.5))
    relief = bake_relief(vertices, torch.tensor([0.0, 0, 1])[:, None, None].expand(3, *SIZE), squeezed)
    assert torch.allclose(relief.tangents[:, :3].norm(dim=1), torch.ones(len(vertices)))
    assert relief.normals.isfinite().all()


def test_a_vertex_per_texel_has_the_normals_of_its_mesh(template):
    vertices = template.vertices
    normals = texel_normals(vertices, torch.randn(3, *template.uv_size), template.surface())
    expected = vertex_normals(vertices[None], template.triangles)
    torch.testing.assert_close(sample_uv_map(normals[None], template.uv), expected, atol=1e-5, rtol=0)
