"""``evaluate texture``, ``shape``, ``disentangle``: the command lines, what they store, and what the figures mean."""

import json
import math
import shutil
import subprocess
import sys

import numpy
import pytest
import torch
from aflw2000_files import write_face

from nl3dmm.errors import ConfigError
from nl3dmm.evaluate import main
from nl3dmm.evaluation.accuracy import Protocol, face_errors
from nl3dmm.evaluation.accuracy import test_world as unseen_world
from nl3dmm.evaluation.disentangle import (
    SIDE_YAW,
    disentangle,
    end_errors,
    light_against_person,
    light_free,
    residual_energies,
    side_faces,
)
from nl3dmm.evaluation.measures import measurement_file
from nl3dmm.evaluation.representation import open_faces, shape, texture
from nl3dmm.geometry.camera import project

SMALL = Protocol(faces=4, latent_steps=6, batch_size=4, camera="mixed")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """A copy of the run, because results are stored in it."""
    return shutil.copytree(run.folder, tmp_path_factory.mktemp("represented") / "run")


@pytest.fixture(scope="module")
def world(trained):
    return unseen_world(trained, SMALL)


@pytest.fixture(scope="module")
def first(world):
    return world.sample(torch.arange(4))


def stored(folder, name, data) -> str:
    return measurement_file(folder / "checkpoints" / "last.ckpt", name, str(data)).read_text()


