"""UV maps <-> vertices, and filters on maps.

Maps are ``(batch, channels, rows, columns)``; conventions in ``docs/conventions.md``.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def uv_grid(uv_size: tuple[int, int], device: torch.device | None = None) -> Float[Tensor, "texels 2"]:
    """UV coordinates of all texel centres, row-major."""
    height, width = uv_size
    v = (torch.arange(height, device=device) + 0.5) / height
    u = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([u.repeat(height), v.repeat_interleave(width)], -1)


def sample_uv_map(
    uv_map: Float[Tensor, "batch channels uv_height uv_width"], uv: Float[Tensor, "vertices 2"]
) -> Float[Tensor, "batch vertices channels"]:
    """Bilinear values at vertices; coordinates beyond the outermost texel centres are clamped to them."""
    grid = (2 * uv - 1).expand(uv_map.shape[0], 1, *uv.shape)
    sampled = F.grid_sample(uv_map, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def vertices_from_uv_grid(
    uv_map: Float[Tensor, "batch channels uv_height uv_width"],
) -> Float[Tensor, "batch vertices channels"]:
    """``sample_uv_map`` for a template whose vertex k is texel k in row-major order: a reshape."""
    return uv_map.flatten(2).transpose(1, 2)


def uv_map_from_vertices(
    values: Float[Tensor, "batch vertices channels"],
    triangles: Int[Tensor, "triangles 3"],
    texel_triangle: Int[Tensor, "uv_height uv_width"],
    texel_barycentric: Float[Tensor, "uv_height uv_width 3"],
) -> Float[Tensor, "batch channels uv_height uv_width"]:
    """Barycentric interpolation of vertex values at texel centres; 0 where ``texel_triangle`` is -1."""
    weights = (texel_barycentric * (texel_triangle >= 0)[..., None]).to(values.dtype).flatten(0, 1)
    corners = triangles[texel_triangle.clamp_min(0)].flatten(0, 1)  # (texels, 3)
    first, second, third = (values.index_select(1, corners[:, k]) * weights[:, k, None] for k in range(3))
    texels = first + second + third
    return texels.transpose(1, 2).unflatten(2, tuple(texel_triangle.shape))


def mirror_uv_map(
    uv_map: Float[Tensor, "batch channels uv_height uv_width"],
) -> Float[Tensor, "batch channels uv_height uv_width"]:
    """Values of the mirrored side: column c <-> W - 1 - c. Signs of vector components are the caller's business."""
    return uv_map.flip(-1)


def erode(mask: Bool[Tensor, "uv_height uv_width"], steps: int = 1) -> Bool[Tensor, "uv_height uv_width"]:
    """Shrink a mask by ``steps`` texels (8-neighbourhood); the outside of the map counts as False."""
    inverse = F.pad((~mask).float()[None, None], (steps,) * 4, value=1.0)
    return F.max_pool2d(inverse, 2 * steps + 1, stride=1)[0, 0] == 0


def fill_outwards(
    texel_triangle: Int[Tensor, "uv_height uv_width"], texel_barycentric: Float[Tensor, "uv_height uv_width 3"]
) -> tuple[Int[Tensor, "uv_height uv_width"], Float[Tensor, "uv_height uv_width 3"]]:
    """Texel tables in which empty texels repeat a nearest covered one; unchanged when nothing is covered."""
    height, width = texel_triangle.shape
    source = torch.arange(height * width, device=texel_triangle.device).view(height, width)
    source = torch.where(texel_triangle >= 0, source, -1)
    for _ in range(max(height, width)):
        if bool((source >= 0).all()) or bool((source < 0).all()):
            break
        padded = F.pad(source, (1, 1, 1, 1), value=-1)
        for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
            neighbour = padded[row : row + height, column : column + width]
            source = torch.where(source >= 0, source, neighbour)
    index = source.clamp_min(0)
    return texel_triangle.flatten()[index], texel_barycentric.flatten(0, 1)[index]


def low_pass(
    uv_map: Float[Tensor, "batch channels uv_height uv_width"],
    mask: Bool[Tensor, "uv_height uv_width"],
    sigma: float,
) -> Float[Tensor, "batch channels uv_height uv_width"]:
    """Gaussian blur of ``sigma`` texels, out to three of them, in which only the mask's texels count."""
    weight = mask.to(uv_map.dtype)[None, None]
    return _blur(uv_map * weight, sigma) / _blur(weight, sigma).clamp_min(1e-6)


def _blur(values: Float[Tensor, "batch channels uv_height uv_width"], sigma: float) -> Tensor:
    """The outside of the map counts as 0."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(values.shape[1], 1, -1)
    columns = F.conv2d(values, kernel[:, :, :, None], padding=(radius, 0), groups=values.shape[1])
    return F.conv2d(columns, kernel[:, :, None], padding=(0, radius), groups=values.shape[1])
