"""Mesh -> image: differentiable rasterization, interpolation, texturing and antialiasing."""

from nl3dmm.render._backends import backend_for, backends, default_device, pick_device, warmup
from nl3dmm.render.api import antialias, interpolate, rasterize, texture
from nl3dmm.render.mipmaps import texture_construct_mip
from nl3dmm.render.normals import vertex_normals
from nl3dmm.render.shading import light_albedo, shade
from nl3dmm.render.topology import antialias_construct_topology_hash

__all__ = [
    "antialias",
    "antialias_construct_topology_hash",
    "backend_for",
    "backends",
    "default_device",
    "interpolate",
    "light_albedo",
    "pick_device",
    "rasterize",
    "shade",
    "texture",
    "texture_construct_mip",
    "vertex_normals",
    "warmup",
]
