"""The operations on CPU: numba kernels, one image per task."""

import torch

from nl3dmm.render._numba.antialiasing import antialias
from nl3dmm.render._numba.edges import turning_edges
from nl3dmm.render._numba.interpolation import interpolate
from nl3dmm.render._numba.normals import vertex_normals
from nl3dmm.render._numba.rasterization import rasterize
from nl3dmm.render._numba.shading import light_albedo, shade
from nl3dmm.render._numba.texturing import texture
from nl3dmm.render.topology import antialias_construct_topology_hash

__all__ = ["antialias", "interpolate", "light_albedo", "rasterize", "shade", "texture", "vertex_normals", "warmup"]


def warmup(dtype: torch.dtype) -> None:
    """Run each kernel of training and fitting once on a tiny scene; image-space derivatives compile when asked for."""
    pos = torch.tensor([[[-1, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]], dtype=dtype, requires_grad=True)
    tri = torch.tensor([[0, 1, 2]])
    vertex_normals(pos[..., :3], tri).sum().backward()
    shading = shade(pos.repeat(1, 2, 1)[:, :4, :3], pos.new_ones(1, 3, 9).requires_grad_(), 0.0)
    albedo = pos.new_ones(1, 2, 3, 2, 2).permute(0, 3, 4, 1, 2)  # as the model's maps lie in memory
    light_albedo(albedo, shading.unflatten(1, (2, 2)), "srgb").sum().backward()
    rast, _ = rasterize(None, pos, tri, 4, 4, None, None)
    uv, _ = interpolate(pos[..., :2], rast, tri, None, ())
    tex = torch.zeros(1, 2, 2, 1, dtype=dtype, requires_grad=True)
    color = texture([tex], uv, None, None, "linear", "clamp", None)
    antialias(color, rast, pos, tri, antialias_construct_topology_hash(tri), 1.0).sum().backward()
    turning_edges(pos.detach(), tri, tri.new_zeros(1, 2), tri.new_zeros(1, dtype=torch.int8), 1e-6)
