"""The operations on CPU: numba kernels, one image per task."""

import torch

from nl3dmm.render._numba.interpolation import interpolate
from nl3dmm.render._numba.rasterization import rasterize
from nl3dmm.render._numba.texturing import texture

__all__ = ["interpolate", "rasterize", "texture", "warmup"]


def warmup(dtype: torch.dtype) -> None:
    """Run each kernel once on a tiny scene."""
    pos = torch.tensor([[[-1, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]], dtype=dtype, requires_grad=True)
    tri = torch.tensor([[0, 1, 2]])
    rast = rasterize(None, pos, tri, 4, 4)
    uv = interpolate(pos[..., :2], rast, tri)
    tex = torch.zeros(1, 2, 2, 1, dtype=dtype, requires_grad=True)
    texture(tex, uv, "linear", "clamp", None).sum().backward()
