"""Antialiasing in plain torch: which edge lies between which two pixels, then a differentiable blend of the two."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.render._rules import COVERAGE_TOLERANCE, CROSSING_STABILISER
from nl3dmm.render.topology import Topology


def antialias(
    color: Float[Tensor, "batch height width channels"],
    rast: Float[Tensor, "batch height width 4"],
    pos: Float[Tensor, "pos_batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology: Topology,
    pos_gradient_boost: float,
) -> Float[Tensor, "batch height width channels"]:
    pos, tri = pos[None] if pos.ndim == 2 else pos, tri.long()
    height, width = rast.shape[1:3]
    exists = ((tri >= 0) & (tri < pos.shape[1])).all(1, keepdim=True)
    if not exists.any():
        return color.clone()
    tri = torch.where(exists, tri, 0)  # no area: faces nobody and has no edge that crosses anything
    with torch.no_grad():
        pair, triangle, forward = _pairs(rast, len(tri))
        source = pair[:, 0] if len(pos) > 1 else torch.zeros_like(pair[:, 0])
        silhouette = _silhouettes(pos, tri, topology, source, triangle)
        near = silhouette.any(1)  # few, on a dense mesh
        pair, source, triangle, forward = (part[near] for part in (pair, source, triangle, forward))
        corners = _aligned(pos[source[:, None], tri[triangle]], pair, height, width)
        corner = _last_edge(corners, silhouette[near], forward)
        pair, source, triangle, corner = (part[corner >= 0] for part in (pair, source, triangle, corner))
    ends = tri[triangle[:, None], (corner[:, None] + torch.tensor([1, 2], device=tri.device)) % 3]
    edge = _aligned(pos[source[:, None], ends], pair, height, width)
    crossing = _crossing(edge, CROSSING_STABILISER[pos.dtype], pos_gradient_boost)
    alpha = (0.5 - crossing).to(color.dtype)[:, None]

    first = (pair[:, 0] * height + pair[:, 1]) * width + pair[:, 2]
    second = torch.where(pair[:, 3] == 1, first + width, first + 1)
    flat = color.flatten(0, 2)
    step = alpha * (flat[second] - flat[first])
    return flat.index_add(0, torch.where(alpha[:, 0] > 0, first, second), step).view_as(color)


def _pairs(
    rast: Float[Tensor, "batch height width 4"], triangles: int
) -> tuple[Int[Tensor, "pairs 4"], Int[Tensor, " pairs"], Bool[Tensor, " pairs"]]:
    """Neighbour pixels that see different triangles: (image, row, column, axis), the triangle nearer to the viewer and
    whether it belongs to the first pixel. Axis 0 pairs a pixel with the next column, axis 1 with the next row.
    """
    seen = (rast[..., 3] >= 1) & (rast[..., 3] < triangles + 1)
    ids = torch.where(seen, rast[..., 3], 0).long() - 1
    different = torch.zeros(*ids.shape, 2, dtype=torch.bool, device=ids.device)
    different[:, :, :-1, 0] = ids[:, :, :-1] != ids[:, :, 1:]
    different[:, :-1, :, 1] = ids[:, :-1] != ids[:, 1:]
    pair = different.nonzero()
    image, row, column, axis = pair.unbind(-1)
    here, there = (image, row, column), (image, row + axis, column + 1 - axis)
    forward = (ids[there] < 0) | ((ids[here] >= 0) & (rast[..., 2][here] < rast[..., 2][there]))
    return pair, torch.where(forward, ids[here], ids[there]), forward


def _silhouettes(
    pos: Float[Tensor, "pos_batch vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology: Topology,
    image: Int[Tensor, " pairs"],
    triangle: Int[Tensor, " pairs"],
) -> Bool[Tensor, "pairs 3"]:
    """Edges that are borders or whose two triangles are not both seen from the same side."""
    x, y, z, w = (part[:, tri] for part in pos.double().unbind(-1))  # (pos_batch, triangles, 3)
    volume = (
        x[..., 0] * (y[..., 1] * w[..., 2] - y[..., 2] * w[..., 1])
        + y[..., 0] * (w[..., 1] * x[..., 2] - w[..., 2] * x[..., 1])
        + w[..., 0] * (x[..., 1] * y[..., 2] - x[..., 2] * y[..., 1])
    )
    volume = torch.where((volume + 0 * z.sum(-1)).isfinite(), volume, 0)
    facing = (volume > 0).char() - (volume < 0).char()
    other = facing[image[:, None], topology.neighbour[triangle].clamp(min=0)]
    return facing[image, triangle][:, None] * other * topology.winding[triangle] <= 0


def _last_edge(
    corners: Float[Tensor, "pairs 3 3"], silhouette: Bool[Tensor, "pairs 3"], forward: Bool[Tensor, " pairs"]
) -> Int[Tensor, " pairs"]:
    """The edge where the line of a pair's centres leaves a triangle, as the opposite corner; -1 if it is no use."""
    (xa, ya, wa), (xb, yb, wb) = corners[:, [1, 2, 0]].unbind(-1), corners[:, [2, 0, 1]].unbind(-1)
    rise = wa * yb - wb * ya
    meets = ((ya < 0) != (yb < 0)) & (rise * (yb - ya) > 0)  # they straddle the line, and meet it before the viewer
    crossing = (xa * yb - xb * ya) / torch.where(meets, rise, 1)
    reach = torch.where(meets, torch.where(forward[:, None], crossing, -crossing), -torch.inf).nan_to_num(-torch.inf)
    steep = rise.abs() >= (wa * xb - wb * xa).abs()
    usable = meets & silhouette & steep & (crossing >= -COVERAGE_TOLERANCE) & (crossing <= 1 + COVERAGE_TOLERANCE)
    corner = reach.argmax(1)
    return torch.where(usable.gather(1, corner[:, None])[:, 0], corner, -1)


def _aligned(
    vertices: Float[Tensor, "pairs corners 4"], pair: Int[Tensor, "pairs 4"], height: int, width: int
) -> Float[Tensor, "pairs corners 3"]:
    """Homogeneous pixel coordinates: the first centre of the pair is the origin, the second one is (1, 0)."""
    x, y, _, w = vertices.double().unbind(-1)
    _, row, column, axis = pair[:, None].unbind(-1)
    x = 0.5 * width * x + (0.5 * width - 0.5 - column) * w
    y = 0.5 * height * y + (0.5 * height - 0.5 - row) * w
    return torch.stack([torch.where(axis == 1, y, x), torch.where(axis == 1, x, y), w], -1)


def _crossing(edge: Float[Tensor, "pairs 2 3"], stabiliser: float, boost: float) -> Float[Tensor, " pairs"]:
    """Where edges meet the lines of their pairs, in [0, 1]; gradients are ``boost`` times true, none at the ends."""
    (xa, ya, wa), (xb, yb, wb) = edge[:, 0].unbind(-1), edge[:, 1].unbind(-1)
    numerator, rise = xa * yb - xb * ya, wa * yb - wb * ya
    value = (numerator / rise).detach()
    stable = (rise + torch.where(rise > 0, stabiliser, -stabiliser) * (wa * wb).abs()).detach()
    change = boost * (numerator - value * rise) / stable
    crossing = value + (change - change.detach())
    return torch.where((value > 0) & (value < 1), crossing, value.clamp(0, 1))
