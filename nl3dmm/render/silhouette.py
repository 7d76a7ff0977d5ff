"""Edge-walk antialiasing: silhouettes are found in the mesh and walked along, not guessed from the triangles seen.

A silhouette edge is crossed by rows and columns of pixel centres; each crossing lies between two neighbouring centres.
It acts where the surface inside of it is seen at one of them (the inner pixel) and something behind it, or nothing, at
the other (the outer pixel). How far the surface reaches, from 0 at the inner centre to 1 at the outer, then decides
the blend: beyond 1/2 it covers a part of the outer pixel, short of that it leaves a part of the inner one.

Finding crossings is discrete and carries no gradient. What is continuous is a function of the short list found: plain
torch operations, on any device.
"""

from dataclasses import dataclass, replace
from importlib import import_module

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nl3dmm.render._backends import backend_for
from nl3dmm.render._rules import COVERAGE_TOLERANCE
from nl3dmm.render.topology import Topology
from nl3dmm.types import TensorFields

DEPTH_TOLERANCE = 1e-6  # z / w, rounding of float32
W_MIN = 1e-6  # vertices nearer than this to the viewer's plane are not projected

_edges = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class _Edges(TensorFields):
    """Each edge of a mesh once."""

    triangles: Int[Tensor, "edges 2"]  # the second means nothing at a border
    winding: Int[Tensor, " edges"]  # int8: 1 = both triangles are wound alike, -1 = not, 0 = border
    corners: Int[Tensor, "edges 2"]  # of each triangle, the one that is not on the edge


@dataclass(frozen=True)
class _Silhouette(TensorFields):
    """Edges beside which the surface lies on one side only, of all images."""

    image: Int[Tensor, " segments"]
    ends: Int[Tensor, "segments 2"]
    inner: Int[Tensor, " segments"]  # a vertex on the side of the surface
    is_open: Bool[Tensor, " segments"]  # the surface ends here, else it turns away from the viewer


@dataclass(frozen=True)
class _Crossings(TensorFields):
    """Where edges cross lines of pixel centres. Along a line runs u, across it v: x and y in rows, else y and x."""

    segment: Int[Tensor, " crossings"]
    vertical: Bool[Tensor, " crossings"]  # the line is a column
    line: Int[Tensor, " crossings"]  # row or column
    u: Float[Tensor, " crossings"]  # px
    depth: Float[Tensor, " crossings"]  # z / w
    position: Float[Tensor, " crossings"]  # along the edge, from 0 to 1
    slope: Float[Tensor, " crossings"]  # du/dv of the edge
    rightward: Bool[Tensor, " crossings"]  # the outer side is that of larger u
    margin: Float[Tensor, " crossings"]  # z / w by which the outer pixel must at least lie behind


@dataclass(frozen=True)
class _Pairs(TensorFields):
    """Crossings with the two pixels that they lie between, as indices into all pixels of all images."""

    crossing: Int[Tensor, " pairs"]
    inner: Int[Tensor, " pairs"]
    outer: Int[Tensor, " pairs"]
    reach: Float[Tensor, " pairs"]  # of the surface, from 0 at the inner to 1 at the outer pixel's centre


