"""A part of a surface laid flat around a point: what is drawn on the plane has its size in mm on the surface."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

_STEEPEST = -0.5  # cosine to the normal at the centre beyond which the surface has turned away from its plane
_FALL_OFF, _LEAST_WEIGHT = 0.6, 0.02  # of the reach; what is far from the centre gives way to what is near


def flatten_patch(
    vertices: Float[Tensor, "vertices 3"],
    triangles: Int[Tensor, "triangles 3"],
    normals: Float[Tensor, "vertices 3"],
    centre: tuple[Int[Tensor, "3"], Float[Tensor, "3"]],
    up: Float[Tensor, "3"],
    reach: float,
) -> Float[Tensor, "vertices 2"]:
    """Plane coordinates (right, up; mm) of the vertices around a surface point, NaN beyond the patch.

    Every edge of the mesh, turned into the plane by the shortest rotation of its normal, says how its ends differ; the
    coordinates agree with all of them in the least-squares sense. A plane and a cylinder keep every length; a sphere
    of 80 mm keeps those of 40 mm across within 1 %.

    Args:
        centre: its triangle's vertices and barycentric weights; it gets the coordinates (0, 0).
        up: the direction whose part along the surface is the plane's up; right is to a viewer's right.
        reach: mm of straight distance from the centre, within which the surface is followed.
    """
    points, unit = (value.detach().double().cpu().numpy() for value in (vertices, normals))
    corners, weights = centre[0].cpu().numpy(), centre[1].double().cpu().numpy()
    middle, normal = weights @ points[corners], _unit(weights @ unit[corners])
    within = (np.linalg.norm(points - middle, axis=1) < reach) & (unit @ normal > _STEEPEST)
    within[corners] = True
    edges = _edges(triangles.cpu().numpy(), within, int(corners[0]))
    along = _in_plane(points[edges[:, 1]] - points[edges[:, 0]], _unit(unit[edges].sum(1)), normal)
    steps = along @ _axes(normal, up.double().cpu().numpy()).T
    distance = np.linalg.norm(points[edges].mean(1) - middle, axis=1)
    trust = np.maximum(np.exp(-((distance / (_FALL_OFF * reach)) ** 2)), _LEAST_WEIGHT)
    flat = _integrate(edges, steps, trust / np.maximum((steps**2).sum(1), 1e-6), len(points))
    return torch.from_numpy(flat - weights @ flat[corners]).to(vertices)


def _edges(triangles: ndarray, within: Bool[ndarray, " vertices"], start: int) -> Int[ndarray, "edges 2"]:
    """Of the triangles inside that hang together with a vertex, once each."""
    inside = triangles[within[triangles].all(1)]
    pairs = np.sort(np.concatenate([inside[:, [0, 1]], inside[:, [1, 2]], inside[:, [2, 0]]]), axis=1)
    pairs = np.unique(pairs, axis=0)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(within), len(within)))
    _, part = connected_components(graph, directed=False)
    return pairs[part[pairs[:, 0]] == part[start]]


def _in_plane(
    vectors: Float[ndarray, "edges 3"], normals: Float[ndarray, "edges 3"], target: Float[ndarray, "3"]
) -> Float[ndarray, "edges 3"]:
    """Vectors, made tangent at full length, after the shortest rotation of their normals to another."""
    tangent = vectors - (vectors * normals).sum(1, keepdims=True) * normals
    tangent = _unit(tangent) * np.linalg.norm(vectors, axis=1, keepdims=True)
    axis, cosine = np.cross(normals, target), (normals @ target)[:, None]
    along = (axis * tangent).sum(1, keepdims=True) / (1 + cosine)
    return tangent * cosine + np.cross(axis, tangent) + axis * along


def _axes(normal: Float[ndarray, "3"], up: Float[ndarray, "3"]) -> Float[ndarray, "2 3"]:
    """Right and up of the tangent plane."""
    rising = up - (up @ normal) * normal
    if np.linalg.norm(rising) < 1e-3:  # the surface faces up: its up is what lies behind
        rising = np.array([0.0, 0, -1]) + normal[2] * normal
    rising = _unit(rising)
    return np.stack([np.cross(rising, normal), rising])


def _integrate(
    edges: Int[ndarray, "edges 2"], steps: Float[ndarray, "edges 2"], weights: Float[ndarray, " edges"], count: int
) -> Float[ndarray, "vertices 2"]:
    """Positions whose differences along the edges are nearest to ``steps``; NaN where no edge ends."""
    used, index = np.unique(edges, return_inverse=True)
    first, second = index.reshape(edges.shape).T
    ends, signs = np.concatenate([first, second]), np.repeat([-1.0, 1.0], len(edges))
    rows = np.tile(np.arange(len(edges)), 2)
    difference = coo_array((signs, (rows, ends)), shape=(len(edges), len(used))).tocsr()
    weighted = difference.T @ coo_array((weights, (np.arange(len(edges)),) * 2))
    matrix, goal = (weighted @ difference).tocsc(), weighted @ steps
    flat = np.zeros((len(used), 2))
    flat[1:] = splu(matrix[1:, 1:]).solve(goal[1:])  # the first one is held, which is one solution of all
    positions = np.full((count, 2), np.nan)
    positions[used] = flat
    return positions


def _unit(vectors: ndarray) -> ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
