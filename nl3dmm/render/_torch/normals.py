"""Vertex normals in plain torch."""

from nl3dmm.geometry.mesh import vertex_normals

__all__ = ["vertex_normals"]
