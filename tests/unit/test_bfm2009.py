"""Importer of BFM 2009 on small files of its three layouts."""

import numpy as np
import pytest
import torch
from face_model_files import (
    EXPRESSIONS,
    IDENTITIES,
    colours,
    face,
    landmarks,
    write_basel_bfm2009,
    write_front_bfm2009,
    write_trimmed_bfm2009,
)
from scipy.io import loadmat, savemat

from nl3dmm.assets.bfm2009 import import_bfm2009, read_bfm2009
from nl3dmm.assets.load import load_template
from nl3dmm.assets.sheet import template_sheet
from nl3dmm.assets.storage import read_template, save_template
from nl3dmm.errors import AssetError

WRITERS = [write_basel_bfm2009, write_trimmed_bfm2009, write_front_bfm2009]
UV_SIZE = (48, 56)


@pytest.mark.parametrize("write", WRITERS)
def test_a_small_model_becomes_the_same_face(tmp_path, write):
    model = read_bfm2009(write(tmp_path), any_size=True)
    shift = 0.25 if write is write_trimmed_bfm2009 else 0.0  # the mean expression that 3DDFA's file holds
    np.testing.assert_allclose(model.vertices, face().vertices.numpy() + shift, atol=2e-4)
    np.testing.assert_allclose(model.identity_basis, face().identity_basis[:IDENTITIES].numpy(), atol=1e-4)
    np.testing.assert_allclose(model.expression_basis, face().expression_basis[:EXPRESSIONS].numpy(), atol=1e-4)
    assert (model.landmark_vertices == landmarks()[:, None]).all()
    if write is write_trimmed_bfm2009:
        assert model.albedo_mean is None
    else:
        mean, modes = colours()
        np.testing.assert_allclose(model.albedo_mean, mean.reshape(-1, 3), atol=1e-6)
        np.testing.assert_allclose(model.albedo_basis, modes.T.reshape(2, -1, 3), atol=1e-6)


@pytest.mark.parametrize("write", WRITERS)
def test_the_template_is_whole(tmp_path, write):
    """Upright, symmetric, outward, with every texel of the face covered and every region where it belongs."""
    template = import_bfm2009(write(tmp_path), UV_SIZE, any_size=True)
    marks = template.landmarks(template.vertices[None])[0]
    assert marks[45, 0] > 30
    assert marks[8, 1] < marks[27, 1]
    assert int(marks[:, 2].argmax()) == 30
    flipped = template.uv[template.mirror] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    torch.testing.assert_close(flipped, template.uv, atol=1e-4, rtol=0)
    corners = template.vertices[template.triangles]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert float((normals[:, 2] > 0).float().mean()) > 0.8
    assert float(template.uv_mask.float().mean()) > 0.5
    assert int(template.mirror.min()) >= 0
    assert int(template.mirror.max()) < len(template.vertices)
    for name, region in template.regions.items():
        assert 0.001 < float(region.mean()) < 1, name
        assert float(region.min()) >= 0
        assert float(region.max()) <= 1
    columns = torch.arange(UV_SIZE[1])
    assert float((template.regions["left_eye"].sum(0) * columns).sum() / template.regions["left_eye"].sum()) > 28


def test_texels_lie_where_the_uv_says_and_show_the_outermost(tmp_path):
    template = import_bfm2009(write_trimmed_bfm2009(tmp_path), UV_SIZE, any_size=True)
    corners = template.triangles[template.texel_triangle.clamp_min(0)]
    weights = template.texel_barycentric[..., None]
    inside = template.uv_mask
    uv = (template.uv[corners] * weights).sum(2)[inside]
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(56), indexing="ij")
    expected = torch.stack([(columns + 0.5) / 56, (rows + 0.5) / 48], -1)[inside]
    assert float((uv - expected).abs().quantile(0.98)) < 1e-4  # slivers of folded parts: 1/16 texel off
    torch.testing.assert_close(uv, expected, atol=4e-3, rtol=0)
    heights = (template.vertices[corners] * weights).sum(2)[..., 1]
    column = heights[:, 28][inside[:, 28]]
    assert bool((column[:-1] > column[1:]).all())  # downwards the face, row by row


def test_a_saved_template_is_the_same(tmp_path):
    template = import_bfm2009(write_trimmed_bfm2009(tmp_path), UV_SIZE, any_size=True)
    save_template(template, tmp_path / "bfm.safetensors")
    assert read_template(tmp_path / "bfm.safetensors").hash == template.hash
    assert load_template("bfm2009", tmp_path / "bfm.safetensors").hash == template.hash


def test_without_symmetric_pairs_the_nearest_vertex_is_the_mirror(tmp_path):
    paired = import_bfm2009(write_trimmed_bfm2009(tmp_path), UV_SIZE, any_size=True)
    nearest = import_bfm2009(write_trimmed_bfm2009(tmp_path, symlist=None), UV_SIZE, any_size=True)
    flipped = nearest.vertices[nearest.mirror] * torch.tensor([-1.0, 1.0, 1.0])
    assert float((flipped - nearest.vertices).norm(dim=1).median()) < 1.0
    assert len(paired.vertices) == len(nearest.vertices)


