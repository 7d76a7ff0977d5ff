"""Importer of FLAME on small files of its layout, and pickles that are refused without being run."""

import pickle

import numpy as np
import pytest
import torch
from face_model_files import (
    EXPRESSIONS,
    IDENTITIES,
    face,
    flame_arrays,
    landmarks,
    pickle_with_code,
    write_embedding,
    write_landmark_table,
)
from scipy import sparse

from nl3dmm.assets.flame import import_flame, read_flame
from nl3dmm.assets.linear_model import face_template
from nl3dmm.assets.load import load_template
from nl3dmm.assets.model_file import ModelFile
from nl3dmm.assets.pickled_arrays import RefusedPickleError, read_pickled
from nl3dmm.errors import AssetError

# As Python 2 and chumpy wrote the published file: new-style objects of protocol 2, text for bytes.
PYTHON2_ARRAY = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x10" + np.array([1.5, -2.0]).tobytes() + b"tb"
)


@pytest.fixture
def model(tmp_path):
    """Writes a model and its landmarks."""

    def write(protocol: int = 2, **changes):
        write_embedding(tmp_path / "landmark_embedding.npy")
        path = tmp_path / "generic_model.pkl"
        path.write_bytes(pickle.dumps(flame_arrays(**changes), protocol=protocol))
        return path

    return write


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_small_model_becomes_the_same_face(model, protocol):
    path = model(protocol, J_regressor=sparse.csc_matrix(np.eye(5)))
    found = read_flame(path, IDENTITIES, any_size=True)
    np.testing.assert_allclose(found.vertices, face().vertices.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.identity_basis, face().identity_basis[:IDENTITIES].numpy(), atol=1e-4)
    np.testing.assert_allclose(found.expression_basis, face().expression_basis[:EXPRESSIONS].numpy(), atol=1e-4)
    np.testing.assert_allclose(found.landmarks(), face().vertices.numpy()[landmarks()], atol=1e-4)
    template = face_template(found, ModelFile(path, ""), (48, 56))
    assert template.expression_names == ("expression_00", "expression_01", "expression_02")
    marks = template.landmarks(template.vertices[None])[0]
    torch.testing.assert_close(marks, face().vertices[landmarks()], atol=1e-3, rtol=0)


def test_the_npz_of_the_same_arrays_is_the_same_model(model, tmp_path):
    path = model()
    np.savez(tmp_path / "flame.npz", **flame_arrays())
    first, second = (read_flame(name, IDENTITIES, any_size=True) for name in (path, tmp_path / "flame.npz"))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.expression_basis, second.expression_basis)
    with pytest.raises(AssetError, match=r"v_template of shape \(1280, 3\); expected \(5023, 3\)"):
        load_template("flame", tmp_path / "flame.npz")


@pytest.mark.parametrize("write", ["npz", "text"])
def test_other_landmark_files(model, tmp_path, write):
    path = model()
    (tmp_path / "landmark_embedding.npy").rename(tmp_path / "old.npy")
    if write == "text":
        write_landmark_table(tmp_path / "landmarks68.txt")
    else:
        values = np.load(tmp_path / "old.npy", allow_pickle=True)[()]
        names = {"lmk_face_idx": values["full_lmk_faces_idx"][0], "lmk_b_coords": values["full_lmk_bary_coords"][0]}
        np.savez(tmp_path / "landmark_embedding.npz", **names)
    found = read_flame(path, IDENTITIES, any_size=True)
    np.testing.assert_allclose(found.landmarks(), face().vertices.numpy()[landmarks()], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f": None}, "got no f; expected v_template, shapedirs, f"),
        ({"f": np.full((9, 3), 1280)}, "f from 1280 to 1280; expected whole numbers from 0 to 1279"),
        ({"shapedirs": np.ones((1279, 3, 7))}, r"shapedirs of shape \(1279, 3, 7\); expected \(1280, 3, 'modes'\)"),
        ({"v_template": np.full((1280, 3), np.nan)}, "v_template empty or with values that are not finite"),
        ({"v_template": "a face"}, "v_template of type str; expected an array of numbers"),
    ],
)
def test_wrong_contents_are_named(model, changes, message):
    with pytest.raises(AssetError, match=message) as caught:
        read_flame(model(**changes), IDENTITIES, any_size=True)
    assert "https://flame.is.tue.mpg.de" in str(caught.value)


def test_wrong_units_are_noticed(model):
    with pytest.raises(AssetError, match=r"outer eye corners 9.*e\+07 mm apart; expected 60 to 130 mm"):
        import_flame(model(v_template=face().vertices.numpy() * 1000), any_size=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_lmk_faces_idx": None}, "only full_lmk_bary_coords, dynamic_lmk_faces_idx; expected full_lmk_faces_idx"),
        ({"full_lmk_faces_idx": np.full((1, 68), 10**6)}, "landmark triangles from 1000000 to 1000000; expected"),
        ({"full_lmk_faces_idx": np.zeros((1, 51))}, r"faces of shape \(51,\); expected \(68,\)"),
        ({"full_lmk_bary_coords": np.ones((1, 68, 3))}, "landmark weights .*; expected 68 times three that sum to 1"),
    ],
)
def test_wrong_landmarks_are_named(model, tmp_path, changes, message):
    path = model()
    write_embedding(tmp_path / "landmark_embedding.npy", **changes)
    with pytest.raises(AssetError, match=message):
        read_flame(path, any_size=True)


