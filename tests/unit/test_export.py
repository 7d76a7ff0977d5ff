import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nl3dmm.data.images import read_image
from nl3dmm.errors import OutputError, ShapeError
from nl3dmm.export import write_obj

VERTICES = torch.tensor([[-1.0, 2.0, 0.0], [1.0, 2.0, 0.00001], [-1.0, -2.0, 0.0], [1.0, -2.0, 123.45678]])
TRIANGLES = torch.tensor([[0, 2, 1], [1, 2, 3]])
# Centres of the four corner texels of a 32 x 64 texture, in the order of the vertices.
UV = torch.tensor([[0.5 / 64, 0.5 / 32], [63.5 / 64, 0.5 / 32], [0.5 / 64, 31.5 / 32], [63.5 / 64, 31.5 / 32]])
CORNERS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]


@pytest.fixture
def texture() -> torch.Tensor:
    texture = torch.full((3, 32, 64), 0.5)
    for (row, column), color in zip([(0, 0), (0, -1), (-1, 0), (-1, -1)], CORNERS, strict=True):
        texture[:, row, column] = torch.tensor(color) / 255
    return texture


def read_obj(path: Path) -> dict[str, list[list[str]]]:
    lines: dict[str, list[list[str]]] = {}
    for line in path.read_text().splitlines():
        key, *values = line.split()
        lines.setdefault(key, []).append(values)
    return lines


def test_read_back_as_other_programs_do(tmp_path, texture):
    write_obj(tmp_path / "face.obj", VERTICES, TRIANGLES, UV, texture)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.mtl", "face.obj", "face_albedo.png"]
    obj = read_obj(tmp_path / "face.obj")
    assert np.allclose(np.array(obj["v"], dtype=float), VERTICES.numpy(), atol=1e-5)
    corners = np.array([[corner.split("/") for corner in face] for face in obj["f"]], dtype=int)
    assert np.array_equal(corners[..., 0] - 1, TRIANGLES.numpy())
    assert np.array_equal(corners[..., 0], corners[..., 1])
    (material,) = obj["mtllib"]
    mtl = read_obj(tmp_path / material[0])
    assert mtl["newmtl"] == obj["usemtl"]
    image = np.asarray(Image.open(tmp_path / mtl["map_Kd"][0][0]))
    # OBJ: u to the right, v upwards from the last row.
    u, v = np.array(obj["vt"], dtype=float).T
    sampled = image[np.floor((1 - v) * 32).astype(int), np.floor(u * 64).astype(int)]
    assert sampled.tolist() == CORNERS


def test_tensors_of_other_dtypes_and_with_gradient(tmp_path, texture):
    vertices = VERTICES.double().requires_grad_()
    write_obj(str(tmp_path / "face.OBJ"), vertices, TRIANGLES.int(), UV.half(), texture.requires_grad_())
    assert np.allclose(np.array(read_obj(tmp_path / "face.OBJ")["v"], dtype=float), VERTICES.numpy(), atol=1e-5)


def test_wrong_suffix(tmp_path, texture):
    with pytest.raises(OutputError, match=r"path: got .*face\.ply; expected a name that ends in \.obj"):
        write_obj(tmp_path / "face.ply", VERTICES, TRIANGLES, UV, texture)


@pytest.mark.parametrize("index", [-1, 4])
def test_index_out_of_range(tmp_path, texture, index):
    triangles = TRIANGLES.clone()
    triangles[1, 2] = index
    with pytest.raises(ShapeError, match=r"triangles: got indices from .* to .*; expected 0 to 3"):
        write_obj(tmp_path / "face.obj", VERTICES, triangles, UV, texture)


