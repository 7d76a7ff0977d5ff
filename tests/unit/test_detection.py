"""Face detection: results, choice of detectors, the networks' geometry and losses, their weights and training data."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import nl3dmm.data
from nl3dmm.data.detection import (
    _MEDIAPIPE_68,
    DetectedFaces,
    collect_faces,
    detect_landmarks,
    detector_identity,
    load_detector,
)
from nl3dmm.data.landmark_pictures import FAR, NEAR, TemptingPlaces, draw_pictures, finder_batch, regressor_batch
from nl3dmm.data.own_detector import WEIGHTS, OwnDetector, load_network, suppress
from nl3dmm.data.pose import yaw_of
from nl3dmm.errors import AssetError, BackendError, CheckpointError, ConfigError
from nl3dmm.evaluation.landmark_accuracy import box_overlap, point_error, reference_faces
from nl3dmm.nn.landmark_network import (
    CROP_FILL,
    CROP_SIZE,
    MEAN_SIZE,
    STRIDE,
    CropLandmarks,
    FaceFinder,
    FacePlace,
    FinderMaps,
    LandmarkRegressor,
    finder_loss,
    place_of,
    regressor_loss,
)
from nl3dmm.synthetic.clutter import clutter
from nl3dmm.synthetic.draws import Draws
from nl3dmm.training.landmarks import LandmarkTraining, train_landmarks


@pytest.fixture(scope="module")
def face(small_template) -> torch.Tensor:
    """The frontal mean face's landmarks, 100 px high or wide, at (100, 100)."""
    points = small_template.landmarks(small_template.vertices[None])[:, :, :2] * torch.tensor([1.0, -1.0])
    points = points - (points.amin(1) + points.amax(1)) / 2
    return points * 100 / (points.amax(1) - points.amin(1)).amax() + 100


def turned(points: torch.Tensor, angle: float) -> torch.Tensor:
    """Clockwise about (100, 100)."""
    c, s = math.cos(angle), math.sin(angle)
    return (points - 100) @ torch.tensor([[c, s], [-s, c]]) + 100


class FixedDetector:
    """Finds given faces in every image, and remembers the image."""

    name = "fixed"

    def __init__(self, landmarks: torch.Tensor):
        self.landmarks, self.size = landmarks, None

    def __call__(self, image: torch.Tensor) -> DetectedFaces:
        self.size = tuple(image.shape)
        return collect_faces(self.landmarks, torch.linspace(0.5, 1, len(self.landmarks)), self.name)


def test_faces_come_largest_first_with_their_boxes(face):
    found = collect_faces(torch.cat([face / 2, face]), torch.tensor([0.9, 0.6]), "test")
    assert found.confidence.tolist() == pytest.approx([0.6, 0.9])
    assert found.boxes[0].tolist() == pytest.approx([*face[0].amin(0).tolist(), *face[0].amax(0).tolist()])
    assert len(found) == 2
    assert len(collect_faces(torch.zeros(0, 68, 2), torch.zeros(0), "test")) == 0


def test_detect_landmarks_reads_photos_upright_and_selects_faces(face, tmp_path):
    photo = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((60, 90, 3), 128, np.uint8)).save(photo, exif=exif)
    detector = FixedDetector(torch.cat([face / 5, face, face / 2]))
    assert len(detect_landmarks(photo, detector, min_size=10)) == 3
    assert detector.size == (3, 90, 60)
    assert len(nl3dmm.data.detect_landmarks(photo, detector)) == 2  # 20 px are too small
    assert len(detect_landmarks(np.zeros((64, 64, 3), np.uint8), detector, max_faces=1)) == 1
    with pytest.raises(ConfigError, match="max_faces: got 0"):
        detect_landmarks(photo, detector, max_faces=0)


@pytest.mark.parametrize("name", ["", "haar", "dlib", "dlib:", "mediapipe:"])
def test_unknown_detectors_are_refused(name):
    with pytest.raises(ConfigError, match=r"detector: got .* expected own, mediapipe:PATH.task or dlib:PATH.dat"):
        load_detector(name)


