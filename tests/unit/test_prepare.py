"""Photos to shards: what is taken, what is not and why, and the same bytes however often it was stopped."""

import io
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from photo_folders import DiscDetector, contents, discs, jpeg, synthetic_faces, write_landmarks, write_photo
from PIL import Image

from nl3dmm.data import prepare
from nl3dmm.data.crop import hull_mask
from nl3dmm.data.detected_faces import DetectedFaces
from nl3dmm.data.images import MAX_BYTES
from nl3dmm.data.photo_faces import PrepConfig, photo_faces, quality, skin_mask
from nl3dmm.data.prepare import Counts, find_photos, prepare_photos
from nl3dmm.data.shards import ShardSet
from nl3dmm.errors import ConfigError, ImageError, OutputError

CONFIG = PrepConfig(size=64, photos_per_shard=3)


@pytest.fixture(scope="module")
def faces(small_template):
    return synthetic_faces(small_template, 8)


@pytest.fixture
def folder(faces, tmp_path) -> Path:
    """Eight photos of one face in two folders, with each kind of landmark file."""
    folder = tmp_path / "photos"
    for index in range(8):
        name = f"{'ab'[index % 2]}/{index}.jpg"
        suffix = (".json", ".npy", ".pts")[index % 3]
        write_photo(folder / name, faces.image[index], faces.landmarks[index : index + 1], suffix)
    return folder


def one(folder: Path, name: str, config: PrepConfig = CONFIG, detector=None):
    """The single sample of a photo."""
    result = photo_faces(folder, name, config, detector)
    assert result.rejections == ()
    (sample,) = result.samples
    return sample


