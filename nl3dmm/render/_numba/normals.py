"""Vertex normals on CPU: numba kernels for one mesh each, and the autograd function around them."""

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nl3dmm.geometry.mesh import LEAST_NORMAL
from nl3dmm.render._jit import kernel
from nl3dmm.render._numba._arrays import arrays
from nl3dmm.render._pool import run_images


def vertex_normals(
    vertices: Float[Tensor, "batch vertices 3"], triangles: Int[Tensor, "triangles 3"]
) -> Float[Tensor, "batch vertices 3"]:
    """All indices must exist: nothing here looks."""
    return _VertexNormals.apply(vertices, triangles.long())


class _VertexNormals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, triangles: Tensor) -> Tensor:
        vertices, triangles = vertices.contiguous(), triangles.contiguous()
        normals, lengths = torch.empty_like(vertices), vertices.new_empty(vertices.shape[:2])
        v, t, to_normals, to_lengths = arrays(vertices, triangles, normals, lengths)
        ctx.threads = torch.get_num_threads()
        run_images(lambda i: mesh_normals(v[i], t, LEAST_NORMAL, to_normals[i], to_lengths[i]), len(v), ctx.threads)
        ctx.save_for_backward(vertices, triangles, normals, lengths)
        return normals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_normals: Tensor) -> tuple[Tensor, None]:
        vertices, triangles, normals, lengths = ctx.saved_tensors
        grad_vertices = torch.empty_like(vertices)
        v, t, n, sizes = arrays(vertices, triangles, normals, lengths)
        from_normals, to_vertices = arrays(grad_normals.contiguous(), grad_vertices)

        def image(i: int) -> None:
            mesh_normals_backward(v[i], t, LEAST_NORMAL, n[i], sizes[i], from_normals[i], to_vertices[i])

        run_images(image, len(v), ctx.threads)
        return grad_vertices, None


@kernel
@no_type_check
def minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@kernel
@no_type_check
def cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@kernel
@no_type_check
def mesh_normals(vertices, triangles, least, normals, lengths):
    """Fill the unit normals, and the lengths of what was normalised: the backward pass then adds up no sum again."""
    normals[:] = 0
    for triangle in range(triangles.shape[0]):
        i, j, k = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        normal = cross(minus(vertices[j], vertices[i]), minus(vertices[k], vertices[i]))
        for axis in range(3):
            normals[i, axis] += normal[axis]
            normals[j, axis] += normal[axis]
            normals[k, axis] += normal[axis]
    least = normals.dtype.type(least)
    for vertex in range(normals.shape[0]):
        x, y, z = normals[vertex, 0], normals[vertex, 1], normals[vertex, 2]
        length = np.sqrt(x * x + y * y + z * z)
        lengths[vertex] = length
        divisor = least if length < least else length
        normals[vertex, 0], normals[vertex, 1], normals[vertex, 2] = x / divisor, y / divisor, z / divisor


@kernel
@no_type_check
def mesh_normals_backward(vertices, triangles, least, normals, lengths, grad_normals, grad_vertices):
    grad_sums = np.empty_like(vertices)
    least, zero = normals.dtype.type(least), normals.dtype.type(0)
    for vertex in range(normals.shape[0]):
        along, divisor = zero, lengths[vertex]
        for axis in range(3):
            along += normals[vertex, axis] * grad_normals[vertex, axis]
        if divisor < least:  # the sum was divided by a constant
            along, divisor = zero, least
        for axis in range(3):
            grad_sums[vertex, axis] = (grad_normals[vertex, axis] - along * normals[vertex, axis]) / divisor
    grad_vertices[:] = 0
    for triangle in range(triangles.shape[0]):
        i, j, k = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
        to_j, to_k = minus(vertices[j], vertices[i]), minus(vertices[k], vertices[i])
        x = grad_sums[i, 0] + grad_sums[j, 0] + grad_sums[k, 0]
        y = grad_sums[i, 1] + grad_sums[j, 1] + grad_sums[k, 1]
        z = grad_sums[i, 2] + grad_sums[j, 2] + grad_sums[k, 2]
        grad_j, grad_k = cross(to_k, (x, y, z)), cross((x, y, z), to_j)
        for axis in range(3):
            grad_vertices[i, axis] -= grad_j[axis] + grad_k[axis]
            grad_vertices[j, axis] += grad_j[axis]
            grad_vertices[k, axis] += grad_k[axis]
