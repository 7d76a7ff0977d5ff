"""Which triangles share which edges; what antialiasing asks of a mesh."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_cache = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Topology:
    """Across edge k of each triangle, the one opposite to corner k; neighbour and corner are -1 at a border.

    Of an edge with more than two triangles the first two are neighbours; each later one has the first as neighbour.
    """

    neighbour: Int[Tensor, "triangles 3"]  # the other triangle
    corner: Int[Tensor, "triangles 3"]  # that one's corner which is not on the edge: 0, 1 or 2
    winding: Int[Tensor, "triangles 3"]  # int8: 1 = consistently wound, -1 = the neighbour is turned over, 0 = border


def antialias_construct_topology_hash(tri: Int[Tensor, "triangles 3"]) -> Topology:
    """Edges are shared by vertex index: vertices doubled at a seam make a border.

    The answer is kept as long as the tensor object lives and torch sees nothing written to it.
    """
    if tri.is_inference():  # nobody counts the writes to such a tensor
        return _build(tri.long())
    if tri not in _cache or _cache[tri][0] != tri._version:
        _cache[tri] = tri._version, _build(tri.detach().long())
    return _cache[tri][1]


def _build(tri: Int[Tensor, "triangles 3"]) -> Topology:
    """Triangles that repeat a vertex or have a negative index share no edge."""
    start, end = tri[:, [1, 2, 0]], tri[:, [2, 0, 1]]
    usable = (tri >= 0).all(1, keepdim=True) & (start != end).all(1, keepdim=True)
    slot = usable.expand(-1, 3).flatten().nonzero()[:, 0]  # 3 * triangle + corner
    low, high = torch.minimum(start, end).flatten(), torch.maximum(start, end).flatten()
    slot = slot[torch.argsort(high[slot], stable=True)]
    slot = slot[torch.argsort(low[slot], stable=True)]  # equal edges side by side, in the order of their triangles
    partner = _partners(low[slot], high[slot])
    slot, other = slot[partner >= 0], slot[partner[partner >= 0]]

    neighbour, corner = torch.full_like(tri, -1).flatten(), torch.full_like(tri, -1).flatten()
    winding = torch.zeros_like(neighbour, dtype=torch.int8)
    neighbour[slot], corner[slot] = other // 3, other % 3
    turned = start.flatten()[slot] == start.flatten()[other]
    winding[slot] = 1 - 2 * turned.to(torch.int8)
    return Topology(neighbour.view_as(tri), corner.view_as(tri), winding.view_as(tri))


def _partners(low: Int[Tensor, " edges"], high: Int[Tensor, " edges"]) -> Int[Tensor, " edges"]:
    """For each of the sorted edges the position of the equal one that it counts as its neighbour, or -1."""
    position = torch.arange(len(low), device=low.device)
    new = torch.ones_like(low, dtype=torch.bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    first = torch.where(new, position, 0).cummax(0).values
    followed = torch.cat([~new[1:], new.new_zeros(min(len(new), 1))])
    return torch.where(~new, first, torch.where(followed, position + 1, -1))
