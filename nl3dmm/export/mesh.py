"""A face as mesh files know it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.errors import OutputError, ShapeError


@dataclass(frozen=True)
class FaceMesh:
    """Textured mesh, mm in the object frame; UV as everywhere here: v down the rows of the texture."""

    name: str
    vertices: Float[Tensor, "vertices 3"]
    triangles: Int[Tensor, "triangles 3"]
    uv: Float[Tensor, "vertices 2"]
    normals: Float[Tensor, "vertices 3"]  # unit length
    albedo: Float[Tensor, "3 uv_height uv_width"]  # [0, 1], sRGB
    uv_mask: Bool[Tensor, "uv_height uv_width"]  # texels that the mesh shows
    morphs: Float[Tensor, "morphs vertices 3"]  # displacements at weight 1
    morph_names: tuple[str, ...]
    tangents: Float[Tensor, "vertices 4"] | None = None  # of ``relief``; glTF's: towards +u, and the bitangent's sign
    relief: Float[Tensor, "3 uv_height uv_width"] | None = None  # tangent-space normals, [-1, 1]


def check_suffix(path: str | Path, *suffixes: str) -> Path:
    """The path, if it ends in one of the suffixes (in any case).

    Raises:
        OutputError: it does not.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"path: got {path}; expected a name that ends in {' or '.join(suffixes)}. Add the suffix.")
    return path


def check_mesh(vertices: Float[Tensor, "_ 3"], triangles: Int[Tensor, "_ 3"], uv: Float[Tensor, "_ 2"]) -> None:
    """Finite values, triangles of these vertices.

    Raises:
        ShapeError: otherwise.
    """
    if not (vertices.isfinite().all() and uv.isfinite().all()):
        raise ShapeError("vertices, uv: got NaN or infinite values; expected finite ones. Check the fit.")
    first, last = map(int, torch.aminmax(triangles)) if len(triangles) else (0, -1)
    if first < 0 or last >= len(vertices) or not len(triangles):
        raise ShapeError(
            f"triangles: got indices from {first} to {last}; expected 0 to {len(vertices) - 1}. "
            "Use the triangles of the same template."
        )
