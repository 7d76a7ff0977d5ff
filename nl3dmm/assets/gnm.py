"""Importer of Google's GNM head (``gnm_head.npz``, Apache-2.0), with its ``head_sparse_68.txt`` beside it."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from nl3dmm.assets.linear_model import LinearModel, face_template
from nl3dmm.assets.model_file import Counts, ModelFile, read_landmark_table
from nl3dmm.assets.template import FaceTemplate

SOURCE = "gnm_head.npz and head_sparse_68.txt come from https://github.com/google/GNM (gnm/shape/data)."
LICENCE = "Apache-2.0, (c) 2026 Google LLC"
PUBLISHED: Counts = {"vertices": 17_821, "identity": 253, "expression": 383}
MM_PER_M = 1000.0
SHOWN, HIDDEN = ("skin", "left_eye", "right_eye", "eyes"), "mouth_sock"  # groups of vertices; no teeth, no tongue

_LAYOUT = {
    "template_vertex_positions": ("vertices", 3),
    "vertex_identity_basis": ("identity", "vertices", 3),
    "expression_basis": ("expression", "vertices", 3),
    "triangles": ("triangles", 3),
    "mirror_indices": ("vertices",),
    "vertex_groups": ("groups", "vertices"),
}
_NAMES = {"expression_names": "expression_basis", "vertex_group_names": "vertex_groups"}  # one for each of


def import_gnm(path: str | Path, uv_size: tuple[int, int] = (64, 80), any_size: bool = False) -> FaceTemplate:
    """The skin of the face and the eyes on a cylindrical map of ``uv_size`` (rows, columns); no joints.

    Args:
        any_size: accept other numbers of vertices and modes than those of version 3.

    Raises:
        AssetError: a file is missing, damaged, or not of the published model.
    """
    return face_template(read_gnm(path, any_size), ModelFile(Path(path), SOURCE), uv_size)


def read_gnm(path: str | Path, any_size: bool = False) -> LinearModel:
    """The head, vertices as in the file; triangles of the skin and the eyes only."""
    file = ModelFile(Path(path), SOURCE)
    content = file.read_npz([*_LAYOUT, *_NAMES])
    data = file.arrays(content, _LAYOUT, None if any_size else PUBLISHED)
    names = {key: _names(file, key, content.get(key), len(data[other])) for key, other in _NAMES.items()}
    vertices = (data["template_vertex_positions"] * MM_PER_M).astype(np.float32)
    triangles = file.indices("triangles", data["triangles"], len(vertices))
    mirror = file.indices("mirror_indices", data["mirror_indices"], len(vertices))
    if (mirror[mirror] != np.arange(len(vertices))).any():
        raise file.refusal("mirror_indices that do not lead back", "pairs of vertices")
    corners, weights = read_landmark_table(file.beside("head_sparse_68.txt"), len(vertices))
    order = _downwards_then_up((vertices[corners] * weights[..., None]).sum(1))
    return LinearModel(
        name="gnm",
        vertices=vertices,
        triangles=triangles[_shown(file, names["vertex_group_names"], data["vertex_groups"])[triangles].all(1)],
        identity_basis=(data["vertex_identity_basis"] * MM_PER_M).astype(np.float32),
        expression_basis=(data["expression_basis"] * MM_PER_M).astype(np.float32),
        expression_names=names["expression_names"],
        landmark_vertices=corners[order],
        landmark_weights=weights[order],
        mirror=mirror,
        licence=LICENCE,
    )


def _names(file: ModelFile, key: str, values: object, count: int) -> tuple[str, ...]:
    if not isinstance(values, ndarray) or values.dtype.kind not in "US" or values.shape != (count,):
        raise file.refusal(f"{key} of shape {getattr(values, 'shape', None)}", f"{count} names")
    return tuple(str(name) for name in values.astype(str))


def _shown(file: ModelFile, names: tuple[str, ...], groups: ndarray) -> ndarray:
    if "skin" not in names:
        raise file.refusal("no vertex group 'skin'", "the groups of gnm_head.npz")
    shown = np.any([groups[names.index(name)] > 0.5 for name in SHOWN if name in names], axis=0)
    return shown & ~(groups[names.index(HIDDEN)] > 0.5) if HIDDEN in names else shown


def _downwards_then_up(marks: ndarray) -> ndarray:
    """The 68 points with the jaw from ear to chin to ear; GNM's file has some of one side in reverse."""
    height, order = marks[:, 1], np.arange(68)
    order[:8] = order[:8][np.argsort(-height[:8])]
    order[9:17] = order[9:17][np.argsort(height[9:17])]
    return order
