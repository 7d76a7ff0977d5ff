"""Binary PLY: points with normals and colours, for scan tools such as MeshLab and CloudCompare."""

from pathlib import Path

import numpy as np
import torch

from nl3dmm.export.mesh import FaceMesh, check_mesh, check_suffix
from nl3dmm.geometry.uv import sample_uv_map
from nl3dmm.outputs import atomic_path

_CORNERS = ("x", "y", "z", "nx", "ny", "nz")
_COLOURS = ("red", "green", "blue")
_HEADER = """ply
format binary_little_endian 1.0
comment unit: millimetre; colours: sRGB albedo
element vertex {vertices}
{properties}
element face {triangles}
property list uchar int vertex_indices
end_header
"""


def write_ply(path: str | Path, mesh: FaceMesh) -> None:
    """Write vertices (mm, object frame) in the template's order, unit normals, 8-bit albedo and triangles.

    Raises:
        ShapeError: a value is not finite or a triangle names a vertex that does not exist.
        OutputError: the name does not end in .ply, or the file cannot be written.
    """
    path = check_suffix(path, ".ply")
    check_mesh(mesh.vertices, mesh.triangles, mesh.uv)
    colours = sample_uv_map(mesh.albedo[None], mesh.uv)[0].detach().cpu()
    vertices = np.zeros(len(mesh.vertices), [(name, "<f4") for name in _CORNERS] + [(name, "u1") for name in _COLOURS])
    numbers = torch.cat([mesh.vertices, mesh.normals], dim=1).detach().cpu().numpy()
    levels = (colours.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    for names, columns in ((_CORNERS, numbers), (_COLOURS, levels)):
        for name, column in zip(names, columns.T, strict=True):
            vertices[name] = column
    triangles = np.zeros(len(mesh.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, mesh.triangles.cpu().numpy()
    properties = [f"property float {name}" for name in _CORNERS] + [f"property uchar {name}" for name in _COLOURS]
    header = _HEADER.format(vertices=len(vertices), triangles=len(triangles), properties="\n".join(properties))
    with atomic_path(path) as temporary:
        temporary.write_bytes(header.encode("ascii") + vertices.tobytes() + triangles.tobytes())
