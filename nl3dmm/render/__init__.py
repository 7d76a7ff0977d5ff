"""Mesh -> image: differentiable rasterization, interpolation and texturing."""

from nl3dmm.render._backends import backend_for, backends, default_device, warmup
from nl3dmm.render.api import interpolate, rasterize, texture

__all__ = ["backend_for", "backends", "default_device", "interpolate", "rasterize", "texture", "warmup"]
