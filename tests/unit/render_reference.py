"""Brute-force renderer for the tests (every triangle at every pixel, exact integers) and the scenes it is run on."""

import numpy as np
import torch
from torch import Tensor


def reference_ids(pos: Tensor, tri: Tensor, height: int, width: int) -> np.ndarray:
    """Nearest triangle at each pixel of one image, -1 = none; no clipping: all vertices must be in the view volume."""
    p = pos.numpy()
    scale = np.array([8 * width, 8 * height], p.dtype)
    xy = np.rint(p[:, :2] / p[:, 3:] * scale).astype(np.int64) + (8 * np.array([width, height]) - 8)
    z = np.rint(((p[:, 2] / p[:, 3]).astype(np.float64) * 0.5 + 0.5) * (2**32 - 1)).astype(np.int64)
    row, column = np.mgrid[:height, :width] * 16
    nearest, ids = np.full((height, width), 2**32 - 1), np.full((height, width), -1)
    for index, corners in enumerate(tri.tolist()):
        a, b, c = corners
        area = cross(xy[b] - xy[a], *(xy[c] - xy[a]))
        if area == 0:
            continue
        if area < 0:
            b, c, area = c, b, -area
        edges, covered = [], np.ones((height, width), bool)
        for start, end in ((b, c), (c, a), (a, b)):
            direction = xy[end] - xy[start]
            edge = cross(direction, column - xy[start][0], row - xy[start][1])
            left_or_lower = direction[1] < 0 or (direction[1] == 0 and direction[0] > 0)
            covered &= (edge > 0) | ((edge == 0) & left_or_lower)
            edges.append(edge)
        numerator = z[a] * area + edges[1] * (z[b] - z[a]) + edges[2] * (z[c] - z[a])
        whole, rest = np.divmod(numerator, area)
        depth = whole + (rest / area + 0.381966 >= 1)
        visible = covered & (depth <= nearest)
        nearest[visible], ids[visible] = depth[visible], index
    return ids


def cross(direction: np.ndarray, x, y):
    return direction[0] * y - direction[1] * x


def reference_attributes(pos: Tensor, tri: Tensor, attr: Tensor, ids: np.ndarray) -> np.ndarray:
    """Perspective-correct attributes of one image in float64, clamped to the triangle as the contract says."""
    height, width = ids.shape
    out = np.zeros((height, width, attr.shape[1]))
    for row, column in np.argwhere(ids >= 0):
        corners = tri[ids[row, column]].numpy()
        p = pos.double().numpy()[corners]
        centre = [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1]
        weights = np.linalg.solve(p[:, [0, 1, 3]].T, centre)
        u, v = np.clip(weights[:2] / weights.sum(), 0, 1)
        total = max(u + v, 1)
        u, v = u / total, v / total
        out[row, column] = np.array([u, v, 1 - u - v]) @ attr.double().numpy()[corners]
    return out


def reference_antialias(color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor) -> np.ndarray:
    """The rule of one image, pair by pair, in projected pixel coordinates and float64; all w must be positive."""
    c, depth, ids = color.double().numpy(), rast[..., 2].numpy(), rast[..., 3].long().numpy() - 1
    height, width = ids.shape
    p = pos.double().numpy()
    xy = (p[:, :2] / p[:, 3:] + 1) * np.array([width, height]) / 2 - 0.5
    out = c.copy()
    for row, column, axis in np.ndindex(height, width, 2):
        here, there = (row, column), (row + axis, column + 1 - axis)
        if there[0] == height or there[1] == width or ids[here] == ids[there]:
            continue
        on_top = ids[there] < 0 or (ids[here] >= 0 and depth[here] < depth[there])
        near, far = (here, there) if on_top else (there, here)
        crossing = silhouette_crossing(xy - np.array(near[::-1]), axis, 1 if on_top else -1, ids[near], tri.numpy())
        if crossing is not None and crossing > 0.5:
            out[far] += (crossing - 0.5) * (c[near] - c[far])
        elif crossing is not None:
            out[near] += (0.5 - crossing) * (c[far] - c[near])
    return out