def test_a_detector_is_known_by_its_weights_wherever_they_lie(tmp_path):
    for name in ("a.dat", "b.dat", "c.dat"):
        (tmp_path / name).write_bytes(b"weights" if name < "c" else b"others")
    first, second, third = (detector_identity(f"dlib:{tmp_path / name}") for name in ("a.dat", "b.dat", "c.dat"))
    assert first == second != third
    assert str(tmp_path) not in first
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert detector_identity("own") == f"own:sha256={card['sha256']}"
    with pytest.raises(AssetError, match="which is no file"):
        detector_identity(f"dlib:{tmp_path / 'none.dat'}")


@pytest.mark.parametrize("package", ["mediapipe", "dlib"])
def test_plugins_say_what_is_missing(package, tmp_path, monkeypatch):
    with pytest.raises(AssetError, match="which is no file"):
        load_detector(f"{package}:{tmp_path / 'none'}")
    (tmp_path / "model").write_bytes(b"no model")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=f"pip install {package}"):
        load_detector(f"{package}:{tmp_path / 'model'}")


def test_mediapipe_points_are_68_different_ones():
    assert len(set(_MEDIAPIPE_68)) == 68
    assert min(_MEDIAPIPE_68) >= 0
    assert max(_MEDIAPIPE_68) < 468


@pytest.mark.parametrize("angle", [-1.0, 0.0, 0.6, 2.5])
def test_places_and_crops_are_upright(face, angle):
    landmarks = turned(face, angle)
    place, start = place_of(landmarks), place_of(face)
    assert float(place.angle) == pytest.approx(angle, abs=0.01)  # the mean face is symmetric to a hundredth
    assert float(place.size) == pytest.approx(100, abs=1)
    crop = place.to_crop().points(landmarks)
    torch.testing.assert_close(crop, start.to_crop().points(face), atol=0.5, rtol=0)
    assert float((crop.amax(1) - crop.amin(1)).amax()) == pytest.approx(CROP_FILL * CROP_SIZE, abs=0.5)
    middle = (crop.amin(1) + crop.amax(1)) / 2
    torch.testing.assert_close(middle, torch.full((1, 2), CROP_SIZE / 2), atol=0.5, rtol=0)


def perfect_maps(place: FacePlace, rows: int, columns: int) -> FinderMaps:
    row, column = (torch.arange(n) + 0.5 for n in (rows, columns))
    cells = torch.stack(torch.meshgrid(column, row, indexing="xy"))
    offset = place.centre[:, :, None, None] / STRIDE - cells
    heat = torch.where(offset.abs().amax(1) <= 0.5, 12.0, -12.0)
    size = (place.size / MEAN_SIZE).log()[:, None, None].expand(-1, rows, columns)
    turn = torch.stack([place.angle.cos(), place.angle.sin()], 1)[:, :, None, None].expand(-1, -1, rows, columns)
    return FinderMaps(heat, offset, size, turn)


def test_perfect_maps_say_the_place_and_cost_nothing():
    place = FacePlace(torch.tensor([[37.0, 21.0]]), torch.tensor([24.0]), torch.tensor([0.4]))
    maps = perfect_maps(place, 6, 8)
    said = maps.places()
    best = int(maps.heat.flatten().argmax())
    assert best == 2 * 8 + 4
    for name in ("centre", "size", "angle"):
        torch.testing.assert_close(getattr(said, name)[best : best + 1], getattr(place, name))
    losses = finder_loss(maps, place, torch.ones(1))
    assert all(float(value) < 1e-3 for value in losses.values())
    assert float(finder_loss(maps, place, torch.zeros(1))["heat"]) > 5  # no face there: a false alarm
    moved = FacePlace(place.centre + 8, place.size, place.angle)
    assert float(finder_loss(maps, moved, torch.ones(1))["heat"]) > 5


def test_regressor_loss_is_a_likelihood():
    """The mean distance r of a plane Laplace density is 2 b: the best deviation is half the distance."""
    points = torch.zeros(1, 68, 2)
    at = points + torch.tensor([3.0, 4.0])

    def loss(deviation: float) -> float:
        output = CropLandmarks(at, torch.full((1, 68), deviation), torch.tensor([9.0]))
        return float(regressor_loss(output, points, torch.ones(1))["points"])

    assert loss(2.5) == pytest.approx(2 + 2 * math.log(2.5 / CROP_SIZE), rel=1e-5)
    assert loss(2.5) < min(loss(2.3), loss(2.7))
    other = regressor_loss(CropLandmarks(at, at[..., 0], torch.tensor([9.0])), points, torch.zeros(1))
    assert float(other["points"]) == 0
    assert float(other["face"]) > 8