def reason(folder: Path, name: str, config: PrepConfig = CONFIG, detector=None) -> tuple[str, str]:
    """Why a photo, or its only face, was not taken."""
    result = photo_faces(folder, name, config, detector)
    assert result.samples == ()
    (line,) = result.rejections
    assert (line["photo"], line["sha256"]) == (name, result.sha256)
    return line["reason"], line["detail"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sample_is_the_crop_with_its_landmarks(folder, faces):
    sample = one(folder, "a/0.jpg")
    record = sample.record
    image, mask = (np.array(Image.open(io.BytesIO(data))) for data in (sample.image, sample.mask))
    assert image.shape == (64, 64, 3)
    assert (mask.shape, mask.dtype) == ((64, 64), bool)
    assert record["photo_size"] == [160, 160]
    assert record["sources"]["landmarks"] == "file a/0.json"
    there, back = (np.array(record[name]) for name in ("crop_from_photo", "photo_from_crop"))
    truth = faces.landmarks[0].double().numpy()
    np.testing.assert_allclose(truth @ there[:, :2].T + there[:, 2], record["landmarks"], atol=2e-3)
    np.testing.assert_allclose(np.array(record["landmarks"]) @ back[:, :2].T + back[:, 2], truth, atol=5e-3)
    extent = np.ptp(record["landmarks"], axis=0).max()
    assert extent == pytest.approx(0.57 * 7 / 8 * 64, abs=0.01)  # the inner 7/8 is the crop that the encoder sees


@pytest.mark.parametrize("index", range(6))
def test_all_landmark_files_give_the_same_points(folder, faces, index):
    there = one(folder, f"{'ab'[index % 2]}/{index}.jpg").record
    matrix = torch.tensor(there["crop_from_photo"])
    expected = faces.landmarks[index] @ matrix[:, :2].T + matrix[:, 2]
    torch.testing.assert_close(torch.tensor(there["landmarks"]), expected, atol=2e-3, rtol=0)


def test_the_mask_is_the_face_of_the_picture(faces):
    """Within the drawn face, and most of it, with an unlike colour above the brows taken out."""
    shares = []
    for index in range(8):
        levels = (faces.image[index] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        mask, truth = skin_mask(levels, faces.landmarks[index]), faces.mask[index].numpy()
        assert (mask & truth).sum() > 0.9 * mask.sum()
        shares.append((mask & truth).sum() / truth.sum())
        assert (mask | ~hull_mask(faces.landmarks[index], 160).numpy()).all()  # all below the brows counts
    assert np.mean(shares) > 0.75


def test_hair_over_the_forehead_is_not_skin(faces):
    levels = (faces.image[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    points = faces.landmarks[0]
    bare = skin_mask(levels, points)
    line = int(points[17:27, 1].min()) - 4
    levels[:line] = (20, 12, 8)
    assert not skin_mask(levels, points)[: line - 3].any()
    assert (skin_mask(levels, points)[line + 3 :] == bare[line + 3 :]).mean() > 0.999


def test_nothing_outside_the_photo_is_skin(tmp_path, faces):
    write_photo(tmp_path / "cut.jpg", faces.image[0][:, :, :90], faces.landmarks[:1])
    sample = one(tmp_path, "cut.jpg")
    mask = np.array(Image.open(io.BytesIO(sample.mask)))
    border = int(np.array(sample.record["crop_from_photo"])[0] @ [90, 0, 1])
    assert mask[:, : border - 2].any()
    assert not mask[:, border + 1 :].any()


def test_quality_knows_blur_size_exposure_and_doubt():
    ramp = np.indices((64, 64)).sum(0)
    grid = 50 + ramp + ramp % 2 * 40  # fine and coarse structure
    sharp = np.repeat(grid[..., None], 3, 2).astype(np.uint8)
    mask, points = np.ones((64, 64), dtype=bool), torch.rand(68, 2) * 64
    best = quality(sharp, mask, points, 1.0, 1.0)
    assert best == {"score": 1.0, "size": 1.0, "sharpness": 1.0, "exposure": 1.0, "confidence": 1.0}
    assert quality(cv2.GaussianBlur(sharp, (0, 0), 1), mask, points, 1.0, 1.0)["sharpness"] < 0.6
    assert quality(np.full_like(sharp, 90), mask, points, 1.0, 1.0)["score"] == 0
    assert quality(sharp, mask, points, 4.0, 1.0)["size"] == 0.25
    assert quality(sharp, mask, points, 0.5, 1.0)["size"] == 1
    clipped = sharp.copy()
    clipped[:16] = 255
    assert quality(clipped, mask, points, 1.0, 1.0)["exposure"] == 0.75
    doubtful = quality(clipped, mask, points, 2.0, 0.5)
    assert doubtful["score"] == pytest.approx(0.5 * 0.75 * 0.5 * doubtful["sharpness"], abs=1e-4)


def test_several_faces_of_a_photo_are_samples_largest_first(tmp_path, faces):
    small = torch.nn.functional.interpolate(faces.image[1:2], scale_factor=0.75, mode="bilinear")[0]
    group = torch.zeros(3, 160, 280)
    group[:, :, :160], group[:, :120, 160:] = faces.image[0], small
    points = torch.stack([faces.landmarks[1] * 0.75 + torch.tensor([160.0, 0]), faces.landmarks[0]])
    write_photo(tmp_path / "group.jpg", group, points)
    samples = photo_faces(tmp_path, "group.jpg", CONFIG, None).samples
    assert [sample.record["face"] for sample in samples] == [0, 1]
    assert samples[0].record["photo_from_crop"][0][0] > samples[1].record["photo_from_crop"][0][0]
    config = replace(CONFIG, min_face=80.0)
    result = photo_faces(tmp_path, "group.jpg", config, None)
    assert [sample.record["face"] for sample in result.samples] == [0]
    assert [(line["face"], line["reason"]) for line in result.rejections] == [(1, "too small")]
    expected = torch.cat([points[0].amin(0), points[0].amax(0)])
    torch.testing.assert_close(torch.tensor(result.rejections[0]["box"]), expected, atol=0.1, rtol=0)


def test_a_detector_finds_what_has_no_landmark_file(tmp_path):
    write_photo(tmp_path / "two.jpg", discs((80, 80, 40), (200, 200, 60)), None)
    samples = photo_faces(tmp_path, "two.jpg", CONFIG, DiscDetector()).samples
    assert [round(sample.record["photo_from_crop"][0][2]) for sample in samples] == [80, 0] or len(samples) == 2
    assert {sample.record["sources"]["landmarks"] for sample in samples} == {"discs"}
    assert all(0.9 < sample.record["confidence"] <= 1 for sample in samples)
    assert samples[0].record["quality"]["confidence"] == samples[0].record["confidence"]


def test_landmark_files_come_before_the_detector(folder):
    assert one(folder, "a/0.jpg", detector=DiscDetector()).record["sources"]["landmarks"] == "file a/0.json"


def test_reasons_of_photos(tmp_path, faces):
    photo = jpeg(faces.image[0])
    for name, data in {"cut": photo[: len(photo) // 2], "empty": b"", "text": b"no image at all " * 9}.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
        assert reason(tmp_path, f"{name}.jpg")[0] == "damaged", name
    write_photo(tmp_path / "photo.jpg", faces.image[0], None)
    assert reason(tmp_path, "photo.jpg") == ("no face", "no landmark file beside the photo, and no detector")
    assert reason(tmp_path, "photo.jpg", detector=DiscDetector()) == ("no face", "discs found none")
    assert reason(tmp_path, "photo.jpg", replace(CONFIG, max_pixels=20_000))[0] == "too large"
    assert reason(tmp_path, "nothing.jpg")[0] == "damaged"
    Image.new("RGB", (20, 20)).save(tmp_path / "tiny.jpg")
    assert reason(tmp_path, "tiny.jpg")[0] == "too small"
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole, it takes no room
    kind, detail = reason(tmp_path, "huge.jpg")
    assert (kind, detail) == ("too large", f"got {MAX_BYTES + 1} bytes; expected at most {MAX_BYTES}")


def test_reasons_of_faces(tmp_path, faces):
    write_photo(tmp_path / "a.jpg", faces.image[0], faces.landmarks[:1])
    assert reason(tmp_path, "a.jpg", replace(CONFIG, min_face=120.0))[0] == "too small"
    assert reason(tmp_path, "a.jpg", replace(CONFIG, size=256, min_quality=1.0))[0] == "low quality"
    write_landmarks(tmp_path / "a.json", faces.landmarks[:1] + 150)
    assert reason(tmp_path, "a.jpg")[0] == "landmarks outside"
    write_landmarks(tmp_path / "a.json", torch.full((1, 68, 2), 30.0))
    assert reason(tmp_path, "a.jpg")[0] == "landmarks outside"
    (tmp_path / "a.json").write_text('{"landmarks": [[1, 2]]}')
    kind, detail = reason(tmp_path, "a.jpg")
    assert kind == "bad landmark file"
    assert detail.startswith("got shape (1, 2)")  # no path of this machine
    (tmp_path / "a.json").write_text("{")
    assert reason(tmp_path, "a.jpg")[0] == "bad landmark file"
    write_photo(tmp_path / "discs.jpg", discs((150, 150, 60)), None)
    assert reason(tmp_path, "discs.jpg", replace(CONFIG, min_confidence=1.0), DiscDetector())[0] == "low confidence"


def test_a_detector_that_fails_costs_one_photo(tmp_path):
    class Broken(DiscDetector):
        def __call__(self, image: torch.Tensor) -> DetectedFaces:
            raise RuntimeError("out of luck")

    write_photo(tmp_path / "a.jpg", discs((150, 150, 60)), None)
    assert reason(tmp_path, "a.jpg", detector=Broken()) == ("detector failed", "RuntimeError: out of luck")


def test_the_folder_becomes_shards_and_lists(folder, tmp_path):
    (folder / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(folder / "a" / "0.jpg", folder / "b" / "copy.jpg")
    shutil.copy(folder / "a" / "0.json", folder / "b" / "copy.json")
    seen = []
    counts = prepare_photos(folder, tmp_path / "out", CONFIG, progress=lambda counts: seen.append(counts.photos))
    assert (counts.total, counts.photos, counts.faces) == (10, 10, 8)
    assert counts.rejected == {"damaged": 1, "duplicate": 1}
    assert seen == list(range(1, 11))
    shards = ShardSet(tmp_path / "out")
    assert len(shards.cards) == 4
    manifest = lines(tmp_path / "out" / "manifest.jsonl")
    assert [json.loads(shards.read(index).members["json"]) for index in range(8)] == manifest
    assert [line["photo"] for line in manifest] == [f"{'ab'[i % 2]}/{i}.jpg" for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert manifest[0]["key"] == shards.read(0).key == "000000000000-000"
    rejected = lines(tmp_path / "out" / "rejected.jsonl")
    assert [(line["photo"], line["reason"]) for line in rejected] == [
        ("b/broken.jpg", "damaged"),
        ("b/copy.jpg", "duplicate"),
    ]
    assert rejected[1]["detail"] == "same bytes as a/0.jpg"
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_again_changes_nothing(folder, tmp_path):
    first = prepare_photos(folder, tmp_path / "out", CONFIG)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.*")}
    assert prepare_photos(folder, tmp_path / "out", CONFIG) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.*")} == before


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("after", range(1, 9))
def test_stopped_and_continued_gives_the_same_bytes(folder, tmp_path, after):
    shutil.copy(folder / "a" / "0.jpg", folder / "b" / "copy.jpg")  # known as a copy also when a/0.jpg was done before
    prepare_photos(folder, tmp_path / "straight", CONFIG)

    def stop(counts: Counts) -> None:
        if counts.photos == after:
            raise Stop

    with pytest.raises(Stop):
        prepare_photos(folder, tmp_path / "out", CONFIG, progress=stop)
    assert not (tmp_path / "out" / "index.json").exists()
    counts = prepare_photos(folder, tmp_path / "out", CONFIG)
    assert (counts.photos, counts.faces, counts.rejected) == (9, 8, {"duplicate": 1})
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.parametrize("moved", range(4))
def test_stopped_at_the_very_end_gives_the_same_bytes(folder, tmp_path, moved, monkeypatch):
    prepare_photos(folder, tmp_path / "straight", CONFIG)
    move = prepare._Parts.move_shard

    def stop(parts, number: int) -> None:
        if number == moved:
            raise Stop
        move(parts, number)

    monkeypatch.setattr(prepare._Parts, "move_shard", stop)
    if moved < 3:
        with pytest.raises(Stop):
            prepare_photos(folder, tmp_path / "out", CONFIG)
    monkeypatch.undo()
    prepare_photos(folder, tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_a_damaged_note_is_written_again(folder, tmp_path):
    prepare_photos(folder, tmp_path / "straight", CONFIG)
    with pytest.raises(Stop):
        prepare_photos(folder, tmp_path / "out", CONFIG, progress=lambda counts: stop_at(counts, 8))
    (tmp_path / "out" / "parts" / "000000.json").write_text("{")
    (tmp_path / "out" / "parts" / "shard-000001.tar").write_bytes(b"")
    prepare_photos(folder, tmp_path / "out", CONFIG)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def stop_at(counts: Counts, photos: int) -> None:
    if counts.photos == photos:
        raise Stop


def test_other_settings_or_photos_are_refused(folder, tmp_path):
    prepare_photos(folder, tmp_path / "out", CONFIG)
    with pytest.raises(OutputError, match=r"which was made with other size, min_face; expected the same photos"):
        prepare_photos(folder, tmp_path / "out", replace(CONFIG, size=72, min_face=65.0))
    (folder / "a" / "0.json").unlink()
    with pytest.raises(OutputError, match="other files"):
        prepare_photos(folder, tmp_path / "out", CONFIG)
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(OutputError, match="got a damaged file"):
        prepare_photos(folder, tmp_path / "out", CONFIG)


def test_one_process_at_a_time(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(OutputError, match="in which another process works"):
        prepare_photos(folder, tmp_path / "out", CONFIG)


def test_photos_are_found_in_a_stable_order(folder):
    (folder / ".hidden").mkdir()
    for name in (".hidden/x.jpg", "a/.y.jpg", "a/notes.txt", "a/PHOTO.JPEG", "out/z.png", "é ü.webp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    names = find_photos(folder, folder / "out")
    ours = [*(f"a/{i}.jpg" for i in (0, 2, 4, 6)), "a/PHOTO.JPEG", *(f"b/{i}.jpg" for i in (1, 3, 5, 7))]
    assert names == [*ours, "é ü.webp"]


def test_output_inside_the_folder_is_no_photo(folder):
    first = prepare_photos(folder, folder / "out", CONFIG)
    (folder / "out" / "accepted.png").write_bytes(b"x")
    assert prepare_photos(folder, folder / "out", CONFIG) == first


def test_output_beside_the_photos_is_refused(folder):
    with pytest.raises(OutputError, match="the folder of the photos; expected another"):
        prepare_photos(folder, folder / "a" / "..", CONFIG)


def test_a_folder_without_photos_is_an_error(tmp_path):
    with pytest.raises(ImageError, match=r"got no photo; expected a folder with .jpg"):
        prepare_photos(tmp_path, tmp_path / "out")
    with pytest.raises(ImageError, match="got no photo"):
        prepare_photos(tmp_path / "missing", tmp_path / "out")


def test_a_folder_without_faces_ends_normally(tmp_path):
    write_photo(tmp_path / "photos" / "a.jpg", discs(), None)
    counts = prepare_photos(tmp_path / "photos", tmp_path / "out", CONFIG)
    assert (counts.faces, counts.rejected) == (0, {"no face": 1})
    assert prepare_photos(tmp_path / "photos", tmp_path / "out", CONFIG) == counts


@pytest.mark.parametrize("name", [item.name for item in fields(PrepConfig) if item.name != "detector"])
def test_settings_have_ranges(name):
    wrong = type(getattr(CONFIG, name))(-1)
    with pytest.raises(ConfigError, match=f"{name}: got -1"):
        PrepConfig(**{name: wrong})


def test_a_repeated_photo_counts_once_it_has_given_faces(tmp_path, faces):
    """The first copy has no landmarks, the second has, the third comes too late."""
    for name, points in (("a/x", None), ("b/x", faces.landmarks[:1]), ("c/x", faces.landmarks[:1])):
        write_photo(tmp_path / f"photos/{name}.jpg", faces.image[0], points)
    counts = prepare_photos(tmp_path / "photos", tmp_path / "out", PrepConfig(size=64))
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert counts.faces == 1
    assert [line["photo"] for line in rejected] == ["a/x.jpg", "c/x.jpg"]
    assert "b/x.jpg" in json.dumps(rejected[1])
