"""The operations in plain torch with autograd: fallback on any device and oracle of the kernels' gradients."""

from nl3dmm.render._torch.antialiasing import antialias
from nl3dmm.render._torch.interpolation import interpolate
from nl3dmm.render._torch.normals import vertex_normals
from nl3dmm.render._torch.rasterization import rasterize
from nl3dmm.render._torch.shading import light_albedo, shade
from nl3dmm.render._torch.texturing import texture

__all__ = ["antialias", "interpolate", "light_albedo", "rasterize", "shade", "texture", "vertex_normals"]
