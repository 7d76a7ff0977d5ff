"""Importer of the Basel Face Model 2017 (``.h5``); 68 landmarks come from a file ``landmarks68.txt`` beside it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy import ndarray

from nl3dmm.assets.linear_model import LinearModel, face_template
from nl3dmm.assets.model_file import Counts, ModelFile, points_of, read_landmark_table, rows_of_modes
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import BackendError

SOURCE = (
    "model2017-1_bfm_nomouth.h5 comes from https://faces.dmi.unibas.ch/bfm/bfm2017.html (account); it has no 68 "
    "landmarks: write the numbers of their vertices, from 0, into landmarks68.txt beside it, one per line."
)
LICENCE = "Basel Face Model licence: research only, no redistribution"
PUBLISHED: Counts = {"coordinates": 3 * 53_149, "triangles": 105_694}
MM_PER_MM, OF_ONE = 1.0, 1.0  # the units of shapes and colours

_LAYOUT = {
    "shape/model/mean": ("coordinates",),
    "shape/model/pcaBasis": ("coordinates", "identity"),
    "shape/model/pcaVariance": ("identity",),
    "expression/model/mean": ("coordinates",),
    "expression/model/pcaBasis": ("coordinates", "expression"),
    "expression/model/pcaVariance": ("expression",),
    "color/model/mean": ("coordinates",),
    "color/model/pcaBasis": ("coordinates", "albedo"),
    "color/model/pcaVariance": ("albedo",),
    "shape/representer/cells": (3, "triangles"),
}


def import_bfm2017(path: str | Path, uv_size: tuple[int, int] = (64, 80), any_size: bool = False) -> FaceTemplate:
    """The face as a template on a cylindrical map of ``uv_size`` (rows, columns).

    Args:
        any_size: accept other numbers of vertices than ``bfm_nomouth`` has, such as the smaller ``face12_nomouth``.

    Raises:
        AssetError: a file is missing, damaged, or not of the published model.
        BackendError: the optional package h5py is not installed.
    """
    return face_template(read_bfm2017(path, any_size), ModelFile(Path(path), SOURCE), uv_size)


def read_bfm2017(path: str | Path, any_size: bool = False) -> LinearModel:
    """The whole model, vertices as in the file."""
    file = ModelFile(Path(path), SOURCE)
    return model_of(file, read_h5(file), None if any_size else PUBLISHED)


def model_of(file: ModelFile, content: Mapping[str, object], counts: Counts | None) -> LinearModel:
    """The model that the datasets of a file (by their path in it) hold."""
    data = file.arrays(content, _LAYOUT, counts)
    means = data["shape/model/mean"].astype(np.float64) + data["expression/model/mean"]
    count = means.size // 3
    landmarks = read_landmark_table(file.beside("landmarks68.txt"), count)
    return LinearModel(
        name="bfm2017",
        vertices=points_of(means, MM_PER_MM),
        triangles=np.ascontiguousarray(file.indices("cells", data["shape/representer/cells"], count).T),
        identity_basis=_modes(data, "shape", MM_PER_MM),
        expression_basis=_modes(data, "expression", MM_PER_MM),
        landmark_vertices=landmarks[0],
        landmark_weights=landmarks[1],
        albedo_mean=points_of(data["color/model/mean"], OF_ONE),
        albedo_basis=_modes(data, "color", OF_ONE),
        licence=LICENCE,
    )


def read_h5(file: ModelFile) -> dict[str, ndarray]:
    """Those of the model's datasets that the file has."""
    try:
        import h5py
    except ImportError as error:
        raise BackendError(
            f"{file.path}: got no package h5py; expected it for .h5 files. Run: pip install h5py"
        ) from error
    try:
        with h5py.File(file.path, "r") as archive:
            items = {name: archive.get(name) for name in _LAYOUT}
            return {name: np.asarray(item) for name, item in items.items() if isinstance(item, h5py.Dataset)}
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise file.refusal(f"a file that cannot be read ({error})", "an HDF5 file") from error


def _modes(data: Mapping[str, ndarray], part: str, unit: float) -> ndarray:
    variance = np.maximum(data[f"{part}/model/pcaVariance"], 0)
    return rows_of_modes(data[f"{part}/model/pcaBasis"], np.sqrt(variance), unit)
