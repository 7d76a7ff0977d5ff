"""Scans of another topology: reading, alignment by landmarks, and fits that find the shape they were made from."""

import numpy as np
import pytest
import torch

from nl3dmm.data.scans import Scan, is_scan_folder, read_scan
from nl3dmm.errors import AssetError
from nl3dmm.evaluation.scan_fit import face_vertices, fit_scan, place, scan_errors
from nl3dmm.geometry.camera import rotation_from_euler
from nl3dmm.model import FaceModel
from nl3dmm.types import Latents


@pytest.fixture(scope="module")
def model(small_model_config, small_template) -> FaceModel:
    """Decoders with random weights in every layer: of fresh ones the ends are 0, and latent 0 stays so."""
    model = FaceModel(small_model_config, small_template).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.shape_decoder.parameters():
            if parameter.dim() > 1:
                torch.nn.init.kaiming_normal_(parameter)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def scanned(model, vertices, seed=0) -> Scan:
    """A mesh in another frame and unit, its vertices in another order."""
    torch.manual_seed(seed)
    turn = rotation_from_euler(*torch.randn(3, 1))
    marks = model.template.landmarks(vertices[None])[0]
    order = torch.randperm(len(vertices))
    return Scan("made", 0.04 * vertices[order] @ turn[0].T + 7, 0.04 * marks @ turn[0].T + 7)


def test_placing_undoes_any_similarity(model):
    vertices = model.template.vertices
    points, marks = place(scanned(model, vertices), model.template.landmarks(vertices[None]))
    torch.testing.assert_close(marks, model.template.landmarks(vertices[None])[0], atol=0.02, rtol=0)
    distances = torch.cdist(vertices, points, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() < 0.05


def test_the_scan_of_a_mesh_is_that_mesh(model):
    vertices = model.template.vertices
    errors = scan_errors(model, vertices[None], scanned(model, vertices))
    assert errors["distance_mm"] < 0.05
    assert errors["landmark_mm"] < 0.05
    assert errors["covered"] == 1


def test_holes_do_not_count(model):
    vertices = model.template.vertices
    scan = scanned(model, vertices)
    axis = scan.landmarks[45] - scan.landmarks[36]
    left = ((scan.points - scan.landmarks[27:31].mean(0)) @ axis) > 0
    errors = scan_errors(model, vertices[None], Scan("half", scan.points[left], scan.landmarks))
    assert errors["covered"] < 0.7
    assert errors["distance_mm"] < 5


@pytest.mark.parametrize("end", ["proxy", "final"])
def test_a_fit_comes_nearer(model, end):
    torch.manual_seed(0)
    latent = torch.randn(1, 8)
    with torch.no_grad():
        target = getattr(model.decode(Latents(latent, latent)), f"vertices_{end}")[0]
    scan = scanned(model, target)
    start, fit = (scan_errors(model, fit_scan(model, scan, steps, end), scan) for steps in (0, 152))
    assert fit["landmark_mm"] < 0.2 * start["landmark_mm"]
    assert fit["nme"] < 0.2 * start["nme"]


def test_the_face_region_is_part_of_the_mesh(model):
    region = face_vertices(model)
    assert 0 < len(region) < len(model.template.vertices)
    assert torch.isin(region, model.template.triangles).all()


def write(folder, points, marks):
    lines = [f"v {x} {y} {z} 0.5 0.5 0.5" for x, y, z in points]
    (folder / "one.obj").write_text("\n".join(["# scan", "vn 0 0 1", "vt 0 0", *lines, "f 1/1/1 2/2/2 3/3/3"]))
    np.save(folder / "marks.npy", marks)


def test_reading_a_folder(tmp_path):
    points, marks = np.random.default_rng(0).normal(size=(80, 3)), np.arange(204.0).reshape(68, 3)
    assert not is_scan_folder(tmp_path)
    write(tmp_path, points, marks)
    scan = read_scan(tmp_path)
    assert is_scan_folder(tmp_path)
    assert scan.name == "one"
    torch.testing.assert_close(scan.points, torch.from_numpy(points).float())
    torch.testing.assert_close(scan.landmarks, torch.from_numpy(marks).float())


@pytest.mark.parametrize(
    ("points", "marks", "message"),
    [
        (np.zeros((80, 3)), np.zeros((67, 3)), r"marks.npy: got \(67, 3\); expected \(68, 3\)"),
        (np.zeros((3, 3)), np.zeros((68, 3)), r"one.obj: got \(3, 3\); expected \(points, 3\)"),
        (np.full((80, 3), np.nan), np.zeros((68, 3)), "one.obj: got .* finite"),
        (np.zeros((80, 3)), np.array([{"a": 1}]), "unreadable scan"),
    ],
)
def test_damaged_scans_are_refused(tmp_path, points, marks, message):
    write(tmp_path, points, marks)
    with pytest.raises(AssetError, match=message):
        read_scan(tmp_path)


def test_a_scan_needs_landmarks(tmp_path):
    (tmp_path / "one.obj").write_text("v 0 0 0")
    with pytest.raises(AssetError, match=r"got 0 files \*.npy; expected one"):
        read_scan(tmp_path)