def silhouette_crossing(xy: np.ndarray, axis: int, sign: int, index: int, tri: np.ndarray) -> float | None:
    """How far from the origin, towards a neighbour pixel, a silhouette edge of a triangle lies."""
    best = None
    for corner in range(3):
        start, end, own = (tri[index, (corner + step) % 3] for step in (1, 2, 0))
        (along, across), (run, rise) = xy[start][[axis, 1 - axis]], (xy[end] - xy[start])[[axis, 1 - axis]]
        if (across < 0) == (xy[end][1 - axis] < 0):
            continue
        crossing = sign * (along - across * run / rise)
        if best is None or crossing > best[0]:
            best = crossing, abs(rise) >= abs(run), (start, end, own)
    if best is None or not best[1] or not -1 / 16 <= best[0] <= 17 / 16:
        return None
    start, end, own = best[2]
    edge = xy[end] - xy[start]
    sharing = np.flatnonzero((tri == start).any(1) & (tri == end).any(1))
    sharing = [number for number in sharing if len(set(tri[number])) == 3]
    if len(sharing) > 1:
        other = sharing[1] if sharing[0] == index else sharing[0]
        opposite = (set(tri[other]) - {start, end}).pop()
        sides = [float(cross(edge, *(xy[vertex] - xy[start]))) for vertex in (own, opposite)]
        if sides[0] * sides[1] < 0:
            return None
    return min(max(best[0], 0), 1)


def face(size: int, yaw: float = 0.6) -> tuple[Tensor, Tensor]:
    """A turned, bulging sheet with a nose that hides a part of it, seen in perspective; float64."""
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    depth = 0.8 - 0.5 * (x**2 + y**2) + 0.6 * torch.exp(-(x**2 + y**2) / 0.05)
    turned_x = x * np.cos(yaw) + depth * np.sin(yaw)
    turned_z = -x * np.sin(yaw) + depth * np.cos(yaw)
    pos = torch.stack([0.6 * turned_x, 0.6 * y, -0.4 * turned_z, 1 - 0.2 * turned_z], -1).view(-1, 4)
    corner = torch.arange(size * size).view(size, size)
    a, b, c, d = (part.reshape(-1) for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]))
    return pos, torch.cat([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)])


def soup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unconnected triangles of both windings that intersect each other; float64."""
    generator = torch.Generator().manual_seed(seed)
    ndc = torch.rand(3 * count, 3, generator=generator, dtype=torch.float64) * 1.9 - 0.95
    w = torch.rand(3 * count, 1, generator=generator, dtype=torch.float64) * 3 + 0.5
    return torch.cat([ndc * w, w], -1), torch.arange(3 * count).view(-1, 3)


def on_pixel_centres(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Triangles whose corners are pixel centres of a size x size image, so that many samples lie on edges."""
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.randint(size, (240, 2), generator=generator).double()
    z = torch.randint(-4, 5, (240, 1), generator=generator) / 8
    pos = torch.cat([(2 * pixel + 1) / size - 1, z, torch.ones(240, 1)], -1)
    return pos.double(), torch.randint(240, (160, 3), generator=generator)


def coincident(seed: int) -> tuple[Tensor, Tensor]:
    """Each triangle of a soup several times, with other first corners and windings, in random order."""
    pos, tri = soup(40, seed)
    copies = torch.cat([tri, tri[:, [1, 2, 0]], tri[:, [0, 2, 1]], tri[:, [2, 1, 0]]])
    return pos, copies[torch.randperm(len(copies), generator=torch.Generator().manual_seed(seed))]


SCENES = {
    "face": (*face(22), 40, 48),
    "sub-pixel": (*face(40), 20, 18),
    "soup": (*soup(120, seed=1), 33, 40),
    "pixel centres": (*on_pixel_centres(32, seed=2), 32, 32),
    "coincident": (*coincident(seed=3), 31, 29),
    "one pixel": (*soup(40, seed=4), 1, 1),
}