@pytest.mark.parametrize("write", WRITERS)
def test_published_numbers_are_asked_for(tmp_path, write):
    expected = {write_basel_bfm2009: 160470, write_trimmed_bfm2009: 159645, write_front_bfm2009: 107127}[write]
    with pytest.raises(AssetError, match=rf"of shape .*; expected \({expected},"):
        load_template("bfm2009", write(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, "got no sigma; expected mu_shape, w, sigma"),
        ({"sigma": np.ones((5, 1))}, r"sigma of shape \(5,\); expected \(4,\)"),
        ({"mu_shape": np.full((3840, 1), np.nan)}, "mu_shape empty or with values that are not finite"),
        ({"mu_shape": np.ones((3838, 1))}, r"w of shape \(3840, 4\); expected \(3838, 'identity'\)"),
        (
            {"keypoints": np.full((1, 68), 1281.0)},
            "keypoints from 1281.0 to 1281.0; expected whole numbers from 1 to 1280",
        ),
        ({"keypoints": np.full((1, 68), 1.5)}, "keypoints from 1.5"),
        ({"keypoints": np.full((1, 68), 7.0)}, "outer eye corners 0 mm apart"),
        ({"tri": np.zeros((3, 10))}, "tri from 0.0 to 0.0; expected whole numbers from 1"),
        ({"tri": np.array([["a", "b"]])}, "tri of type"),
        ({"symlist": np.array([[1.0, 2], [3, 3]])}, "vertices in more than one symmetric pair"),
        ({"w_exp": np.ones((3837, 3))}, r"w_exp of shape \(3837, 3\); expected \(3840, 'expression'\)"),
    ],
)
def test_wrong_contents_are_named(tmp_path, changes, message):
    with pytest.raises(AssetError, match=message) as caught:
        import_bfm2009(write_trimmed_bfm2009(tmp_path, **changes), UV_SIZE, any_size=True)
    assert "https://faces.dmi.unibas.ch" in str(caught.value)


def test_millimetres_for_micrometres_are_noticed(tmp_path):
    path = write_trimmed_bfm2009(tmp_path, mu_shape=face().vertices.numpy().reshape(-1, 1))
    with pytest.raises(
        AssetError, match=r"outer eye corners 0\.0\d+ mm apart; expected 60 to 130 mm, as in the published"
    ):
        import_bfm2009(path, UV_SIZE, any_size=True)


def test_a_face_that_looks_backwards_is_noticed(tmp_path):
    turned = 1000 * face().vertices.numpy() * [-1, 1, -1]
    path = write_trimmed_bfm2009(tmp_path, mu_shape=turned.reshape(-1, 1))
    with pytest.raises(AssetError, match=r"no upright face looking along \+z"):
        import_bfm2009(path, UV_SIZE, any_size=True)


@pytest.mark.parametrize("name", ["model_info.mat", "std_exp.txt"])
def test_missing_companions_are_named(tmp_path, name):
    path = write_basel_bfm2009(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(AssetError, match=rf"{name}: got a file that cannot be read"):
        import_bfm2009(path, UV_SIZE, any_size=True)


def test_missing_expressions_are_named(tmp_path):
    path = write_basel_bfm2009(tmp_path)
    (tmp_path / "Exp_Pca.bin").unlink()
    with pytest.raises(AssetError, match=r"no expressions beside it; expected Model_Expression\.mat, or Exp_Pca\.bin"):
        import_bfm2009(path, UV_SIZE, any_size=True)


@pytest.mark.parametrize("kept", [0, 3, 4, 1000, -4])
def test_a_cut_binary_of_expressions_is_refused(tmp_path, kept):
    path = write_basel_bfm2009(tmp_path)
    binary = tmp_path / "Exp_Pca.bin"
    binary.write_bytes(binary.read_bytes()[:kept])
    with pytest.raises(AssetError, match=r"Exp_Pca\.bin: got \d+ bytes for \d+ modes; expected \d+, of 1280 vertices"):
        import_bfm2009(path, UV_SIZE, any_size=True)


@pytest.mark.parametrize("kept", [0, 100, 128, 5000, 60_000])
@pytest.mark.parametrize("write", WRITERS)
def test_cut_files_are_refused(tmp_path, write, kept):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AssetError, match=rf"{path.name}: got"):
        import_bfm2009(path, UV_SIZE, any_size=True)


def test_other_files_are_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"something": np.ones(3)})
    with pytest.raises(AssetError, match="got none of shapeMU, mu_shape, meanshape; expected a Basel Face Model 2009"):
        import_bfm2009(tmp_path / "a.mat")
    with pytest.raises(AssetError, match="cannot be read"):
        import_bfm2009(tmp_path / "none.mat")
    assert "something" in loadmat(tmp_path / "a.mat")


def test_colours_go_with_the_template(tmp_path):
    """Mean and modes of albedo keep their vertices, through a file too; a picture of it can be drawn."""
    model = read_bfm2009(write_front_bfm2009(tmp_path), any_size=True)
    template = import_bfm2009(write_front_bfm2009(tmp_path), UV_SIZE, any_size=True)
    nearest = torch.cdist(template.vertices, torch.from_numpy(model.vertices)).argmin(1)
    assert template.albedo_mean.equal(torch.from_numpy(model.albedo_mean)[nearest])
    assert template.albedo_basis.equal(torch.from_numpy(model.albedo_basis)[:, nearest])
    save_template(template, tmp_path / "face.safetensors")
    loaded = read_template(tmp_path / "face.safetensors")
    assert loaded.albedo_basis.equal(template.albedo_basis)
    assert loaded.hash == template.hash
    without = import_bfm2009(write_trimmed_bfm2009(tmp_path), UV_SIZE, any_size=True)
    assert without.albedo_mean is None
    assert without.to("cpu").albedo_basis is None
    assert template_sheet(loaded).std() > 10