@pytest.mark.parametrize("broken", ["vertices", "uv"])
def test_non_finite(tmp_path, texture, broken):
    tensors = {"vertices": VERTICES.clone(), "uv": UV.clone()}
    tensors[broken][1, 1] = torch.nan
    with pytest.raises(ShapeError, match="vertices, uv: got NaN or infinite values"):
        write_obj(tmp_path / "face.obj", tensors["vertices"], TRIANGLES, tensors["uv"], texture)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path, texture):
    with pytest.raises(OutputError, match=r"output file: got .*missing"):
        write_obj(tmp_path / "missing" / "face.obj", VERTICES, TRIANGLES, UV, texture)


def test_ply_is_read_by_another_program(true_face, tmp_path):
    face = true_face()
    face.save(tmp_path / "face.ply")
    mesh = trimesh.load(tmp_path / "face.ply", process=False)
    assert np.allclose(mesh.vertices, face.vertices, atol=1e-5)
    assert np.array_equal(mesh.faces, face.triangles)
    assert np.allclose(mesh.vertex_normals, face.normals, atol=1e-4)
    colours = face.albedo.permute(1, 2, 0).flatten(0, 1)  # vertex k is texel k
    assert np.abs(mesh.visual.vertex_colors[:, :3] - (colours * 255).numpy()).max() <= 0.51
    assert b"comment unit: millimetre" in (tmp_path / "face.ply").read_bytes()[:200]


def test_npz_holds_plain_arrays(true_face, tmp_path):
    face = true_face()
    face.save(tmp_path / "face.npz")
    with np.load(tmp_path / "face.npz", allow_pickle=False) as stored:
        assert set(stored) == set(face.arrays())
        assert np.array_equal(stored["vertices_mm"], face.vertices)
        assert np.array_equal(stored["albedo_final"], face.albedo)
        assert str(stored["template"]) == "embedded"


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".npz"])
def test_a_face_that_is_not_finite(true_face, tmp_path, suffix):
    face = true_face()
    vertices = face.geometry.vertices_final.clone()
    vertices[0, 7, 1] = torch.nan
    broken = replace(face, geometry=replace(face.geometry, vertices_final=vertices))
    with pytest.raises(ShapeError, match="got NaN or infinite values; expected finite ones"):
        broken.save(tmp_path / f"face{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_one_file_by_its_suffix(true_face, tmp_path):
    face = true_face()
    for name, files in {"a.GLB": 1, "b.obj": 3, "c.ply": 1, "d.npz": 1, "e.png": 1}.items():
        folder = tmp_path / name[0]
        folder.mkdir()
        assert face.save(folder / name) == folder / name
        assert len(list(folder.iterdir())) == files
    assert read_image(tmp_path / "e" / "e.png").shape == face.panel.shape


def test_a_folder_may_have_a_dot_in_its_name(true_face, tmp_path):
    (tmp_path / "face.v2").mkdir()
    true_face().save(tmp_path / "face.v2")
    names = {"panel.png", "overlay.png", "face.glb", "face.obj", "face.mtl", "face_albedo.png", "face.json"}
    assert {path.name for path in (tmp_path / "face.v2").iterdir()} == names


@pytest.mark.parametrize("name", ["face.fbx", "face.v3"])
def test_unknown_suffix(true_face, tmp_path, name):
    with pytest.raises(OutputError, match=rf"path: got .*{name}; expected a folder, or a file of \.glb, \.obj, \.ply"):
        true_face().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 5 kB; not even pytest's own output, so it must not last."""
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".npz", ".png", ".mp4", ".gif", ""])
def test_full_disk(true_face, tmp_path, suffix):
    path, face = tmp_path / f"face{suffix}", true_face()
    with full_disk(), pytest.raises(OutputError, match=r"output file: got .*which cannot be written"):
        face.turntable(path, frames=20, size=128) if suffix in (".mp4", ".gif") else face.save(path)
    assert not path.is_file()
    assert not [name for name in tmp_path.rglob("*") if name.name.startswith(".nl3dmm")]


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".npz", ".png"])
def test_missing_folder_of_a_face(true_face, tmp_path, suffix):
    with pytest.raises(OutputError, match=r"output file: got .*missing"):
        true_face().save(tmp_path / "missing" / f"face{suffix}")
