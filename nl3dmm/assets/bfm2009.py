"""Importer of the Basel Face Model 2009 with the expressions that 3DDFA (300W-LP) or Deep3D add to it.

Three kinds of file are known, by what they contain: Basel's own ``01_MorphableModel.mat``, 3DDFA's ``Model_Shape.mat``
and Deep3D's ``BFM_model_front.mat``. The last is complete. Beside the first two lies ``Model_Expression.mat``, or
``Exp_Pca.bin`` with ``std_exp.txt``; beside the first also ``model_info.mat``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from nl3dmm.assets.linear_model import LinearModel, face_template, mirror_from_pairs
from nl3dmm.assets.model_file import Counts, ModelFile, one_vertex_each, points_of, rows_of_modes
from nl3dmm.assets.template import FaceTemplate

SOURCE = (
    "01_MorphableModel.mat comes from https://faces.dmi.unibas.ch/bfm (account); Model_Shape.mat, "
    "Model_Expression.mat and model_info.mat from 3DDFA (http://www.cbsr.ia.ac.cn/users/xiangyuzhu); Exp_Pca.bin, "
    "std_exp.txt and BFM_model_front.mat by https://github.com/sicxu/Deep3DFaceRecon_pytorch."
)
LICENCE = "Basel Face Model licence: research only, no redistribution"
MM_PER_UM, MM_PER_DM, WHITE = 1e-3, 100.0, 255.0
# Basel's mesh, the part that 3DDFA keeps, and Deep3D's frontal part
PUBLISHED: Counts = {"whole": 3 * 53_490, "coordinates": 3 * 53_215, "triangles": 105_840}
PUBLISHED_FRONT: Counts = {"coordinates": 3 * 35_709, "triangles": 70_789}

_BASEL = {
    "shapeMU": ("whole",),
    "shapePC": ("whole", "identity"),
    "shapeEV": ("identity",),
    "texMU": ("whole",),
    "texPC": ("whole", "albedo"),
    "texEV": ("albedo",),
}
_TOPOLOGY = {"tri": (3, "triangles"), "keypoints": (68,)}
_INFO = {**_TOPOLOGY, "trimIndex": ("trimmed",), "symlist": (2, "pairs")}
_TRIMMED = {"mu_shape": ("coordinates",), "w": ("coordinates", "identity"), "sigma": ("identity",)}
_EXPRESSION = {"mu_exp": ("coordinates",), "w_exp": ("coordinates", "expression"), "sigma_exp": ("expression",)}
_FRONT = {
    "meanshape": ("coordinates",),
    "idBase": ("coordinates", "identity"),
    "exBase": ("coordinates", "expression"),
    "meantex": ("coordinates",),
    "texBase": ("coordinates", "albedo"),
    "tri": ("triangles", 3),
    "keypoints": (68,),
}


def import_bfm2009(path: str | Path, uv_size: tuple[int, int] = (64, 80), any_size: bool = False) -> FaceTemplate:
    """The face as a template on a cylindrical map of ``uv_size`` (rows, columns).

    Args:
        path: one of the three kinds of file above, with its companions beside it.
        any_size: accept other numbers of vertices and triangles than the published ones.

    Raises:
        AssetError: a file is missing, damaged, or not of the published model.
    """
    return face_template(read_bfm2009(path, any_size), ModelFile(Path(path), SOURCE), uv_size)


def read_bfm2009(path: str | Path, any_size: bool = False) -> LinearModel:
    """The whole model, vertices as 3DDFA numbers them (or Deep3D, for its frontal part)."""
    file = ModelFile(Path(path), SOURCE)
    content = file.read_mat([*_BASEL, *_TRIMMED, *_INFO, *_FRONT])
    if "meanshape" in content:
        return _front(file, content, None if any_size else PUBLISHED_FRONT)
    counts = None if any_size else PUBLISHED
    if "shapeMU" in content:
        return _basel(file, content, counts)
    if "mu_shape" in content:
        return _trimmed(file, content, counts)
    raise file.refusal("none of shapeMU, mu_shape, meanshape", "a Basel Face Model 2009")


def _basel(file: ModelFile, content: Mapping[str, object], counts: Counts | None) -> LinearModel:
    basel, info_file = file.arrays(content, _BASEL, counts), file.beside("model_info.mat")
    trimmed = None if counts is None else {"trimmed": counts["coordinates"] // 3, "triangles": counts["triangles"]}
    info = info_file.arrays(info_file.read_mat(list(_INFO)), _INFO, trimmed)
    kept = info_file.indices("trimIndex", info["trimIndex"], len(basel["shapeMU"]) // 3, first=1)
    rows = (3 * kept[:, None] + np.arange(3)).reshape(-1)
    offset, expressions = _expressions(file, len(rows))
    return LinearModel(
        name="bfm2009",
        vertices=points_of(basel["shapeMU"][rows] + offset, MM_PER_UM),
        identity_basis=rows_of_modes(basel["shapePC"][rows], basel["shapeEV"], MM_PER_UM),
        identity_deviation=basel["shapeEV"].astype(np.float32),
        albedo_mean=points_of(basel["texMU"][rows], 1 / WHITE),
        albedo_basis=rows_of_modes(basel["texPC"][rows], basel["texEV"], 1 / WHITE),
        **_topology(info_file, info, len(kept)),
        **expressions,
    )


def _trimmed(file: ModelFile, content: Mapping[str, object], counts: Counts | None) -> LinearModel:
    layout = _TRIMMED | _TOPOLOGY | ({"symlist": (2, "pairs")} if "symlist" in content else {})
    data = file.arrays(content, layout, counts)
    offset, expressions = _expressions(file, len(data["mu_shape"]))
    return LinearModel(
        name="bfm2009",
        vertices=points_of(data["mu_shape"] + offset, MM_PER_UM),
        identity_basis=rows_of_modes(data["w"], data["sigma"], MM_PER_UM),
        identity_deviation=data["sigma"].astype(np.float32),
        **_topology(file, data, len(data["mu_shape"]) // 3),
        **expressions,
    )


def _front(file: ModelFile, content: Mapping[str, object], counts: Counts | None) -> LinearModel:
    data = file.arrays(content, _FRONT, counts)
    one = np.ones(1, np.float32)  # these bases already hold one standard deviation
    return LinearModel(
        name="bfm2009",
        vertices=points_of(data["meanshape"], MM_PER_DM),
        identity_basis=rows_of_modes(data["idBase"], one, MM_PER_DM),
        expression_basis=rows_of_modes(data["exBase"], one, MM_PER_DM),
        albedo_mean=points_of(data["meantex"], 1 / WHITE),
        albedo_basis=rows_of_modes(data["texBase"], one, 1 / WHITE),
        **_topology(file, data | {"tri": data["tri"].T}, len(data["meanshape"]) // 3),
    )


def _topology(file: ModelFile, data: Mapping[str, ndarray], count: int) -> dict[str, Any]:
    """Triangles, landmarks and symmetry; all of them count from 1."""
    landmarks = one_vertex_each(file.indices("keypoints", data["keypoints"], count, first=1))
    pairs = file.indices("symlist", data["symlist"], count, first=1) if "symlist" in data else None
    return {
        "triangles": np.ascontiguousarray(file.indices("tri", data["tri"], count, first=1).T),
        "landmark_vertices": landmarks[0],
        "landmark_weights": landmarks[1],
        "mirror": None if pairs is None else mirror_from_pairs(pairs, count, file),
        "licence": LICENCE,
    }


def _expressions(file: ModelFile, coordinates: int) -> tuple[ndarray | float, dict[str, Any]]:
    """What the mean expression adds to the mean face (micrometres), and the modes."""
    matlab, binary = file.beside("Model_Expression.mat"), file.beside("Exp_Pca.bin")
    offset: ndarray | float = 0.0  # Deep3D's neutral face is the mean shape
    if matlab.path.is_file():
        data = matlab.arrays(matlab.read_mat(list(_EXPRESSION)), _EXPRESSION, {"coordinates": coordinates})
        offset, columns, deviations = data["mu_exp"], data["w_exp"], data["sigma_exp"]
    elif binary.path.is_file():
        columns, table = _binary_modes(binary, coordinates), file.beside("std_exp.txt")
        values = {"std_exp": table.read_table().reshape(-1)}
        deviations = table.arrays(values, {"std_exp": (columns.shape[1],)})["std_exp"]
    else:
        raise file.refusal("no expressions beside it", "Model_Expression.mat, or Exp_Pca.bin with std_exp.txt")
    return offset, {
        "expression_basis": rows_of_modes(columns, deviations, MM_PER_UM),
        "expression_deviation": deviations.astype(np.float32),
    }


def _binary_modes(file: ModelFile, coordinates: int) -> ndarray:
    """Columns of ``Exp_Pca.bin``: a number of modes (int32), their mean, which is not used, and the modes (float32)."""
    content = file.path.read_bytes()
    modes = int.from_bytes(content[:4], "little")
    expected = 4 + 4 * coordinates * (1 + modes)
    if not modes or len(content) != expected:
        raise file.refusal(f"{len(content)} bytes for {modes} modes", f"{expected}, of {coordinates // 3} vertices")
    values = np.frombuffer(content, "<f4", offset=4 + 4 * coordinates).reshape(modes, coordinates).T
    return file.arrays({"modes": values}, {"modes": (coordinates, modes)})["modes"]
