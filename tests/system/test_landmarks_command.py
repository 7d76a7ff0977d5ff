"""The landmark detector from the command line: training, detection with the shipped weights, measuring."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nl3dmm.data.detection import detect_landmarks
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import read_landmarks
from nl3dmm.data.landmark_pictures import draw_pictures
from nl3dmm.data.own_detector import OwnDetector
from nl3dmm.evaluation.landmark_accuracy import point_error
from nl3dmm.landmarks import main
from nl3dmm.training.landmarks import LandmarkTraining, train_landmarks

DATA = Path(__file__).parents[1] / "data"
PHOTO, TRUTH = DATA / "astronaut.jpg", DATA / "astronaut.json"
ASTRONAUT_LIMIT = 0.10  # of the outer eye corners' distance


@pytest.fixture(scope="module")
def detector() -> OwnDetector:
    return OwnDetector()


def test_training_writes_usable_weights_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NL3DMM_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "out"
    options = ["train", "-o", str(output), "--faces", "24", "--pictures", "64", "--batch-size", "12"]
    assert main([*options, "--steps", "4"]) == 0
    weights = output / "landmarks.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert 0 < card["synthetic"]["median_error_percent_of_face_size"] < 100
    assert str(tmp_path) not in json.dumps(card)
    assert main(["detect", str(PHOTO), "-o", str(tmp_path / "found"), "--detector", str(weights)]) == 0
    capsys.readouterr()
    assert main([*options, "--steps", "5"]) == 1
    assert "other settings" in capsys.readouterr().err


def test_a_short_training_lowers_the_error(small_world):
    pictures = draw_pictures(small_world.sample, 32, 64, seed=0)
    errors: list[float] = []
    config = LandmarkTraining(steps=60, batch_size=18, mine_after=1.0)
    train_landmarks(pictures, config, progress=lambda step, losses: errors.append(losses["distance"]))
    assert sum(errors[-10:]) < 0.87 * sum(errors[:10])


def test_the_astronaut_is_found_and_read_back(tmp_path, capsys):
    assert main(["detect", str(PHOTO), "-o", str(tmp_path)]) == 0
    assert "1 face(s)" in capsys.readouterr().out
    assert point_error(read_landmarks(tmp_path / "astronaut.json"), read_landmarks(TRUTH)) < ASTRONAUT_LIMIT
    assert read_image(tmp_path / "astronaut.landmarks.png").shape == read_image(PHOTO).shape


def test_a_photo_on_its_side_is_found_by_its_exif(tmp_path, detector):
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by a quarter clockwise
    with Image.open(PHOTO) as photo:
        photo.rotate(90, expand=True).save(tmp_path / "side.jpg", quality=95, exif=exif)
    found = detect_landmarks(tmp_path / "side.jpg", detector)
    assert len(found) == 1
    assert point_error(found.landmarks[0], read_landmarks(TRUTH)) < ASTRONAUT_LIMIT


def test_three_synthetic_faces_in_one_picture(detector, template):
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    world = SyntheticWorld(template, WorldConfig(yaw=20.0, occlusion=0.0), image_size=160, seed=11)
    faces = world.sample(torch.arange(3))
    found = detector(torch.cat(list(faces.image), -1))
    assert len(found) == 3
    truth = faces.landmarks + torch.tensor([[[0.0, 0]], [[160, 0]], [[320, 0]]])
    order = found.landmarks[:, :, 0].mean(1).argsort()
    errors = [point_error(*pair) for pair in zip(found.landmarks[order], truth, strict=True)]
    assert max(errors) < 0.12


@pytest.mark.parametrize("kind", ["noise", "gradient", "grey", "stripes"])
def test_no_face_where_there_is_none(kind, detector):
    rows, columns = np.mgrid[:240, :320]
    grey = {
        "noise": np.random.default_rng(0).uniform(0, 255, (240, 320)),
        "gradient": columns / 320 * 255,
        "grey": rows * 0 + 128,
        "stripes": (columns // 12 % 2) * 255,
    }[kind]
    assert len(detect_landmarks(grey.astype(np.uint8), detector)) == 0


def test_measure_prints_what_was_found(tmp_path, capsys):
    shutil.copy(PHOTO, tmp_path)
    truth = (read_landmarks(TRUTH) - 0.5).tolist()
    (tmp_path / "landmarks.json").write_text(json.dumps({PHOTO.name: {"dlib68": [truth]}}), encoding="utf-8")
    assert main(["measure", str(tmp_path)]) == 0
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines()[-9:])
    assert float(figures["found"]) == 1
    assert float(figures["frontal_median"]) < 100 * ASTRONAUT_LIMIT
    assert float(figures["false_positives_per_photo"]) == 0


def test_wrong_arguments_are_one_line(tmp_path, capsys):
    for words, text in (
        (["find"], "got 'find'; expected one of train, detect, measure"),
        (["measure", str(tmp_path)], "expected an object of photo names"),
        (["detect", str(PHOTO), "-o", str(tmp_path), "--detector", "haar"], "detector: got 'haar'"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert main([]) == 0
    assert "train" in capsys.readouterr().out
