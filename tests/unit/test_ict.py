"""ICT importer on a small file of the same layout, and on the real one where NL3DMM_ICT names it."""

import os

import numpy as np
import pytest
import torch

from nl3dmm.assets import embedded_template, import_ict, load_template, read_template, save_template
from nl3dmm.errors import AssetError

LABELS = ["skin", "forehead", "neck", "nose", "nostril", "eyelid_L", "eyelid_R", "eyeball_L", "eyeball_R", "brow_L",
          "brow_R", "lip_upper", "lip_lower", "lip_inner", "mouth_inner", "ear_L", "ear_R", "chin"]  # fmt: skip
FLIP = torch.tensor([-1.0, 1.0, 1.0])


def packed_model() -> dict[str, np.ndarray]:
    """The embedded face as an ICT file: cm, v up, some vertices and triangles outside the narrow face."""
    face = embedded_template((32, 40))
    extra = 7
    count = len(face.vertices) + extra
    triangles = face.triangles.numpy() + extra  # the first vertices are unused
    nearest = face.landmark_vertices[torch.arange(68), face.landmark_weights.argmax(1)].numpy()
    region = np.zeros(count, np.uint8)
    for name, label in (("left_eye", 7), ("right_eye", 8), ("lips", 11), ("nostrils", 4), ("mouth", 14)):
        region[extra:][face.regions[name].reshape(-1).numpy() > 0.5] = label

    def padded(values):
        return np.concatenate([np.zeros((*values.shape[:-2], extra, values.shape[-1])), values], -2)

    uv = padded(face.uv.numpy() * [1, -1] + [0, 1])
    uv[:extra] = np.nan
    return {
        "v_mean": padded(face.vertices.numpy() / 10).astype(np.float32),
        "faces": np.concatenate([triangles, [[0, 1, 2]]]).astype(np.int32),
        "n_faces_narrow": np.array(len(triangles)),
        "uv_narrow": uv.astype(np.float32),
        "id_basis": padded(face.identity_basis.numpy()[:4] / 10).astype(np.float16),
        "exp_basis": padded(face.expression_basis.numpy()[:3] / 10).astype(np.float16),
        "exp_names": np.array(face.expression_names[:3]),
        "lmk68": (nearest + extra).astype(np.int32),
        "sym": np.concatenate([np.arange(extra), face.mirror.numpy() + extra]).astype(np.int32),
        "region": region,
        "region_names": np.array(LABELS),
    }


@pytest.fixture
def packed(tmp_path):
    def write(**changes):
        data = {key: value for key, value in (packed_model() | changes).items() if value is not None}
        np.savez_compressed(tmp_path / "model.npz", **data)
        return tmp_path / "model.npz"

    return write


def test_small_model_becomes_the_same_face(packed):
    face, template = embedded_template((32, 40)), import_ict(packed(), (48, 56))
    torch.testing.assert_close(template.vertices, face.vertices, atol=1e-3, rtol=1e-5)
    assert torch.equal(template.triangles, face.triangles)
    assert torch.equal(template.mirror, face.mirror)
    torch.testing.assert_close(template.uv, face.uv)
    assert template.uv_size == (48, 56)
    assert not template.is_uv_grid
    assert template.identity_basis.shape == (4, 1280, 3)
    assert template.expression_names == face.expression_names[:3]
    torch.testing.assert_close(template.identity_basis, face.identity_basis[:4], atol=0.01, rtol=2e-3)
    assert template.provenance["licence"].startswith("MIT")


def test_texels_lie_where_the_uv_says(packed):
    template = import_ict(packed(), (48, 56))
    inside = template.uv_mask
    corners = template.uv[template.triangles[template.texel_triangle.clamp(min=0)]]
    uv = (corners * template.texel_barycentric[..., None]).sum(2)
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(56), indexing="ij")
    expected = torch.stack([(columns + 0.5) / 56, (rows + 0.5) / 48], -1)
    assert 0.9 < float(inside.float().mean()) <= 1
    torch.testing.assert_close(uv[inside], expected[inside], atol=1e-4, rtol=0)
    assert bool((template.texel_barycentric[~inside] == 0).all())


def test_regions_come_from_the_labels(packed):
    template = import_ict(packed(), (48, 56))
    columns = torch.arange(56)
    eye = template.regions["left_eye"]
    assert float((eye.sum(0) * columns).sum() / eye.sum()) > 28
    assert float((template.regions["lips"] * template.regions["skin"]).max()) < 0.3
    assert 0.2 < float(template.regions["face"].mean()) < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sym": None, "lmk68": None}, "got no lmk68, sym; expected a packed ICT-FaceKit"),
        ({"lmk68": np.zeros(67, int)}, r"lmk68: shape \(67,\); expected \(68,\)"),
        ({"uv_narrow": np.zeros((3, 2))}, r"uv_narrow: shape \(3, 2\)"),
        ({"lmk68": np.full(68, 10**6)}, r"lmk68: indices 1000000\.\.1000000; expected 0\.\.1286"),
        ({"lmk68": np.zeros(68, int)}, "outside the narrow face"),
        ({"n_faces_narrow": np.array(10**6)}, r"n_faces_narrow: 1000000; expected 1\.\.2419"),
        ({"v_mean": np.full((1287, 3), np.inf)}, "v_mean: values that are not finite"),
    ],
)
def test_wrong_content_is_named(packed, changes, message):
    with pytest.raises(AssetError, match=message):
        import_ict(packed(**changes))


def test_truncated_missing_and_pickled_files_are_refused(packed, tmp_path):
    path = packed()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(AssetError, match="a file that cannot be read"):
        import_ict(path)
    with pytest.raises(AssetError, match="a file that cannot be read"):
        import_ict(tmp_path / "none.npz")
    with pytest.raises(AssetError, match="a file that cannot be read"):
        import_ict(packed(exp_names=np.array([{}, {}, {}], dtype=object)))


def test_load_template_finds_it(packed, tmp_path):
    path = packed()
    template = load_template("ict", path, (48, 56))
    assert template.hash == load_template(path, uv_size=(48, 56)).hash
    save_template(template, tmp_path / "ict.safetensors")
    assert load_template("ict", tmp_path / "ict.safetensors").hash == template.hash


@pytest.mark.skipif("NL3DMM_ICT" not in os.environ, reason="NL3DMM_ICT does not name the packed ICT-FaceKit file")
def test_the_real_model(tmp_path):
    template = import_ict(os.environ["NL3DMM_ICT"], (96, 112))
    assert (len(template.vertices), len(template.triangles)) == (7101, 14062)
    assert (len(template.identity_basis), len(template.expression_basis)) == (100, 53)
    assert float((template.vertices[template.mirror] * FLIP - template.vertices).abs().max()) < 0.05
    torch.testing.assert_close(
        template.uv[template.mirror], template.uv * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    )
    landmarks = template.landmarks(template.vertices[None])[0]
    assert int(landmarks[:, 2].argmax()) == 30
    assert landmarks[45, 0] > 40
    assert (
        template.boxes["left_eye"].column
        == 112 - template.boxes["right_eye"].column - template.boxes["right_eye"].width
    )
    for name, region in template.regions.items():
        assert 0.001 < float(region.mean()) < 1, name
    save_template(template, tmp_path / "ict.safetensors")
    assert read_template(tmp_path / "ict.safetensors").hash == template.hash