def antialias_edges(
    color: Float[Tensor, "batch height width channels"],
    rast: Float[Tensor, "batch height width 4"],
    pos: Float[Tensor, "#batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology: Topology,
    pos_gradient_boost: float,
) -> Float[Tensor, "batch height width channels"]:
    """Blend colours across silhouettes; gradients to ``color`` and to x, y, w of ``pos`` (first derivatives only).

    Of several crossings between the same two pixels the outermost counts. It blends them if its edge runs rather across
    than along their line, so that no part of an outline counts twice.
    Edges with an end that is not finite or not before the viewer (``w > 1e-6``) are skipped.
    """
    pos = pos[None] if pos.ndim == 2 else pos
    batch, height, width = color.shape[:3]
    if 0 in (color.numel(), pos.numel(), tri.numel()):
        return color.clone()
    with torch.no_grad():
        silhouette = _silhouette(pos.detach(), tri.long(), topology, batch)
        crossings = _walk(pos.detach(), silhouette, height, width)
        pairs = _outermost(_seen(crossings, silhouette.image, rast.detach()), batch * height * width)
        pairs = pairs[_acts(crossings[pairs.crossing]).nonzero()[:, 0]]
        crossings = crossings[pairs.crossing]
        segments = silhouette[crossings.segment]
    ends = pos[segments.image[:, None] % len(pos), segments.ends]
    u = _crossing(ends, crossings, pos_gradient_boost, height, width)
    reach = pairs.reach + torch.where(crossings.rightward, 1, -1) * (u - u.detach())
    pixels = color.flatten(0, 2)
    change = (reach - 0.5)[:, None] * (pixels[pairs.inner] - pixels[pairs.outer])
    changed = torch.where(pairs.reach > 0.5, pairs.outer, pairs.inner)
    return pixels.index_add(0, changed, change).view_as(color)


def _acts(crossings: _Crossings) -> Bool[Tensor, " crossings"]:
    """Steep edges act along rows, the others along columns."""
    steepness = crossings.slope.abs()
    return torch.where(crossings.vertical, steepness < 1, steepness <= 1)


def _crossing(
    ends: Float[Tensor, "crossings 2 4"], crossings: _Crossings, boost: float, height: int, width: int
) -> Float[Tensor, " crossings"]:
    """``u`` as a function of the edge's ends, up to a constant; its gradient times ``boost``.

    With slope s and position t on the edge the derivative is that of ``(1 - t) (u0 - s v0) + t (u1 - s v1)`` at
    constant s and t.
    """
    ends = ends.detach() + boost * (ends - ends.detach())
    x, y = (ends[..., axis] / ends[..., 3] * (size / 2) for axis, size in ((0, width), (1, height)))
    vertical = crossings.vertical[:, None]
    shifted = torch.where(vertical, y, x) - crossings.slope[:, None] * torch.where(vertical, x, y)
    return torch.lerp(shifted[:, 0], shifted[:, 1], crossings.position)


def _project(pos: Float[Tensor, "*n 4"], height: int, width: int) -> Float[Tensor, "*n 3"]:
    """Pixels from the centre of the first one, and z / w."""
    x, y, depth = (pos[..., :3] / pos[..., 3:]).unbind(-1)
    return torch.stack([(x + 1) * (width / 2) - 0.5, (y + 1) * (height / 2) - 0.5, depth], -1)


def _mesh_edges(topology: Topology) -> _Edges:
    """Kept as long as the topology is; knows triangles and corners but no vertices, which may change."""
    if topology.neighbour not in _edges:
        neighbour = topology.neighbour
        own = torch.arange(len(neighbour), device=neighbour.device)
        mutual = (neighbour[neighbour] == own[:, None, None]).any(-1)
        triangle, corner = (~mutual | (neighbour < own[:, None])).nonzero(as_tuple=True)
        _edges[neighbour] = _Edges(
            torch.stack([triangle, neighbour[triangle, corner].clamp(min=0)], 1),
            topology.winding[triangle, corner],
            torch.stack([corner, topology.corner[triangle, corner].clamp(min=0)], 1),
        )
    return _edges[topology.neighbour]


def _silhouette(
    pos: Float[Tensor, "pos_batch vertices 4"], tri: Int[Tensor, "triangles 3"], topology: Topology, batch: int
) -> _Silhouette:
    """Edges of one triangle that is drawn, or of two of which one faces the viewer."""
    edges = _mesh_edges(topology)
    numba = pos.device.type == "cpu" and backend_for("cpu") == "numba"
    turning_edges = import_module("nl3dmm.render._numba.edges").turning_edges if numba else _turning_edges
    image, edge, facing = turning_edges(pos, tri, edges.triangles, edges.winding, W_MIN)
    first, second = facing.unbind(1)
    second = second * edges.winding[edge]
    (triangle, neighbour), (corner, other) = edges.triangles[edge].T, edges.corners[edge].T
    ends = torch.stack([tri[triangle, (corner + 1) % 3], tri[triangle, (corner + 2) % 3]], 1)
    inner = torch.where(first != 0, tri[triangle, corner], tri[neighbour, other])
    found = _Silhouette(image, ends, inner, (first == 0) | (second == 0))
    if len(pos) == batch:
        return found
    images = torch.arange(batch, device=pos.device).repeat_interleave(len(edge))
    repeated = found[torch.arange(len(edge), device=pos.device).repeat(batch)]
    return replace(repeated, image=images)


def _turning_edges(
    pos: Float[Tensor, "batch vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    triangles: Int[Tensor, "edges 2"],
    winding: Int[Tensor, " edges"],
    w_min: float,
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"], Int[Tensor, "found 2"]]:
    """Image and number of the edges whose triangles face differently, and how: 1, -1, or 0 for one not drawn."""
    exists = (tri >= 0) & (tri < pos.shape[1])
    whole = exists[:, 0] & exists[:, 1] & exists[:, 2]
    tri = torch.where(whole[:, None], tri, 0)  # three times the same vertex: no area
    x, y, z, w = pos.permute(1, 2, 0).contiguous().unbind(1)  # images side by side: fewer cache misses
    usable = (w > w_min) & x.isfinite() & y.isfinite() & z.isfinite() & w.isfinite()
    xy = torch.where(usable, torch.stack([x / w, y / w]), torch.nan)
    a, b, c = (xy.index_select(1, tri[:, corner]) for corner in range(3))
    (bx, by), (cx, cy) = b - a, c - a
    one, other = bx * cy, cx * by
    facing = (one > other).to(torch.int8) - (one < other).to(torch.int8)
    first, second = (facing.index_select(0, triangles[:, k]) for k in range(2))
    image, edge = (first != second * winding[:, None]).t().nonzero(as_tuple=True)
    return image, edge, torch.stack([first[edge, image], second[edge, image]], 1)


def _walk(pos: Float[Tensor, "pos_batch vertices 4"], silhouette: _Silhouette, height: int, width: int) -> _Crossings:
    """Every crossing of the edges with rows, then with columns of pixel centres."""
    vertex = torch.cat([silhouette.ends, silhouette.inner[:, None]], 1)
    corners = _project(pos[silhouette.image[:, None] % len(pos), vertex], height, width)
    corners = torch.cat([corners, corners[..., [1, 0, 2]]])  # (u, v, z / w) of both ends and the inner vertex
    vertical = torch.arange(len(corners), device=pos.device) >= len(vertex)

    v = corners[:, :2, 1]
    lines = torch.where(vertical, width, height)
    low, high = (end.ceil().clamp(min=0).minimum(lines).long() for end in v.aminmax(dim=1))
    count = high - low
    which = torch.repeat_interleave(count)
    line = torch.arange(len(which), device=pos.device) + (low + count - count.cumsum(0))[which]

    (u, v, depth), vertical = corners[which].unbind(2), vertical[which]
    du, dv, dz = u - u[:, :1], v - v[:, :1], depth - depth[:, :1]
    position = (line - v[:, 0]) / dv[:, 1]
    side = du[:, 2] * dv[:, 1] - du[:, 1] * dv[:, 2]
    rise = ((dz[:, 1] * dv[:, 2] - dz[:, 2] * dv[:, 1]) / side).abs()  # |dz/du| of the triangle
    segment = which % max(len(vertex), 1)
    return _Crossings(
        segment,
        vertical,
        line,
        u[:, 0] + position * du[:, 1],
        depth[:, 0] + position * dz[:, 1],
        position,
        du[:, 1] / dv[:, 1],
        (side < 0) == (dv[:, 1] > 0),
        # Beyond an open edge the surface may go on, as at a seam: what a slope twice as steep reaches is not behind.
        torch.where(silhouette.is_open[segment], 2 * rise, 0) + DEPTH_TOLERANCE,
    )


def _seen(
    crossings: _Crossings, images: Int[Tensor, " segments"], rast: Float[Tensor, "batch height width 4"]
) -> _Pairs:
    """Each crossing between neighbouring pixels, the inner of which shows its surface and the outer what is behind."""
    _, height, width, _ = rast.shape
    last = torch.where(crossings.vertical, height, width) - 2
    index = ((crossings.u > -1) & (crossings.u < last + 2)).nonzero()[:, 0]
    left = crossings.u[index].floor().long()
    beyond = crossings.u[index] - left
    near_left, near_right = beyond < COVERAGE_TOLERANCE, beyond > 1 - COVERAGE_TOLERANCE
    index = torch.cat([index, index[near_left], index[near_right]])
    left = torch.cat([left, left[near_left] - 1, left[near_right] + 1])
    inside = (left >= 0) & (left <= last[index])
    index, left = index[inside], left[inside]

    found = crossings[index]
    row, column = torch.where(found.vertical, left, found.line), torch.where(found.vertical, found.line, left)
    first = (images[found.segment] * height + row) * width + column
    second = first + torch.where(found.vertical, width, 1)
    inner, outer = torch.where(found.rightward, first, second), torch.where(found.rightward, second, first)
    beyond = found.u - left
    pairs = _Pairs(index, inner, outer, torch.where(found.rightward, beyond, 1 - beyond))

    depth, triangle = rast.flatten(0, 2)[:, 2], rast.flatten(0, 2)[:, 3]
    gap = depth[outer] - found.depth
    behind = (triangle[outer] <= 0) | ((gap > found.margin) & (depth[inner] - found.depth < gap / 2))
    return pairs[((triangle[inner] > 0) & behind & (found.depth.abs() <= 1)).nonzero()[:, 0]]


def _outermost(pairs: _Pairs, pixels: int) -> _Pairs:
    """Of all crossings between two pixels the one that reaches farthest, the first one of equals."""
    first, second = torch.minimum(pairs.inner, pairs.outer), torch.maximum(pairs.inner, pairs.outer)
    key = first + torch.where(second - first > 1, pixels, 0)
    farthest = pairs.reach.new_full((2 * pixels,), -1).scatter_reduce_(0, key, pairs.reach, "amax")
    order = torch.arange(len(key), device=key.device)
    kept = (pairs.reach == farthest[key]).nonzero()[:, 0]
    winner = order.new_full((2 * pixels,), len(key)).scatter_reduce_(0, key[kept], order[kept], "amin")
    return pairs[(winner[key] == order).nonzero()[:, 0]]
