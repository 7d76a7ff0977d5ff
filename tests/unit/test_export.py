from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.mtl", "face.obj", "face.png"]
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
