"""GLB: other programs see the same face, the right way round, under the same camera, with its expressions."""

import json
import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nl3dmm.errors import OutputError, ShapeError
from nl3dmm.export import write_glb
from nl3dmm.geometry.camera import project

RED, GREY = (1.0, 0.0, 0.0), (0.5, 0.5, 0.5)
VALIDATE = """
const data = new Uint8Array(require('fs').readFileSync(process.argv[1]))
require('gltf-validator').validateBytes(data).then(report => console.log(JSON.stringify(report.issues)))
"""


def chunks(path: Path) -> tuple[dict, bytes]:
    """JSON and buffer, read as the specification says."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, kind = struct.unpack_from("<I4s", data, 12)
    assert (kind, json_length % 4) == (b"JSON", 0)
    buffer_length, kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert (kind, 28 + json_length + buffer_length) == (b"BIN\0", len(data))
    return json.loads(data[20 : 20 + json_length]), data[28 + json_length :]


def view_bytes(document: dict, buffer: bytes, view: int) -> bytes:
    place = document["bufferViews"][view]
    return buffer[place["byteOffset"] : place["byteOffset"] + place["byteLength"]]


def read_sparse(document: dict, buffer: bytes, index: int) -> np.ndarray:
    accessor = document["accessors"][index]
    indices, values = accessor["sparse"]["indices"], accessor["sparse"]["values"]
    dense = np.zeros((accessor["count"], 3), np.float32)
    rows = np.frombuffer(view_bytes(document, buffer, indices["bufferView"]), np.uint32)
    assert (np.diff(rows.astype(int)) > 0).all()
    dense[rows] = np.frombuffer(view_bytes(document, buffer, values["bufferView"]), np.float32).reshape(-1, 3)
    return dense


def image_points(document: dict, points_m: np.ndarray) -> np.ndarray:
    """(column, row) in [0, 1] of the camera's picture, by the matrices of the glTF specification."""
    (node,) = [node for node in document["nodes"] if "camera" in node]
    camera = document["cameras"][node["camera"]]
    lens = camera[camera["type"]]
    world = np.array(node["matrix"]).reshape(4, 4).T
    x, y, z, w = np.linalg.inv(world) @ np.c_[points_m, np.ones(len(points_m))].T
    assert np.allclose(w, 1)
    assert (lens["znear"] < -z).all()
    assert (-z < lens["zfar"]).all()
    if camera["type"] == "perspective":
        top = np.tan(lens["yfov"] / 2)
        x, y = x / -z / (top * lens["aspectRatio"]), y / -z / top
    else:
        x, y = x / lens["xmag"], y / lens["ymag"]
    return np.stack([(x + 1) / 2, (1 - y) / 2], 1)


@pytest.fixture(params=["weak_perspective", "perspective"])
def face(request, true_face):
    return true_face(request.param)


def test_an_independent_loader_finds_the_mesh_in_metres(true_face, tmp_path):
    face = true_face()
    face.save(tmp_path / "face.glb")
    (mesh,) = trimesh.load(tmp_path / "face.glb", process=False).geometry.values()
    assert np.allclose(mesh.vertices, face.vertices / 1000, atol=1e-7)
    assert np.array_equal(mesh.faces, face.triangles)
    assert np.allclose(mesh.vertex_normals, face.normals, atol=1e-4)
    assert 0.1 < mesh.extents.max() < 0.3
    assert np.allclose(mesh.visual.uv, face.uv * torch.tensor([1, -1]) + torch.tensor([0, 1]), atol=1e-6)  # it turns v
    texture = np.asarray(mesh.visual.material.baseColorTexture)
    assert np.array_equal(texture, (face.albedo * 255).round().byte().permute(1, 2, 0).numpy())