def test_finder_maps_move_with_the_picture():
    finder = FaceFinder().eval()
    picture = clutter(Draws(0, torch.arange(1), 1), 160)
    with torch.no_grad():
        whole, part = finder(picture).heat, finder(picture[..., STRIDE:]).heat
    torch.testing.assert_close(whole[:, 7:-7, 8:-7], part[:, 7:-7, 7:-7], atol=1e-4, rtol=0)


def test_regressor_does_not_mind_brightness_and_contrast():
    regressor = LandmarkRegressor().eval()
    crops = clutter(Draws(0, torch.arange(2, 5), 1), CROP_SIZE)
    with torch.no_grad():
        first, second = regressor(crops), regressor(crops * 0.6 + 0.2)
    torch.testing.assert_close(first.points, second.points, atol=0.05, rtol=0)


def test_overlapping_boxes_are_one_face():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [30, 0, 40, 10], [9, 0, 19, 10]])
    assert suppress(boxes, torch.tensor([0.5, 0.9, 0.3, 0.8]), 0.3).tolist() == [1, 3, 2]
    assert suppress(torch.zeros(0, 4), torch.zeros(0), 0.3).tolist() == []


def test_parts_of_a_face_are_no_faces():
    boxes = torch.tensor([[0.0, 0, 20, 20], [2, 2, 8, 8], [18, 0, 30, 20]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert suppress(boxes, scores, 0.5).tolist() == [0, 1, 2]
    assert suppress(boxes, scores, 0.5, of_smaller=True).tolist() == [0, 2]


def test_weights_are_small_and_checked(tmp_path):
    assert WEIGHTS.stat().st_size < 4e6
    for suffix in (".safetensors", ".json"):
        shutil.copy(WEIGHTS.with_suffix(suffix), tmp_path)
    path = tmp_path / WEIGHTS.name
    assert not load_network(path).training
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssetError, match=r"got SHA-256 .* Install nl3dmm again"):
        load_network(path)
    path.with_suffix(".json").write_text("{}", encoding="utf-8")
    with pytest.raises(AssetError, match="expected an object with sha256"):
        load_network(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(AssetError, match="no card beside it"):
        load_network(path)


def test_the_card_says_where_the_weights_come_from():
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["licence"] == "Apache-2.0"
    assert "synthetic faces only" in card["data"]
    assert card["command"].startswith("python -m nl3dmm.landmarks train")
    assert card["synthetic"]["median_error_percent_of_face_size"] < 5


@pytest.mark.parametrize("shape", [(40, 300), (33, 47), (500, 64)])
def test_odd_pictures_without_faces_give_none(shape):
    image = torch.linspace(0, 1, shape[1]).expand(3, *shape)
    assert len(OwnDetector()(image.contiguous())) == 0


@pytest.fixture(scope="module")
def pictures(small_world):
    return draw_pictures(small_world.sample, 24, 48, seed=3)


def test_training_pictures_are_a_function_of_seed_and_number(pictures, small_world):
    again = draw_pictures(small_world.sample, 24, 40, seed=3)
    assert torch.equal(again.kind, pictures.kind[:40])
    assert (again.image.int() - pictures.image[:40].int()).abs().amax() <= 1
    other = draw_pictures(small_world.sample, 24, 8, seed=4)
    assert not torch.equal(other.image, pictures.image[:8])


def test_training_batches_hold_faces_where_they_say(pictures):
    rows = torch.arange(64)
    small, crops = finder_batch(pictures, 5, rows), regressor_batch(pictures, 5, rows)
    torch.testing.assert_close(finder_batch(pictures, 5, rows[9:10]).image[0], small.image[9], atol=1e-4, rtol=0)
    assert 0.3 < float(small.has_face.mean()) < 0.8
    assert 0.4 < float(crops.has_face.mean()) < 0.9
    sizes = place_of(small.landmarks).size[small.has_face > 0]
    assert sizes.amin() > 4
    assert sizes.amax() < 45  # far pictures of 48 px
    place = place_of(crops.landmarks)[crops.has_face > 0]
    assert ((place.centre - CROP_SIZE / 2).abs() < 0.35 * CROP_SIZE).all()
    assert (place.angle.abs() < 0.8).all()
    assert {NEAR, FAR} <= set(pictures.kind.tolist())


def test_a_resumed_training_equals_one_without_a_stop(pictures, tmp_path):
    config = LandmarkTraining(steps=6, batch_size=6, save_every=1, mine_after=0.5, mine_pictures=6)
    whole = train_landmarks(pictures, config)

    def stop_at(last: int):
        def stop(step: int, losses: dict[str, float]) -> None:
            if step == last and "points" in losses:
                raise KeyboardInterrupt

        return stop

    for last in (3, 4):  # stopped before the save of that step: the first time before tempting places are searched for
        with pytest.raises(KeyboardInterrupt):
            train_landmarks(pictures, config, tmp_path, stop_at(last))
    steps: list[int] = []
    resumed = train_landmarks(
        pictures, config, tmp_path, lambda step, losses: steps.append(step) if "points" in losses else None
    )
    assert steps == [4, 5, 6]
    with pytest.raises(CheckpointError, match="other settings or pictures"):
        train_landmarks(replace(pictures, image=pictures.image.flip(0)), config, tmp_path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_tempting_places_are_crops_without_a_face(pictures):
    number = int((pictures.kind == NEAR).nonzero()[0])
    place = FacePlace(torch.tensor([[5.0, 5.0]]), torch.tensor([9.0]), torch.zeros(1))
    rows = torch.arange(64)
    plain = regressor_batch(pictures, 5, rows)
    with_tempting = regressor_batch(pictures, 5, rows, TemptingPlaces(torch.tensor([number]), place))
    changed = (with_tempting.image - plain.image).abs().amax((1, 2, 3)) > 0.05
    assert 2 < int(changed.sum()) < 25
    assert (with_tempting.has_face[changed] == 0).all()
    assert torch.equal(with_tempting.has_face[~changed], plain.has_face[~changed])


def test_mined_places_are_not_the_true_face(pictures):
    from nl3dmm.nn.landmark_network import LandmarkNetwork
    from nl3dmm.training.landmark_mining import tempting_places

    found = tempting_places(LandmarkNetwork(), pictures, seed=1, count=12)
    assert len(found.picture) == len(found.place.size)
    again = tempting_places(LandmarkNetwork(), pictures, seed=1, count=12)
    assert set(again.picture.tolist()) <= set(range(48))


def test_reference_lists_are_merged_and_errors_are_relative(face):
    points = face[0]
    far = points + 300
    sources = {
        "given": [[1.0, 2.0]] * 5,
        "dlib68": [points.tolist()],
        "mediapipe68": [(points + 2).tolist(), far.tolist()],
    }
    listed = reference_faces(sources)
    torch.testing.assert_close(listed, torch.stack([points, far]) + 0.5)
    assert reference_faces({"given": None}).shape == (0, 68, 2)
    eyes = float((points[36] - points[45]).norm())
    assert point_error(points + torch.tensor([3.0, 4.0]), points) == pytest.approx(5 / eyes, rel=1e-4)
    assert float(box_overlap(points[None], points[None])) == pytest.approx(1)


@pytest.mark.parametrize("yaw", [-75.0, -50.0, 0.0, 25.0])
def test_yaw_is_read_from_points(small_template, yaw):
    from nl3dmm.geometry.camera import rotation_from_euler

    rotation = rotation_from_euler(torch.tensor([0.1]), torch.tensor([math.radians(yaw)]), torch.tensor([0.2]))
    points = small_template.landmarks(small_template.vertices[None]) @ rotation.mT
    pixels = points[0, :, :2] * torch.tensor([1.0, -1.0]) * 2 + 50
    assert yaw_of(pixels) == pytest.approx(yaw, abs=3)


def test_a_photo_smaller_than_the_faces_looked_for_has_none():
    assert len(detect_landmarks(torch.rand(3, 36, 40), min_size=120)) == 0
