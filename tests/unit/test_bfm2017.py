"""Importer of BFM 2017 on a small file of its layout; from the file itself where h5py is installed."""

import sys

import h5py
import numpy as np
import pytest
from face_model_files import EXPRESSIONS, IDENTITIES, bfm2017_datasets, colours, face, landmarks, write_landmark_table

from nl3dmm.assets.bfm2017 import PUBLISHED, SOURCE, import_bfm2017, model_of
from nl3dmm.assets.load import load_template
from nl3dmm.assets.model_file import ModelFile
from nl3dmm.errors import AssetError, BackendError

NAME = "model2017-1_bfm_nomouth.h5"


@pytest.fixture
def file(tmp_path):
    write_landmark_table(tmp_path / "landmarks68.txt")
    return ModelFile(tmp_path / NAME, SOURCE)


def test_a_small_model_becomes_the_same_face(file):
    model = model_of(file, bfm2017_datasets(), None)
    np.testing.assert_allclose(model.vertices, face().vertices.numpy(), atol=1e-4)
    np.testing.assert_allclose(model.identity_basis, face().identity_basis[:IDENTITIES].numpy(), atol=1e-4)
    np.testing.assert_allclose(model.expression_basis, face().expression_basis[:EXPRESSIONS].numpy(), atol=1e-4)
    np.testing.assert_allclose(model.albedo_mean, colours()[0].reshape(-1, 3), atol=1e-6)
    np.testing.assert_allclose(model.albedo_basis, colours()[1].T.reshape(2, -1, 3), atol=1e-6)
    assert (model.triangles == face().triangles.numpy()).all()
    assert (model.landmark_vertices == landmarks()[:, None]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color__model__mean": None}, "got no color/model/mean; expected shape/model/mean"),
        ({"shape__model__pcaVariance": np.ones(3)}, r"shape/model/pcaVariance of shape \(3,\); expected \(4,\)"),
        ({"shape__model__mean": np.full(3840, np.inf)}, "shape/model/mean empty or with values that are not finite"),
        (
            {"shape__representer__cells": np.full((3, 5), 1280)},
            "cells from 1280 to 1280; expected whole numbers from 0",
        ),
        ({"expression__model__mean": np.ones(3837)}, r"expression/model/mean of shape \(3837,\); expected \(3840,\)"),
    ],
)
def test_wrong_contents_are_named(file, changes, message):
    with pytest.raises(AssetError, match=message) as caught:
        model_of(file, bfm2017_datasets(**changes), None)
    assert "bfm2017.html" in str(caught.value)


def test_published_numbers_are_asked_for(file):
    with pytest.raises(AssetError, match=r"shape/model/mean of shape \(3840,\); expected \(159447,\)"):
        model_of(file, bfm2017_datasets(), PUBLISHED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"landmarks68\.txt: got a file that cannot be read"),
        ("1\n" * 67, r"table of shape \(67, 1\); expected 68 lines of a vertex, or of three with weights"),
        ("1280\n" * 68, "landmarks from 1280.0 to 1280.0; expected whole numbers from 0 to 1279"),
        ("nose\n" * 68, "cannot be read"),
        ("nan\n" * 68, "expected finite numbers"),
        ("1 0.5 2 0.5 3 0.5\n" * 68, "expected 68 times three that sum to 1"),
    ],
)
def test_landmarks_are_asked_for(file, text, message):
    table = file.path.with_name("landmarks68.txt")
    table.unlink()
    if text is not None:
        table.write_text(text, encoding="utf-8")
    with pytest.raises(AssetError, match=message) as caught:
        model_of(file, bfm2017_datasets(), None)
    assert "landmarks68.txt beside it" in str(caught.value)


def test_landmarks_may_lie_between_vertices(file):
    rows = "".join(f"{vertex} 0.25 {vertex} 0.25 {vertex} 0.5\n" for vertex in landmarks())
    file.path.with_name("landmarks68.txt").write_text(rows, encoding="utf-8")
    model = model_of(file, bfm2017_datasets(), None)
    np.testing.assert_allclose(model.landmarks(), face().vertices.numpy()[landmarks()], atol=1e-3)


def test_without_h5py_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)  # as Python marks a module that cannot be imported
    with pytest.raises(BackendError, match=r"got no package h5py; expected it for \.h5 files\. Run: pip install h5py"):
        load_template("bfm2017", file.path)


def test_the_file_itself(file):
    with h5py.File(file.path, "w") as archive:
        for name, values in bfm2017_datasets().items():
            archive[name] = values
    template = import_bfm2017(file.path, (48, 56), any_size=True)
    assert template.name == "bfm2017"
    assert len(template.identity_basis) == IDENTITIES
    with pytest.raises(AssetError, match=r"expected \(159447,\)"):
        load_template("bfm2017", file.path)
    file.path.write_bytes(file.path.read_bytes()[:3000])
    with pytest.raises(AssetError, match="cannot be read"):
        import_bfm2017(file.path, any_size=True)
