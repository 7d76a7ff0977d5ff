"""Which triangle is seen at each pixel, in plain torch operations: fallback and oracle of ``_numba/visibility.py``.

Corners are rounded to 1/16 pixel and coverage is decided by integer edge functions, so meshes are watertight and any
two implementations agree exactly. Coordinates have the centre of pixel (0, 0) at the origin: centres are multiples
of 16. A sample on an edge belongs to the left and the lower-row triangle; equal depths to the later triangle.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render._rules import DEPTH_MAX, DEPTH_ROUNDING, LARGEST

TRIANGLE_BITS = 31  # of the 63-bit key: depth first, then the later triangle
LAST_TRIANGLE = 2**TRIANGLE_BITS - 2
NOTHING = 2**63 - 1
SAMPLES_PER_STEP = 1 << 20  # bounds the memory of one step to about 200 MB


def visible_triangles(
    pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], height: int, width: int
) -> Int[Tensor, "batch {height} {width}"]:
    """Index of the nearest triangle at each pixel, -1 where there is none."""
    corners, image, triangle = _clipped(pos, tri)
    points = _snap(corners, height, width)
    corner = points[..., :2]
    area = _cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    points = torch.where((area < 0)[:, None, None], points[:, [0, 2, 1]], points)
    first = (points.amin(1)[:, :2] + 15 >> 4).clamp(min=0)
    last = (points.amax(1)[:, :2] >> 4).minimum(points.new_tensor([width - 1, height - 1]))
    box = (last - first + 1).clamp(min=0)
    samples = box.prod(1) * (area != 0)
    keep = samples > 0
    points, area, image, triangle = points[keep], area[keep].abs(), image[keep], triangle[keep]
    first, box_width, samples = first[keep], box[keep, 0], samples[keep]

    nearest = torch.full((pos.shape[0] * height * width,), NOTHING, device=pos.device)
    for step in _steps(samples):
        item = torch.repeat_interleave(torch.arange(step.start, step.stop, device=pos.device), samples[step])
        start = samples[step].cumsum(0) - samples[step]
        number = torch.arange(len(item), device=pos.device) - start[item - step.start]
        column = first[item, 0] + number % box_width[item]
        row = first[item, 1] + number // box_width[item]
        covered, depth = _sample(points[item], area[item], torch.stack([column, row], -1) * 16)
        key = (depth << TRIANGLE_BITS) + (LAST_TRIANGLE - triangle[item])
        pixel = (image[item] * height + row) * width + column
        nearest.scatter_reduce_(0, pixel[covered], key[covered], "amin")
    ids = LAST_TRIANGLE - (nearest & (2**TRIANGLE_BITS - 1))
    return torch.where(nearest == NOTHING, -1, ids).view(-1, height, width)


def _steps(samples: Int[Tensor, " triangles"]) -> list[slice]:
    """Runs of consecutive triangles with about SAMPLES_PER_STEP samples each."""
    step = (samples.cumsum(0) - samples) // SAMPLES_PER_STEP
    _, sizes = torch.unique_consecutive(step, return_counts=True)
    ends = sizes.cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def _sample(
    points: Int[Tensor, "samples 3 3"], area: Int[Tensor, " samples"], centre: Int[Tensor, "samples 2"]
) -> tuple[Bool[Tensor, " samples"], Int[Tensor, " samples"]]:
    """Coverage and fixed-point depth of counter-clockwise triangles at pixel centres."""
    start, end = points[:, [1, 2, 0], :2], points[:, [2, 0, 1], :2]  # edge i is opposite to corner i
    direction = end - start
    edge = _cross(direction, centre[:, None] - start)
    own = (direction[..., 1] < 0) | ((direction[..., 1] == 0) & (direction[..., 0] > 0))
    covered = ((edge > 0) | ((edge == 0) & own)).all(-1)
    z = points[..., 2].double()
    gradient = (z[:, 1:] - z[:, :1]) / area[:, None]
    depth = z[:, 0] + (edge[:, 1] * gradient[:, 0] + edge[:, 2] * gradient[:, 1]) + DEPTH_ROUNDING
    return covered, depth.clamp(0, DEPTH_MAX).long()


def _cross(a: Int[Tensor, "*batch 2"], b: Int[Tensor, "*batch 2"]) -> Int[Tensor, "*batch"]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _snap(corners: Float[Tensor, "*batch 4"], height: int, width: int) -> Int[Tensor, "*batch 3"]:
    """Clip space -> column, row in 1/16 pixel (nearest, ties to even) and 32-bit depth."""
    ndc = (corners[..., :3] / corners[..., 3:]).clamp(-1, 1)
    half = ndc.new_tensor([8 * width, 8 * height])
    pixel = torch.round(ndc[..., :2] * half).long() + half.long() - 8
    depth = torch.round((ndc[..., 2:].double() * 0.5 + 0.5) * DEPTH_MAX).long()
    return torch.cat([pixel, depth], -1)


def _clipped(
    pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"]
) -> tuple[Float[Tensor, "parts 3 4"], Int[Tensor, " parts"], Int[Tensor, " parts"]]:
    """The parts of all triangles that lie in the view volume, with their image and triangle index."""
    valid = ((tri >= 0) & (tri < pos.shape[1])).all(-1).nonzero()[:, 0]
    usable = (pos.abs() <= LARGEST).all(-1) & (pos != 0).any(-1)
    outside = torch.stack([sign * pos[..., :3] > pos[..., 3:] for sign in (-1, 1)], -1).flatten(-2)  # x<-w, x>w, y...
    tri = tri[valid].long()
    usable, outside = usable[:, tri].all(-1), outside[:, tri]  # (batch, valid), (batch, valid, 3, 6)
    crossing = outside.any(-1).any(-1)
    hidden = outside.all(-2).any(-1)
    image, index = (usable & ~crossing).nonzero(as_tuple=True)
    cut_image, cut_index = (usable & crossing & ~hidden).nonzero(as_tuple=True)
    parts, polygon = _clip(pos[cut_image[:, None], tri[cut_index]])
    corners = torch.cat([pos[image[:, None], tri[index]], parts])
    return corners, torch.cat([image, cut_image[polygon]]), valid[torch.cat([index, cut_index[polygon]])]


def _clip(polygon: Float[Tensor, "polygons 3 4"]) -> tuple[Float[Tensor, "parts 3 4"], Int[Tensor, " parts"]]:
    """Cut triangles at the six planes; return fans of triangles and the polygon each came from."""
    exists = torch.ones(polygon.shape[:2], dtype=torch.bool, device=polygon.device)
    for plane in range(6):
        count = exists.sum(1, keepdim=True).clamp(min=1)
        next_corner = (torch.arange(polygon.shape[1], device=polygon.device) + 1) % count
        here, there = polygon, polygon.gather(1, next_corner[..., None].expand(-1, -1, 4))
        axis, sign = plane >> 1, 1 - 2 * (plane & 1)
        here_distance = here[..., 3] + sign * here[..., axis]
        there_distance = there[..., 3] + sign * there[..., axis]
        leaving = (here_distance >= 0) & (there_distance < 0)
        entering = (here_distance < 0) & (there_distance >= 0)
        # always from inside to outside: both triangles of a shared edge cut it at the same point
        fraction = torch.where(entering, there_distance, here_distance) / (here_distance - there_distance).abs()
        start, end = torch.where(entering[..., None], there, here), torch.where(entering[..., None], here, there)
        cut = start + fraction[..., None] * (end - start)
        polygon = torch.stack([here, cut], 2).flatten(1, 2)
        exists = torch.stack([exists & (here_distance >= 0), exists & (leaving | entering)], 2).flatten(1)
        polygon, exists = _compact(polygon, exists)
    fan = torch.arange(1, max(polygon.shape[1] - 1, 1), device=polygon.device)
    fan = torch.stack([torch.zeros_like(fan), fan, fan + 1], -1)
    visible = ((polygon[..., 3] > 0) | ~exists).all(1, keepdim=True)
    drawn = exists[:, fan[:, 2]] & visible
    source, part = drawn.nonzero(as_tuple=True)
    return polygon[source[:, None], fan[part]], source


def _compact(
    polygon: Float[Tensor, "polygons slots 4"], exists: Bool[Tensor, "polygons slots"]
) -> tuple[Float[Tensor, "polygons corners 4"], Bool[Tensor, "polygons corners"]]:
    """Move the existing corners to the front, in order, and drop the columns that no polygon needs."""
    order = torch.argsort((~exists).byte(), dim=1, stable=True)
    exists = exists.gather(1, order)
    corners = int(exists.any(0).sum())
    order = order[:, :corners, None].expand(-1, -1, 4)
    return polygon.gather(1, order), exists[:, :corners]
