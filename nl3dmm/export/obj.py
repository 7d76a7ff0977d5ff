"""Wavefront OBJ: text, with a material and a texture beside it."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.data.images import write_png
from nl3dmm.export.mesh import check_mesh, check_suffix
from nl3dmm.outputs import atomic_path

_MATERIAL = """newmtl face
Ka 0 0 0
Kd 1 1 1
Ks 0 0 0
illum 1
map_Kd {texture}
"""


def write_obj(
    path: str | Path,
    vertices: Float[Tensor, "vertices 3"],
    triangles: Int[Tensor, "triangles 3"],
    uv: Float[Tensor, "vertices 2"],
    texture: Float[Tensor, "3 uv_height uv_width"],
) -> None:
    """Write ``NAME.obj`` with ``NAME.mtl`` and ``NAME_albedo.png`` beside it; each file is complete or absent.

    Millimetres, object frame. OBJ counts indices from 1 and v upwards from the texture's last row, so v is written as
    ``1 - v``.

    Args:
        texture: [0, 1], clamped.

    Raises:
        ShapeError: a value is not finite or a triangle names a vertex that does not exist.
        OutputError: the name does not end in .obj, or a file cannot be written.
    """
    path = check_suffix(path, ".obj")
    check_mesh(vertices, triangles, uv)
    texture_path, material_path = path.with_name(f"{path.stem}_albedo.png"), path.with_suffix(".mtl")
    write_png(texture, texture_path)
    _write_text(material_path, _MATERIAL.format(texture=texture_path.name))
    _write_text(path, _obj_text(material_path.name, vertices, triangles, uv))


def _obj_text(material_name: str, vertices: Tensor, triangles: Tensor, uv: Tensor) -> str:
    obj_uv = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1)
    lines = ["# unit: millimetre", f"mtllib {material_name}", "usemtl face"]
    lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices.tolist()]
    lines += [f"vt {u:.7f} {v:.7f}" for u, v in obj_uv.tolist()]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in (triangles + 1).tolist()]
    return "\n".join(lines) + "\n"


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
