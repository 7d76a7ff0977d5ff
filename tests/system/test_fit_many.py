"""Several photos: a status for each, a report of all, shared latents, videos, interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from nl3dmm import FitFailure, PhotoInput, Reconstruction, fit_latent
from nl3dmm.data.images import read_image, write_png
from nl3dmm.errors import ConfigError, ImageError, NoFaceError, ShapeError
from nl3dmm.fit import SOME_FAILED, main

DATA = Path(__file__).parents[1] / "data"
PHOTO, LANDMARKS = DATA / "astronaut.jpg", DATA / "astronaut.json"
FILES = {"panel.png", "overlay.png", "face.json"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two photos of one face with landmarks beside them, a damaged file, and a wall."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("first", "second"):
        shutil.copy(PHOTO, folder / f"{name}.jpg")
        shutil.copy(LANDMARKS, folder / f"{name}.json")
    (folder / "damaged.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    write_png(torch.full((3, 120, 160), 0.6), folder / "wall.png")
    return folder


def status_of(folder: Path) -> dict:
    stored = json.loads((folder / "status.json").read_text())
    return {line["name"]: line for line in stored["results"]} | {"all": stored}


def test_every_photo_has_a_status_and_the_good_ones_have_files(photos, run, tmp_path, capsys):
    code = main([str(photos), "-o", str(tmp_path), "--model", str(run.folder), "--steps", "8"])
    assert code == SOME_FAILED
    status = status_of(tmp_path)
    assert {name: line["status"] for name, line in status.items() if name != "all"} == {
        "first": "ok",
        "second": "ok",
        "damaged": "bad_image",
        "wall": "no_face",
    }
    assert (status["all"]["photos"], status["all"]["done"], status["all"]["fitted"]) == (4, 4, 2)
    assert "no face found in 160 x 120 px" in status["wall"]["message"]
    assert "damaged" in status["damaged"]["message"]
    for name in ("first", "second"):
        assert {path.name for path in (tmp_path / name).iterdir()} >= FILES
        assert status[name]["folder"] == name
    assert not (tmp_path / "wall").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("first", "second", "damaged", "wall"))
    printed = capsys.readouterr().out
    assert "2 of 4 fitted" in printed
    assert "wall: no_face: image: no face found" in printed


def test_patterns_and_one_name_in_two_folders(photos, run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("first.jpg", "first.json"):
        shutil.copy(photos / name, other / name)
    arguments = [str(photos / "f*.jpg"), str(other), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--model", str(run.folder), "--steps", "0"]) == 0
    status = status_of(tmp_path / "out")
    assert set(status) == {"first", "first-2", "all"}
    assert status["first-2"]["source"] == str(other / "first.jpg")


def test_names_stay_apart_and_may_hold_dots_and_brackets(photos, run, tmp_path):
    """A folder is a folder, whatever its name looks like, and a pattern may match one whose name is a pattern too."""
    for name in ("x[1]/a.jpg", "x[2]/a-2.jpg", "x[2]/A.jpg", "x[2]/scan.png.jpg"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "first.jpg", file)
        shutil.copy(photos / "first.json", file.with_suffix(".json"))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "x*"), "-o", str(out), "--model", str(run.folder), "--steps", "0"]
    assert main(arguments) == 0
    names = set(status_of(out)) - {"all"}
    assert len(names) == 4
    assert {path.name for path in out.iterdir() if (path / "panel.png").is_file()} == names
    assert "scan.png" in names


def test_what_was_written_before_is_not_fitted(photos, run, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    arguments = [str(folder), "-o", str(folder / "out"), "--model", str(run.folder), "--steps", "0"]
    for _ in range(2):
        assert main(arguments) == SOME_FAILED
    assert status_of(folder / "out")["all"]["photos"] == 4


def test_the_status_of_an_earlier_run_does_not_outlive_a_failure(photos, run, tmp_path, capsys):
    arguments = ["-o", str(tmp_path), "--model", str(run.folder), "--steps", "0"]
    assert main([str(photos / "first.jpg"), *arguments]) == 0
    assert main([str(photos / "wall.png"), *arguments]) == 1
    assert status_of(tmp_path)["wall"]["status"] == "no_face"
    assert "error: image: no face found" in capsys.readouterr().err


def test_landmarks_beside_a_photo_are_used_with_a_mask_too(photos, run, tmp_path):
    """The detector would find other points."""
    write_png(torch.ones(3, 512, 512), tmp_path / "mask.png")
    arguments = [str(photos / "first.jpg"), "--model", str(run.folder), "--steps", "0"]
    results = []
    for more in (["--landmarks", str(LANDMARKS)], [], ["--mask", str(tmp_path / "mask.png")]):
        assert main([*arguments, *more, "-o", str(tmp_path / "out")]) == 0
        results.append(json.loads((tmp_path / "out" / "face.json").read_text())["landmarks"])
    assert results[0] == results[1] == results[2]


def test_landmarks_of_one_photo_do_not_fit_several(photos, run, tmp_path, capsys):
    arguments = [str(photos), "-o", str(tmp_path / "out"), "--model", str(run.folder), "--landmarks", str(LANDMARKS)]
    assert main(arguments) == 1
    assert "got one for 4 photos; expected one photo" in capsys.readouterr().err
    assert main([str(photos / "x*.jpg"), "-o", str(tmp_path / "out"), "--model", str(run.folder)]) == 1
    assert "got no such photos" in capsys.readouterr().err


def test_a_list_gives_a_list_with_failures_in_their_places(trained):
    results = fit_latent([PHOTO, torch.full((3, 90, 90), 0.5), b"nothing"], model=trained, steps=2)
    assert [result.status for result in results] == ["ok", "no_face", "bad_image"]
    assert isinstance(results[0], Reconstruction)
    assert isinstance(results[1], FitFailure)
    assert results[0].source == str(PHOTO)


def test_a_single_bad_photo_is_an_error(trained):
    with pytest.raises(NoFaceError, match="no face found in 90 x 90 px"):
        fit_latent(torch.full((3, 90, 90), 0.5), model=trained, steps=2)
    with pytest.raises(ImageError):
        fit_latent(b"nothing", model=trained)
    with pytest.raises(ShapeError, match="landmarks: got one for 2 photos"):
        fit_latent([PHOTO, PHOTO], model=trained, landmarks=LANDMARKS)
    with pytest.raises(ShapeError, match=r"mask: got shape \(9, 9\); expected the photo's, \(512, 512\)"):
        fit_latent(PhotoInput(PHOTO, LANDMARKS, mask=np.ones((9, 9), bool)), model=trained)
    with pytest.raises(ConfigError, match=r"shared: got \['pose'\]"):
        fit_latent([PHOTO], model=trained, landmarks=[LANDMARKS], shared=["pose"], steps=2)


def test_a_batch_is_its_photos_one_by_one(trained):
    photo = read_image(PHOTO)
    darker = photo * 0.8
    together = fit_latent(torch.stack([photo, darker]), model=trained, landmarks=[LANDMARKS] * 2, steps=8)
    alone = fit_latent(darker, model=trained, landmarks=LANDMARKS, steps=8)
    differences = [(result.vertices - alone.vertices).norm(dim=1).mean() for result in together]
    assert differences[1] < 0.1 * differences[0]


def test_photos_of_one_person_share_what_is_named(trained):
    photo = read_image(PHOTO)
    landmarks = [LANDMARKS] * 2
    results = fit_latent([photo, photo * 0.7], model=trained, landmarks=landmarks, shared=["albedo"], steps=8)
    first, second = (result.face.latents for result in results)
    assert first.albedo_latent.equal(second.albedo_latent)
    assert not first.shape_latent.equal(second.shape_latent)


def test_shared_latents_are_one_even_without_steps(trained):
    photo = read_image(PHOTO)
    results = fit_latent([photo, photo * 0.7], model=trained, landmarks=[LANDMARKS] * 2, shared=["albedo"], steps=0)
    first, second = (result.face.latents.albedo_latent for result in results)
    assert first.equal(second)


def test_errors_leave_out_what_a_mask_hides(trained):
    """Whatever hides the face: black or white."""
    photo, mask = read_image(PHOTO), np.ones((512, 512), bool)
    mask[120:180, 180:230] = False
    for colour in (0.0, 1.0):
        image = torch.where(torch.from_numpy(mask), photo, colour)
        result = fit_latent(PhotoInput(image, LANDMARKS, mask=mask), model=trained, steps=20)
        assert result.final_error < result.start_error
        assert any(warning.startswith("occluded") for warning in result.warnings)
    with pytest.raises(ShapeError, match="mask: got one that hides the whole face"):
        fit_latent(PhotoInput(photo, LANDMARKS, mask=np.zeros((512, 512), bool)), model=trained)


def test_hard_photos_are_fitted_with_a_warning(trained):
    photo = read_image(PHOTO)
    tiny = torch.nn.functional.interpolate(photo[None], (64, 64), mode="area")[0]
    blurred = torch.from_numpy(cv2.GaussianBlur(photo.permute(1, 2, 0).numpy(), (0, 0), 16)).permute(2, 0, 1)
    points = torch.tensor(json.loads(LANDMARKS.read_text())["landmarks"]).reshape(68, 2)
    results = fit_latent([tiny, blurred, photo], model=trained, landmarks=[points / 8, points, points], steps=0)
    assert [warning.partition(":")[0] for warning in results[0].warnings][:1] == ["tiny"]
    assert any(warning.startswith("blurred") for warning in results[1].warnings)
    assert results[2].warnings == ()


def test_frames_of_a_video(run, tmp_path):
    file = tmp_path / "clip.avi"
    frame = cv2.imread(str(PHOTO))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 5, (512, 512))
    for shift in range(6):
        writer.write(np.roll(frame, 4 * shift, axis=1))
    writer.release()
    arguments = [str(file), "-o", str(tmp_path / "out"), "--frames", "3", "--shared", "albedo", "--steps", "4"]
    assert main([*arguments, "--model", str(run.folder)]) == 0
    status = status_of(tmp_path / "out")
    assert set(status) == {"clip-000000", "clip-000002", "clip-000005", "all"}
    assert status["clip-000005"]["source"] == f"{file}, frame 5"
    faces = [json.loads((tmp_path / "out" / name / "face.json").read_text()) for name in sorted(set(status) - {"all"})]
    centres = [sum(point[0] for point in face["landmarks"]) / 68 for face in faces]
    assert centres[0] + 4 < centres[1] < centres[2] - 4


def test_what_is_done_before_an_interruption_is_kept(photos, run, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(48):
        shutil.copy(photos / "first.jpg", many / f"{number:02}.jpg")
        shutil.copy(photos / "first.json", many / f"{number:02}.json")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nl3dmm.fit", str(many), "-o", str(out), "--model", str(run.folder)]
    process = subprocess.Popen(
        [*command, "--steps", "30"], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not list(out.glob("*/face.json")) and process.poll() is None:
        time.sleep(0.02)
    while json.loads((out / "status.json").read_text())["done"] < 8 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.splitlines()[-1:]) == (130, ["interrupted"])
    stored = json.loads((out / "status.json").read_text())
    assert 8 <= stored["fitted"] == stored["done"] < 48
    assert len(list(out.glob("*/panel.png"))) >= stored["done"]
    assert (out / "report.html").is_file()