def test_a_mark_on_the_subjects_left_cheek_is_seen_there(true_face, tmp_path):
    """Left is +x, at the image's right; the mark is below the eye and beside the nose, and nowhere else."""
    face = true_face()
    template = face.model.template
    x, y, _ = template.surface().to_uv_map(template.vertices[None])[0]
    is_cheek = (x > 25) & (x < 50) & (y > -40) & (y < 0)
    albedo = torch.where(is_cheek, torch.tensor(RED)[:, None, None], torch.tensor(GREY)[:, None, None])
    write_glb(tmp_path / "face.glb", replace(face.mesh, vertices=template.vertices, albedo=albedo))
    (mesh,) = trimesh.load(tmp_path / "face.glb", process=False).geometry.values()
    colours = np.asarray(mesh.visual.to_color().vertex_colors)[:, :3]
    is_red = (colours[:, 0] > 200) & (colours[:, 1] < 60)
    marked = mesh.vertices[is_red] * 1000
    assert len(marked) > 50
    assert (marked.min(0)[:2] > [22, -44]).all()
    assert (marked.max(0)[:2] < [53, 4]).all()
    inside = (template.vertices[:, 0] > 28) & (template.vertices[:, 0] < 47)
    inside &= (template.vertices[:, 1] > -36) & (template.vertices[:, 1] < -4)
    assert is_red[inside.numpy()].all()


@pytest.mark.parametrize("frame", ["crop", "photo"])
def test_the_camera_is_the_fitted_one(face, tmp_path, frame):
    """Its picture is the image; of a pinhole camera, one that has the principal point in its middle and the image."""
    if frame == "crop":
        camera, width, height = face.face.camera, 128, 128
        face.save(tmp_path / "face.glb")
    else:
        camera, width, height = face.camera, face.photo.shape[2], face.photo.shape[1]
        write_glb(tmp_path / "face.glb", face.mesh, camera, (height, width))
    document, _ = chunks(tmp_path / "face.glb")
    origin, size = np.zeros(2), np.array([width, height])
    is_pinhole = float(camera.inverse_distance) > 0
    if is_pinhole:
        middle = camera.principal_point[0].numpy()
        half = np.maximum(middle, size - middle)
        origin, size = middle - half, 2 * half
    assert document["cameras"][0]["type"] == ("perspective" if is_pinhole else "orthographic")
    pixels = image_points(document, face.vertices.numpy() / 1000) * size + origin
    assert np.allclose(pixels, project(camera, face.vertices[None])[0][0], atol=5e-3)


def test_a_centred_pinhole_camera_sees_the_image_exactly(true_face, tmp_path):
    face = true_face("perspective")
    middle = torch.full((1, 2), 64.0)
    camera = replace(face.face.camera, principal_point=middle)
    write_glb(tmp_path / "face.glb", face.mesh, camera, (128, 128))
    document, _ = chunks(tmp_path / "face.glb")
    pixels = image_points(document, face.vertices.numpy() / 1000) * 128
    assert np.allclose(pixels, project(camera, face.vertices[None])[0][0], atol=5e-3)


def test_expressions_are_morph_targets(true_face, tmp_path):
    face = true_face()
    face.save(tmp_path / "face.glb")
    document, buffer = chunks(tmp_path / "face.glb")
    (mesh,) = document["meshes"]
    template = face.model.template
    assert tuple(mesh["extras"]["targetNames"]) == template.expression_names
    targets = mesh["primitives"][0]["targets"]
    assert len(targets) == len(mesh["weights"]) == len(template.expression_names)
    assert not any(mesh["weights"])
    for target, basis in zip(targets, template.expression_basis, strict=True):
        moved = read_sparse(document, buffer, target["POSITION"]) * 1000
        assert np.abs(moved - basis.numpy()).max() < 2e-3
        bounds = document["accessors"][target["POSITION"]]
        assert np.allclose([bounds["min"], bounds["max"]], [moved.min(0) / 1000, moved.max(0) / 1000])
    jaw = template.expression_names.index("jawOpen")
    opened = replace(face.geometry, vertices_final=face.geometry.vertices_final + template.expression_basis[jaw])
    turned = face.normals.numpy() + read_sparse(document, buffer, targets[jaw]["NORMAL"])
    assert np.abs(turned - replace(face, geometry=opened).normals.numpy()).max() < 2e-3


def test_names_and_metadata(true_face, tmp_path):
    face = true_face()
    face.save(tmp_path / "face.glb")
    document, buffer = chunks(tmp_path / "face.glb")
    assert document["asset"]["version"] == "2.0"
    assert document["asset"]["generator"].startswith("nl3dmm ")
    assert document["asset"]["extras"] == {"template": "embedded", "crop": vars(face.crop)}
    assert [node["name"] for node in document["nodes"]] == ["face", "camera"]
    (material,) = document["materials"]
    assert "normalTexture" not in material  # one vertex per texel: the mesh is as fine as the map
    (image,) = document["images"]
    assert view_bytes(document, buffer, image["bufferView"]).startswith(b"\x89PNG")


