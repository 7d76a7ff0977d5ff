"""A photo in, a face out: with landmarks, with a box, with nothing; from every common kind of file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nl3dmm.data.bank import FaceBank, default_cache
from nl3dmm.data.crop import crop_from_landmarks
from nl3dmm.data.images import read_image, write_png
from nl3dmm.data.landmark_files import read_landmarks
from nl3dmm.evaluation.accuracy import landmark_nme, training_world
from nl3dmm.fit import main
from nl3dmm.fitting.photometric import photometric_errors
from nl3dmm.fitting.photos import fit_latent
from nl3dmm.geometry.camera import project
from nl3dmm.reconstruction import Reconstruction

DATA = Path(__file__).parents[1] / "data"
PHOTO, LANDMARKS = DATA / "astronaut.jpg", DATA / "astronaut.json"
BOX = (179.0, 75.0, 272.0, 178.0)  # brows to chin
STEPS = 60  # a model of 200 steps explains a real face after these
SAVED = {"panel.png", "overlay.png", "face.glb", "face.obj", "face.mtl", "face_albedo.png", "face.json"}
OF_THE_COMMAND = {"status.json", "report.html"}


@pytest.fixture(scope="module")
def result(trained) -> Reconstruction:
    return fit_latent(PHOTO, model=trained, landmarks=LANDMARKS, steps=STEPS)


@pytest.fixture(scope="module")
def known_face(trained):
    """The training face that the encoder alone explains best when its landmarks frame it."""
    bank = FaceBank(training_world(trained), trained.config.data.samples, default_cache())
    faces, model = bank.read(torch.arange(len(bank))), trained.system.model
    crops = [crop_from_landmarks(points, 48) for points in faces.landmarks]
    pictures = torch.stack([crop.image(image) for crop, image in zip(crops, faces.image, strict=True)])
    with torch.no_grad():
        face = model.encode(pictures)
        (errors,) = photometric_errors(model, pictures, [(face, model.decode(face.latents))])
    return faces[int(errors.argmin())]


def drawn_mask(result: Reconstruction) -> torch.Tensor:
    """Photo pixels that the fitted face covers."""
    size = (result.photo.shape[-2], result.photo.shape[-1])
    face = replace(result.face, camera=result.camera)
    albedo = result.geometry.maps.albedo_final[:, None]
    with torch.no_grad():
        return result.model.render(face, result.vertices[None], albedo, size).mask[0]


def test_fields_have_the_documented_shapes(result):
    count = len(result.model.template.vertices)
    assert result.photo.shape == result.overlay.shape == (3, 512, 512)
    assert result.vertices.shape == (count, 3)
    assert result.uv.shape == (count, 2)
    assert result.triangles.shape[1] == 3
    assert int(result.triangles.max()) < count
    assert result.landmarks_3d.shape == (68, 3)
    assert result.landmarks.shape == (68, 2)
    assert result.albedo.shape == (3, 32, 32)
    assert result.panel.shape == (3, 2 * 258, 3 * 258)
    assert result.renderings.final_final.shape == (1, 3, 48, 48)
    for picture in (result.overlay, result.panel, result.albedo):
        assert picture.isfinite().all()
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_photometric_error_falls(result):
    assert result.final_error < 0.9 * result.start_error
    assert result.losses["photo"][-1] < result.losses["photo"][0]
    assert len(result.losses["landmark"]) == STEPS - STEPS // 5 - STEPS * 2 // 5
    assert len(result.losses["photo"]) == STEPS - STEPS // 5
    assert len(result.losses["detail_prior"]) == STEPS * 2 // 5
    assert result.seconds > 0


def test_landmarks_are_those_of_the_photo(result):
    target = read_landmarks(LANDMARKS)
    assert float(landmark_nme(result.landmarks[None], target[None])) < 0.25
    assert float((result.landmarks.mean(0) - target.mean(0)).norm()) < 8


def test_camera_projects_to_photo_pixels(result):
    in_crop, _ = project(result.face.camera, result.landmarks_3d[None])
    torch.testing.assert_close(result.crop.points_to_photo(in_crop[0]), result.landmarks, rtol=1e-4, atol=1e-2)
    everything, _ = project(result.camera, result.vertices[result.triangles.unique()][None])
    rows, columns = drawn_mask(result).nonzero().unbind(1)
    low, high = everything[0].amin(0), everything[0].amax(0)
    assert float(low[0]) - 1 <= float(columns.min()) <= float(columns.max()) <= float(high[0]) + 1
    assert float(low[1]) - 1 <= float(rows.min()) <= float(rows.max()) <= float(high[1]) + 1


def test_overlay_is_the_photo_outside_the_face(result):
    mask = drawn_mask(result)
    assert 1000 < int(mask.sum()) < mask.numel() // 4
    assert torch.equal(result.overlay[:, ~mask], result.photo[:, ~mask])
    assert float((result.overlay - result.photo).abs().amax(0)[mask].gt(0.004).float().mean()) > 0.9


def test_same_input_gives_the_same_bits(result, trained):
    again = fit_latent(PHOTO, model=trained, landmarks=LANDMARKS, steps=STEPS)
    assert torch.equal(again.vertices, result.vertices)
    assert torch.equal(again.albedo, result.albedo)
    assert torch.equal(again.landmarks, result.landmarks)
    assert (again.losses, again.final_error) == (result.losses, result.final_error)


def test_fitting_leaves_the_model_as_it_was(trained):
    before = {name: value.clone() for name, value in trained.system.state_dict().items()}
    fit_latent(PHOTO, model=trained, landmarks=LANDMARKS, steps=STEPS)
    assert all(torch.equal(value, before[name]) for name, value in trained.system.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.system.parameters())
    assert not trained.system.training


def test_saved_files_are_complete(result, tmp_path):
    folder = result.save(tmp_path / "new" / "out")
    assert {path.name for path in folder.iterdir()} == SAVED
    assert torch.allclose(read_image(folder / "overlay.png"), result.overlay, atol=0.5 / 255 + 1e-6)
    assert read_image(folder / "panel.png").shape == result.panel.shape
    assert read_image(folder / "face_albedo.png").shape == result.albedo.shape
    lines = (folder / "face.obj").read_text().splitlines()
    assert sum(line.startswith("v ") for line in lines) == len(result.vertices)
    assert sum(line.startswith("f ") for line in lines) == len(result.triangles)
    assert "mtllib face.mtl" in lines
    assert "map_Kd face_albedo.png" in (folder / "face.mtl").read_text()
    stored = json.loads((folder / "face.json").read_text())
    assert stored["photo_size"] == [512, 512]
    assert stored["photometric_l21"] == result.final_error < stored["photometric_l21_start"]
    torch.testing.assert_close(torch.tensor(stored["landmarks"]), result.landmarks)
    assert len(stored["landmarks_3d_mm"]) == 68
    assert stored["losses"]["photo"] == result.losses["photo"]


def test_saving_twice_replaces(result, tmp_path):
    result.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_box_instead_of_landmarks(trained):
    result = fit_latent(PHOTO, model=trained, box=BOX, steps=STEPS)
    centre = result.landmarks.mean(0)
    assert BOX[0] < centre[0] < BOX[2]
    assert BOX[1] < centre[1] < BOX[3]
    assert "landmark" not in result.losses


def test_without_landmarks_and_box_the_face_is_found(trained, result):
    found = fit_latent(PHOTO, model=trained, steps=0)
    given = read_landmarks(LANDMARKS)
    ours, theirs = found.crop.points_to_crop(given), result.crop.points_to_crop(given)
    assert (ours - theirs).norm(dim=1).mean() < 4  # of 48 px


def test_no_steps_is_the_encoders_estimate(trained, known_face):
    result = fit_latent(known_face.image[0], model=trained, landmarks=known_face.landmarks[0], steps=0)
    picture = result.crop.image(known_face.image[0])[None]
    with torch.no_grad():
        face = trained.system.model.encode(picture)
    assert torch.equal(result.face.latents.shape_latent, face.latents.shape_latent)
    assert torch.equal(result.face.camera.rotation, face.camera.rotation)
    assert result.losses == {}
    assert result.start_error == pytest.approx(result.final_error, abs=1e-4)


def test_landmarks_guide_the_pose(trained, known_face):
    photo, target = known_face.image[0], known_face.landmarks
    errors = [
        float(landmark_nme(fit_latent(photo, model=trained, landmarks=target[0], steps=steps).landmarks[None], target))
        for steps in (0, STEPS)
    ]
    assert errors[1] < 0.7 * errors[0]


def _grey(photo: Image.Image, path: Path) -> Path:
    photo.convert("L").save(path)
    return path


def _transparent(photo: Image.Image, path: Path) -> Path:
    photo.putalpha(255)
    photo.save(path)
    return path


def _sixteen_bit(photo: Image.Image, path: Path) -> Path:
    Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257).save(path)
    return path


@pytest.mark.parametrize("convert", [_grey, _transparent, _sixteen_bit])
def test_kinds_of_files(trained, tmp_path, convert):
    file = convert(Image.open(PHOTO), tmp_path / "photo.png")
    result = fit_latent(file, model=trained, landmarks=LANDMARKS, steps=STEPS)
    assert result.overlay.shape == (3, 512, 512)
    assert result.final_error < result.start_error


def test_rotated_by_exif_is_the_same_photo(trained, result, tmp_path):
    """A camera held sideways: stored turned by 90 degrees, with a note that says so."""
    lossless, exif = tmp_path / "photo.png", Image.Exif()
    exif[0x0112] = 8  # to be turned 90 degrees counter-clockwise when shown
    Image.open(PHOTO).transpose(Image.Transpose.ROTATE_270).save(lossless, exif=exif)
    again = fit_latent(lossless, model=trained, landmarks=LANDMARKS, steps=STEPS)
    assert torch.equal(again.photo, result.photo)
    assert torch.equal(again.vertices, result.vertices)


def test_command_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(PHOTO), "-o", str(out), "--model", str(run.folder), "--landmarks", str(LANDMARKS)]
    assert main([*arguments, "--steps", str(STEPS), "--device", "cpu"]) == 0
    assert {path.name for path in out.iterdir()} == SAVED | OF_THE_COMMAND
    printed = capsys.readouterr().out
    stored = json.loads((out / "face.json").read_text())
    errors = [f"{stored[key]:.3f}" for key in ("photometric_l21_start", "photometric_l21_model", "photometric_l21")]
    assert "{} (encoder), {} (model), {} (with detail), landmarks given".format(*errors) in printed
    assert f"the faces' files are in {out}" in printed


def test_command_line_with_a_box(run, tmp_path):
    out = tmp_path / "out"
    box = ["--box", *(str(value) for value in BOX)]
    assert main([str(PHOTO), "-o", str(out), "--model", str(run.folder), *box, "--steps", str(STEPS)]) == 0
    assert {path.name for path in out.iterdir()} == SAVED | OF_THE_COMMAND


def test_png_and_array_of_one_photo_agree(trained, result, tmp_path):
    write_png(result.photo, tmp_path / "photo.png")
    array = (result.photo * 255).round().byte().permute(1, 2, 0).numpy()
    faces = [fit_latent(source, model=trained, box=BOX, steps=STEPS) for source in (tmp_path / "photo.png", array)]
    assert torch.equal(faces[0].vertices, faces[1].vertices)