@pytest.mark.parametrize(("name", "stages"), [("texture", ["truth", "encoder"]), ("shape", ["mean_face"])])
def test_command_line(folder, capsys, name, stages):
    assert main([name, str(folder), "--faces", "3", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    target = folder / "checkpoints" / f"last.{name}.world.json"
    assert str(target) in printed
    assert f"{name}: 3 unseen face(s) of world, 2 latent steps" in printed
    result = json.loads(target.read_text())
    assert list(result["errors"]) == [*stages, "proxy", "final"]
    assert result["protocol"]["data"] == "world"
    assert result["protocol"]["latent_steps"] == 2
    assert result["protocol"]["seed"] == 1_000_003
    for stage, errors in result["errors"].items():
        for metric, value in errors.items():
            faces = result["per_face"][stage][metric]
            assert len(faces) == 3
            assert value == pytest.approx(sum(faces) / 3, rel=1e-4, abs=1e-6)
            assert f"{value:.4f}" in printed


def test_command_line_of_disentangling(folder, capsys):
    assert main(["disentangle", str(folder), "--faces", "2", "--steps", "0"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((folder / "checkpoints" / "last.disentangle.world.json").read_text())
    assert list(result["errors"]) == ["light_free", "disentangling", "ends", "residual_symmetry"]
    assert not [name for name in result["ratios"] if name.startswith("fitted")]
    for name, value in result["ratios"].items():
        assert math.isfinite(value)
        assert name in printed


def test_help_explains_without_torch():
    code = "import sys; from nl3dmm.evaluate import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    for words in (["--help"], ["texture", "--help"], ["shape", "--help"], ["disentangle", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "data: got nowhere; expected 'world', a folder with truth.npz, or one of AFLW2000-3D"),
        (["--faces", "0"], "faces: got 0"),
        (["--steps", "-1"], "latent steps: got -1"),
        (["--camera", "mixed"], "unrecognized arguments: --camera"),
    ],
)
def test_bad_arguments(run, error, arguments, message):
    assert message in error(main(["texture", str(run.folder), *arguments]))


def test_missing_checkpoint(tmp_path, error):
    assert "where no checkpoint is" in error(main(["shape", str(tmp_path / "none")]))


def test_texture_steps_help_and_the_truth_is_the_floor(trained):
    errors = texture(trained, Protocol(faces=4, latent_steps=30, batch_size=4, camera="mixed"))["errors"]
    assert errors["truth"]["l21"] < errors["final"]["l21"] < 0.95 * errors["encoder"]["l21"]
    assert errors["truth"]["detail_recovered"] == pytest.approx(1)
    assert abs(errors["final"]["detail_recovered"]) < 0.5


def test_shape_steps_help(trained):
    errors = shape(trained, Protocol(faces=4, latent_steps=40, batch_size=4, camera="mixed"))["errors"]
    assert errors["final"]["nme"] < errors["mean_face"]["nme"]


def test_batches_change_nothing(trained):
    whole, split = (
        shape(trained, Protocol(faces=4, latent_steps=2, batch_size=size, camera="mixed"))["errors"] for size in (4, 3)
    )
    for stage, errors in whole.items():
        assert errors == pytest.approx(split[stage], rel=1e-2)


def test_progress_reaches_the_end(trained):
    seen = []
    shape(
        trained,
        Protocol(faces=3, latent_steps=0, batch_size=2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 3), (3, 3)]


def test_world_faces_are_the_unseen_ones(trained, world):
    faces = open_faces(trained, SMALL)
    assert (faces.name, faces.count) == ("world", 4)
    assert faces.sample(torch.arange(1)).image.equal(world.sample(torch.arange(1)).image)


def test_a_model_that_sees_nothing_moves_nothing(trained, world, monkeypatch):
    """With the same face for every image no light gets into the albedo, and no person either."""
    model = trained.system.model
    encode = model.encode
    grey = torch.full((4, 3, 48, 48), 0.5)
    monkeypatch.setattr(model, "encode", lambda image: encode(grey[: len(image)]))
    free = light_free(model, world, torch.arange(4), 0)
    assert free["encoder"].max() == 0
    assert free["input"].min() > 0.02
    moved = light_against_person(model, world, torch.arange(4), 0)
    assert moved["encoder_light"].max() == moved["encoder_person"].max() == 0
    assert moved["true_person"].min() > 0.02


def test_stages_of_the_latent_steps(trained, world):
    model = trained.system.model
    assert set(light_free(model, world, torch.arange(2), 2)) == {"input", "encoder", "fitted"}
    moved = set(light_against_person(model, world, torch.arange(2), 2))
    assert moved == {"true_person", "encoder_light", "encoder_person", "fitted_light", "fitted_person"}


def test_photometric_error_of_the_finals_is_the_evaluations(trained, world, first):
    model = trained.system.model
    errors = end_errors(model, world, torch.arange(4), 0, torch.zeros(3, 32, 32))
    with torch.no_grad():
        face = model.encode(first.image)
    torch.testing.assert_close(errors["encoder_final_final"], face_errors(model, face, first)["photo"])


def test_residual_energy_of_a_symmetric_residual(trained, world, monkeypatch):
    """A residual that is its own mirror image has equal energies on both sides, whatever is hidden."""
    model, decode = trained.system.model, trained.system.model.decode

    def symmetric(latents):
        geometry = decode(latents)
        bump = torch.linspace(-1, 1, 32).abs().expand(len(latents.shape_latent), 3, 32, 32)
        object.__setattr__(geometry.maps, "shape_final", geometry.maps.shape_proxy + bump)
        return geometry

    monkeypatch.setattr(model, "decode", symmetric)
    side_world, sides = side_faces(trained, SMALL)
    energies = residual_energies(model, side_world, sides)
    torch.testing.assert_close(energies["hidden"], energies["mirrored"], rtol=1e-3, atol=1e-6)
    assert energies["hidden_share"].min() > 0.1


def test_side_faces_are_turned_to_either_side(trained):
    wanted = Protocol(faces=12, camera="mixed")
    world, sides = side_faces(trained, wanted)
    rotation = world.camera(sides).rotation
    yaw = torch.rad2deg(torch.asin(-rotation[:, 2, 0]))
    assert len(sides) == 12
    assert ((yaw.abs() >= SIDE_YAW[0]) & (yaw.abs() <= SIDE_YAW[1] + 0.01)).all()
    assert yaw.min() < 0 < yaw.max()
    assert side_faces(trained, wanted)[1].equal(sides)


def test_disentangling_is_the_mean_of_its_parts(trained, world):
    result = disentangle(trained, Protocol(faces=3, latent_steps=0, batch_size=2, camera="mixed"))
    moved = light_against_person(trained.system.model, world, torch.arange(3), 0)
    errors = result["errors"]["disentangling"]
    for name, value in moved.items():
        assert errors[name] == pytest.approx(float(value.mean()), rel=1e-3)
    ratio = errors["encoder_light"] / errors["encoder_person"]
    assert result["ratios"]["encoder: light over person"] == pytest.approx(ratio)


def test_nothing_to_measure_is_refused(trained):
    with pytest.raises(ConfigError, match="faces: got 0"):
        texture(trained, Protocol(faces=0))


def test_shape_of_a_scan(folder, trained, tmp_path, capsys):
    vertices = trained.template.vertices
    rows = [f"v {x} {y} {z}" for x, y, z in (0.1 * vertices + 3).tolist()]
    (tmp_path / "person.obj").write_text("\n".join(rows))
    numpy.save(tmp_path / "marks.npy", (0.1 * trained.template.landmarks(vertices[None])[0] + 3).numpy())
    assert main(["shape", str(folder), "--data", str(tmp_path), "--steps", "5"]) == 0
    assert "shape: 1 unseen face(s) of person, 5 latent steps" in capsys.readouterr().out
    result = json.loads(stored(folder, "shape", tmp_path))
    assert list(result["errors"]) == ["mean_face", "proxy", "final"]
    assert result["errors"]["mean_face"]["distance_mm"] < 0.05
    assert "nearest scan point" in result["alignment"]


@pytest.fixture(scope="module")
def annotated(trained, tmp_path_factory):
    """Three drawn photos of the mean face in the layout of AFLW2000-3D, one per yaw bin."""
    folder = tmp_path_factory.mktemp("photos") / "aflw"
    folder.mkdir()
    marks = trained.template.landmarks(trained.template.vertices[None])[0].cpu().numpy()
    for number, yaw in enumerate((10.0, -40.0, 70.0)):
        write_face(folder, f"image{number}", marks, (5.0, yaw, 3.0))
    return folder


def test_annotated_photos_get_their_own_camera_and_mesh(trained, annotated):
    """The points are the mean face's: a model that can reach it is laid on them, with the annotated pose."""
    faces = open_faces(trained, SMALL, annotated)
    assert (faces.name, faces.count) == ("aflw", 3)
    assert {name: members.tolist() for name, members in faces.groups().items()} == {
        "yaw 0-30": [0],
        "yaw 30-60": [1],
        "yaw 60-90": [2],
    }
    given, batch = faces.photos.sample(torch.arange(3)), faces.sample(torch.arange(3))
    landmarks, _ = project(batch.camera, trained.template.landmarks(batch.vertices))
    assert (landmarks - batch.landmarks).norm(dim=-1).mean() < 1
    torch.testing.assert_close(batch.camera.rotation, given.camera.rotation, atol=0.05, rtol=0)
    assert batch.mask.equal(given.mask)
    assert batch.albedo is None


def test_texture_of_annotated_photos(folder, annotated, capsys):
    assert main(["texture", str(folder), "--data", str(annotated), "--steps", "20"]) == 0
    printed = capsys.readouterr().out
    assert "texture: 3 unseen face(s) of aflw, 20 latent steps" in printed
    assert "yaw 30-60: 1 face(s)" in printed
    result = json.loads(stored(folder, "texture", annotated))
    assert (result["protocol"]["faces"], result["protocol"]["faces_asked"]) == (3, 64)
    assert result["truth"].startswith("pseudo: 68 points of a Basel-model fit")
    assert list(result["errors"]) == ["encoder", "proxy", "final"]
    for errors in result["errors"].values():
        assert list(errors) == ["l21", "landmark_nme", "landmark_nme_inner"]
    assert result["errors"]["final"]["l21"] < result["errors"]["encoder"]["l21"]
    side = result["groups"]["yaw 60-90"]
    assert side["faces"] == 1
    assert side["errors"]["final"]["l21"] == pytest.approx(result["per_face"]["final"]["l21"][2])


def test_shape_of_annotated_photos(folder, annotated):
    assert main(["shape", str(folder), "--data", str(annotated), "--steps", "5", "--faces", "2"]) == 0
    result = json.loads(stored(folder, "shape", annotated))
    assert result["protocol"]["data"] == "aflw"
    assert list(result["groups"]) == ["yaw 0-30", "yaw 30-60"]
    assert list(result["errors"]) == ["mean_face", "proxy", "final"]
    assert list(result["errors"]["final"]) == ["landmark_nme_3d", "landmark_nme_3d_inner"]
    assert result["errors"]["mean_face"]["landmark_nme_3d"] < 1e-3


def test_a_folder_called_world_is_not_the_world(folder, annotated, tmp_path, monkeypatch):
    """Neither in the file's name nor where the working folder has one."""
    assert main(["shape", str(folder), "--faces", "1", "--steps", "0"]) == 0
    before = stored(folder, "shape", "world")
    place = shutil.copytree(annotated, tmp_path / "world")
    assert main(["shape", str(folder), "--data", str(place), "--faces", "1", "--steps", "0"]) == 0
    assert stored(folder, "shape", "world") == before
    assert "landmark_nme_3d" in stored(folder, "shape", place)
    (place / "person.obj").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["shape", str(folder), "--data", "world", "--faces", "1", "--steps", "0"]) == 0
    assert json.loads(stored(folder, "shape", "world"))["errors"] == json.loads(before)["errors"]


def test_damaged_annotations_end_the_command(run, annotated, tmp_path, error):
    broken = shutil.copytree(annotated, tmp_path / "broken")
    (broken / "image1.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    assert "image1.mat: got a file that cannot be read" in error(
        main(["shape", str(run.folder), "--data", str(broken)])
    )