def test_vertices_of_no_triangle_are_left_out(true_face, tmp_path):
    mesh = true_face().mesh
    half = mesh.triangles[mesh.vertices[mesh.triangles][:, :, 0].amin(1) > 0]
    write_glb(tmp_path / "face.glb", replace(mesh, triangles=half))
    (loaded,) = trimesh.load(tmp_path / "face.glb", process=False).geometry.values()
    assert len(loaded.vertices) == len(half.unique())
    assert np.allclose(loaded.triangles, mesh.vertices[half] / 1000, atol=1e-7)


def test_colours_spread_over_empty_texels(true_face, tmp_path):
    """Coarse mip levels at the border of the skin show skin."""
    mesh = true_face().mesh
    mask = torch.zeros_like(mesh.uv_mask)
    mask[20:40, 20:40] = True
    albedo = torch.where(mask, torch.tensor(RED)[:, None, None], torch.zeros(3, 1, 1))
    write_glb(tmp_path / "face.glb", replace(mesh, albedo=albedo, uv_mask=mask))
    (loaded,) = trimesh.load(tmp_path / "face.glb", process=False).geometry.values()
    assert (np.asarray(loaded.visual.material.baseColorTexture) == [255, 0, 0]).all()


@pytest.mark.parametrize("name", ["vertices", "uv", "albedo"])
def test_not_finite(true_face, tmp_path, name):
    broken = getattr(true_face().mesh, name).clone()
    broken[0, 0] = torch.nan
    with pytest.raises(ShapeError, match="got NaN or infinite values"):
        write_glb(tmp_path / "face.glb", replace(true_face().mesh, **{name: broken}))
    assert list(tmp_path.iterdir()) == []


def test_wrong_suffix(true_face, tmp_path):
    with pytest.raises(OutputError, match=r"path: got .*face\.gltf; expected a name that ends in \.glb"):
        write_glb(tmp_path / "face.gltf", true_face().mesh)


def with_relief(mesh):
    """As of a template whose map is finer than its mesh: flat, but there."""
    x = torch.tensor([1.0, 0, 0]).expand(len(mesh.vertices), 3)
    across = torch.nn.functional.normalize(x - (x * mesh.normals).sum(1, keepdim=True) * mesh.normals, dim=1)
    tangents = torch.cat([across, torch.ones(len(x), 1)], 1)
    return replace(mesh, tangents=tangents, relief=torch.tensor([0.0, 0, 1])[:, None, None].expand(mesh.albedo.shape))


def test_a_normal_map_comes_with_tangents(true_face, tmp_path):
    write_glb(tmp_path / "face.glb", with_relief(true_face().mesh))
    document, _ = chunks(tmp_path / "face.glb")
    assert "TANGENT" in document["meshes"][0]["primitives"][0]["attributes"]
    (mesh,) = trimesh.load(tmp_path / "face.glb", process=False).geometry.values()
    assert (np.asarray(mesh.visual.material.normalTexture) == [128, 128, 255]).all()


def khronos_issues(path: Path) -> dict:
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True).returncode:
        pytest.skip("needs node and the npm package gltf-validator (npm install gltf-validator; NODE_PATH=...)")
    done = subprocess.run([node, "-e", VALIDATE, str(path)], capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["fitted", "relief", "bare"])
def test_khronos_rules(face, tmp_path, kind):
    file = tmp_path / "face.glb"
    bare = replace(face.mesh, morphs=face.mesh.morphs[:0], morph_names=())
    if kind == "fitted":
        face.save(file)
    else:
        write_glb(file, bare if kind == "bare" else with_relief(face.mesh))
    issues = khronos_issues(file)
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_a_collapsed_mesh_keeps_the_rules(true_face, tmp_path):
    """No normals, no motion: glTF still wants unit normals and at least one stored displacement."""
    mesh = true_face().mesh
    flat = torch.zeros_like(mesh.vertices)
    write_glb(tmp_path / "face.glb", replace(mesh, vertices=flat, normals=flat, morphs=torch.zeros_like(mesh.morphs)))
    issues = khronos_issues(tmp_path / "face.glb")
    assert issues["numErrors"] == 0, issues["messages"]


def test_no_camera(true_face, tmp_path):
    write_glb(tmp_path / "face.glb", true_face().mesh)
    document, _ = chunks(tmp_path / "face.glb")
    assert "cameras" not in document
    assert len(document["nodes"]) == 1
