"""Importer of the GNM head on a small file of its layout."""

import numpy as np
import pytest
import torch
from face_model_files import EXPRESSIONS, IDENTITIES, face, gnm_arrays, landmarks, write_sparse_landmarks

from nl3dmm.assets.gnm import import_gnm, read_gnm
from nl3dmm.assets.load import load_template
from nl3dmm.errors import AssetError


@pytest.fixture
def packed(tmp_path):
    def write(**changes):
        write_sparse_landmarks(tmp_path / "head_sparse_68.txt")
        np.savez_compressed(tmp_path / "gnm_head.npz", **gnm_arrays(**changes))
        return tmp_path / "gnm_head.npz"

    return write


def test_a_small_model_becomes_the_same_face(packed):
    model = read_gnm(packed(), any_size=True)
    count = len(face().vertices)
    np.testing.assert_allclose(model.vertices[:count], face().vertices.numpy(), atol=1e-4)
    np.testing.assert_allclose(model.identity_basis[:, :count], face().identity_basis[:IDENTITIES].numpy(), atol=1e-4)
    assert model.expression_basis.shape == (EXPRESSIONS, count + 3, 3)
    assert (model.triangles == face().triangles.numpy()).all()  # without the tongue
    assert (model.landmark_vertices == landmarks()[:, None]).all()  # the jaw in order


def test_the_template_leaves_the_tongue_out(packed):
    template = import_gnm(packed(), (48, 56), any_size=True)
    assert template.name == "gnm"
    assert len(template.vertices) <= len(face().vertices)
    assert template.expression_names == ("lower_face_000", "lower_face_001", "tongue_000")
    flipped = template.vertices[template.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(flipped, template.vertices, atol=1e-3, rtol=0)
    assert template.mirror[template.mirror].equal(torch.arange(len(template.mirror)))
    assert template.provenance["licence"].startswith("Apache-2.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triangles": None, "mirror_indices": None}, "got no triangles, mirror_indices; expected"),
        ({"mirror_indices": np.zeros(1283, int)}, "mirror_indices that do not lead back; expected pairs"),
        ({"mirror_indices": np.zeros(5, int)}, r"mirror_indices of shape \(5,\); expected \(1283,\)"),
        ({"triangles": np.full((3, 3), -1)}, "triangles from -1 to -1; expected whole numbers from 0 to 1282"),
        ({"expression_names": np.array(["a"])}, r"expression_names of shape \(1,\); expected 3 names"),
        ({"vertex_group_names": np.array(["head", "tongue"])}, "no vertex group 'skin'"),
        ({"expression_basis": np.full((3, 1283, 3), np.nan)}, "expression_basis empty or with values that are not"),
        ({"vertex_groups": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_wrong_contents_are_named(packed, changes, message):
    with pytest.raises(AssetError, match=message) as caught:
        import_gnm(packed(**changes), any_size=True)
    assert "https://github.com/google/GNM" in str(caught.value)


def test_millimetres_for_metres_are_noticed(packed):
    path = packed(template_vertex_positions=1000 * gnm_arrays()["template_vertex_positions"])
    with pytest.raises(AssetError, match=r"outer eye corners 9.*e\+04 mm apart"):
        import_gnm(path, any_size=True)


def test_published_numbers_are_asked_for(packed):
    with pytest.raises(AssetError, match=r"template_vertex_positions of shape \(1283, 3\); expected \(17821, 3\)"):
        load_template("gnm", packed())


def test_missing_and_cut_files_are_refused(packed, tmp_path):
    path = packed()
    (tmp_path / "head_sparse_68.txt").unlink()
    with pytest.raises(AssetError, match=r"head_sparse_68\.txt: got a file that cannot be read"):
        import_gnm(path, any_size=True)
    whole = path.read_bytes()
    for kept in (0, 30, 2000, len(whole) - 10):
        path.write_bytes(whole[:kept])
        with pytest.raises(AssetError, match=r"gnm_head\.npz: got a file that cannot be read"):
            import_gnm(path, any_size=True)