def test_missing_landmarks_are_named(model, tmp_path):
    path = model()
    (tmp_path / "landmark_embedding.npy").unlink()
    with pytest.raises(
        AssetError, match=r"no landmarks beside it; expected landmark_embedding\.npy or landmarks68\.txt"
    ):
        read_flame(path, any_size=True)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(model, tmp_path, protocol):
    path, canary = model(), tmp_path / "canary"
    path.write_bytes(pickle_with_code(canary, protocol))
    with pytest.raises(
        AssetError, match=r"a pickle that asks for '\w+\.mkdir'.*; expected a pickled dictionary of arrays"
    ):
        read_flame(path, any_size=True)
    (tmp_path / "landmark_embedding.npy").write_bytes(b"\x93NUMPY\x01\x00\x02\x00  " + path.read_bytes())
    path.write_bytes(pickle.dumps(flame_arrays(), protocol=2))
    with pytest.raises(AssetError, match="a pickle that asks for"):
        read_flame(path, any_size=True)
    assert not canary.exists()
    pickle.loads(pickle_with_code(canary, protocol))  # the pickle works: where it is run, the folder is there
    assert canary.exists()


@pytest.mark.parametrize("name", ["os system", "builtins eval", "builtins getattr", "numpy load", "numpy.testing f"])
def test_any_other_global_is_refused(name):
    module, attribute = name.split()
    pickled = f"c{module}\n{attribute}\n(S'x'\ntR.".encode()
    with pytest.raises(RefusedPickleError, match=f"asks for '{module}.{attribute}', which is not an array"):
        read_pickled(pickled)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02cnumpy\nndarray\n)R.", "calls a type"),
        (b"\x80\x02]q\x00)R.", "calls something that it built"),
        (b"\x80\x02}}b.", "gives a state to something else than an array"),
        (b"\x80\x02\x8a\x01\x01Q.", "opcode BINPERSID"),
        (b"\x80\x02(i__main__\nX\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b".", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02]q\x00h\x00a.", "damaged"),
        (b"\x80\x02cnumpy\ndtype\nU\x02O9K\x00K\x01\x87R.", "an array of type 'O9'"),
        (b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".", "damaged"),
    ],
)
def test_odd_pickles_are_refused(pickled, message):
    with pytest.raises(RefusedPickleError, match=message):
        read_pickled(pickled)


def test_what_python2_and_chumpy_wrote():
    array = PYTHON2_ARRAY[2:]
    chumpy = b"cchumpy.ch\nCh\n)\x81}(U\x01x" + array + b"U\x0b_dirty_varsc__builtin__\nset\n]\x85RU\x04_itrNub"
    matrix = (
        b"cscipy.sparse.csc\ncsc_matrix\n)\x81}(U\x06_shapeK\x02K\x02\x86U\x04data" + array
        + b"U\x07indices(lK\x00aK\x01aU\x06indptr(lK\x00aK\x01aK\x02aub"
    )  # fmt: skip
    read = read_pickled(b"\x80\x02}(U\x01a" + array + b"U\x01b" + chumpy + b"U\x01c" + matrix + b"u.")
    np.testing.assert_array_equal(read["a"], [1.5, -2])
    np.testing.assert_array_equal(read["b"], [1.5, -2])
    np.testing.assert_array_equal(read["c"], np.diag([1.5, -2]))


def test_a_huge_sparse_matrix_is_not_written_out():
    huge = sparse.csc_matrix((10**6, 10**6))
    with pytest.raises(RefusedPickleError, match="a sparse matrix of shape"):
        read_pickled(pickle.dumps(huge))


def test_arrays_of_all_kinds_survive():
    values = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(4, dtype=">i2"),
        "empty": np.zeros((0, 3), np.float32),
        "mask": np.array([True, False]),
        "shared": [np.arange(3)] * 2,
    }
    for protocol in range(1, 6):
        read = read_pickled(pickle.dumps(values, protocol=protocol))
        for name in ("fortran", "swapped", "empty", "mask"):
            np.testing.assert_array_equal(read[name], values[name])
            assert read[name].dtype == values[name].dtype
        assert read["shared"][0] is read["shared"][1]


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 20_000, -1])
def test_cut_files_are_refused(model, tmp_path, kept):
    path = model()
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AssetError, match=r"generic_model\.pkl: got"):
        read_flame(path, any_size=True)
    with pytest.raises(AssetError, match=r"cannot be read"):
        read_flame(tmp_path / "none.pkl", any_size=True)


def test_flipped_bytes_are_read_or_refused():
    """Never another exception, whichever byte is wrong."""
    whole = pickle.dumps(
        {"a": np.arange(5.0), "b": sparse.csc_matrix(np.eye(3)), "c": [1, {"d": (2, None)}]}, protocol=2
    )
    generator = np.random.default_rng(0)
    refused = 0
    for position in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        try:
            read_pickled(bytes(damaged))
        except RefusedPickleError:
            refused += 1
    assert refused > len(whole) / 4
