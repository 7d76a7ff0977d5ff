"""``python -m nl3dmm.prep`` on files: broken ones among them, killed and started again, read as training data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from photo_folders import DiscDetector, contents, discs, jpeg, synthetic_faces, write_landmarks, write_photo

from nl3dmm.data.module import StepBatches
from nl3dmm.data.photo_faces import PrepConfig
from nl3dmm.data.photos import PhotoSet
from nl3dmm.data.prepare import prepare_photos
from nl3dmm.data.shards import ShardSet
from nl3dmm.prep import main

ROOT = Path(__file__).parents[2]
PHOTOS, BROKEN, KILLS = 60, (7, 31), 3
OPTIONS = ("--detector", "none", "--size", "64", "--photos-per-shard", "6")
SHEETS = {"accepted.png", "rejected.png"}

pytestmark = pytest.mark.timeout(900)  # commands that import torch, on a machine that may be busy


@pytest.fixture(scope="module")
def folder(small_template, tmp_path_factory) -> Path:
    """Sixty photos of five faces, no two with the same bytes; two are cut off."""
    folder = tmp_path_factory.mktemp("photos")
    faces = synthetic_faces(small_template, 5)
    for number in range(PHOTOS):
        face = number % 5
        data = jpeg(faces.image[face], quality=60 + number // 5)
        path = folder / f"{number // 20}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[: len(data) // 2] if number in BROKEN else data)
        write_landmarks(path.with_suffix(".json"), faces.landmarks[face : face + 1])
    return folder


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory) -> Path:
    """The command, never stopped, in one go."""
    output = tmp_path_factory.mktemp("straight") / "out"
    process = run(folder, output, "--jobs", "1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def run(folder: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nl3dmm.prep", str(folder), "-o", str(output), *OPTIONS, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def notes(output: Path) -> int:
    """Shards that are written."""
    return len(list((output / "parts").glob("[0-9]*.json")))


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_alive(process: int) -> bool:
    """Zombies, which only wait for their parent to look, are not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ends_normally_and_lists_what_is_broken(straight, folder):
    assert contents(straight).keys() == SHEETS | {
        "index.json",
        "manifest.jsonl",
        "rejected.jsonl",
        "settings.json",
        *(f"shard-{number:06d}.tar" for number in range(10)),
    }
    rejected = [json.loads(line) for line in (straight / "rejected.jsonl").read_text().splitlines()]
    assert [line["photo"] for line in rejected] == [f"{number // 20}/{number:03d}.jpg" for number in BROKEN]
    assert {line["reason"] for line in rejected} == {"damaged"}
    shards = ShardSet(straight)
    assert len(shards) == PHOTOS - len(BROKEN)
    assert shards.verify() == []
    assert str(folder) not in "".join(path.read_text() for path in straight.glob("*.json*"))


def test_the_same_command_again_says_the_same_and_does_nothing(straight, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.glob("*.*")}
    assert main([str(folder), "-o", str(straight), *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert "60 photos: 58 faces taken, 2 photos or faces rejected (2 damaged)" in printed
    assert "accepted.png, rejected.png are in" in printed
    assert {path: path.stat().st_mtime_ns for path in straight.glob("*.*")} == before


def test_killed_and_continued_gives_the_same_files(straight, folder, tmp_path):
    """Killed while a shard is made, each time a little further, with another number of workers."""
    output = tmp_path / "out"
    orphans = []
    for kill in range(KILLS):
        process, target = run(folder, output, "--jobs", str(1 + kill % 2)), notes(output) + 1 + kill % 2
        wait_until(lambda: notes(output) >= target or process.poll() is not None)  # noqa: B023, used at once
        assert process.poll() is None, process.communicate()
        orphans += children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (output / "index.json").exists()
    wait_until(lambda: not any(map(is_alive, orphans)))
    process = run(folder, output, "--jobs", "2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert contents(output) == contents(straight)


def test_ctrl_c_ends_with_one_line(folder, tmp_path):
    process = run(folder, tmp_path / "out", "--jobs", "1")
    wait_until(lambda: notes(tmp_path / "out") >= 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.strip()) == (130, "interrupted")


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(folder, tmp_path):
    process = run(folder, tmp_path / "out", "--jobs", "1")
    wait_until(lambda: notes(tmp_path / "out") >= 1)
    workers = [child for child in children(process.pid) if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    if not workers:
        process.kill()
        pytest.skip("this system does not name the children of a process")
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: worker process: got one that ended by itself")


def test_detectors_work_in_workers(tmp_path):
    write_photo(tmp_path / "photos" / "a.jpg", discs((80, 80, 40), (200, 200, 60)), None)
    write_photo(tmp_path / "photos" / "b.jpg", discs(), None)
    counts = prepare_photos(tmp_path / "photos", tmp_path / "out", make_detector=DiscDetector, jobs=1)
    assert (counts.faces, counts.rejected) == (2, {"no face": 1})


def test_shards_feed_training(straight):
    batches = StepBatches(PhotoSet(ShardSet(straight), 48), seed=0, batch_size=8)
    batch = batches[3]
    assert batch.image.shape == (8, 3, 48, 48)
    assert 0.1 < float(batch.mask.float().mean()) < 0.6
    nose = batch.landmarks[:, 30]
    assert bool(((nose > 10) & (nose < 38)).all())


def test_a_folder_without_faces_ends_normally(tmp_path, capsys):
    write_photo(tmp_path / "photos" / "a.jpg", torch.full((3, 64, 64), 0.5), None)
    assert main([str(tmp_path / "photos"), "-o", str(tmp_path / "out"), *OPTIONS, "--jobs", "1"]) == 0
    assert "1 photos: 0 faces taken, 1 photos or faces rejected (1 no face)" in capsys.readouterr().out
    assert not (tmp_path / "out" / "accepted.png").exists()
    assert (tmp_path / "out" / "rejected.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", "0"), "--jobs: got 0; expected 1 to 1024"),
        (("--size", "9"), "size: got 9; expected 32 to 4096"),
        (("--fast",), "unrecognized arguments: --fast"),
    ],
)
def test_wrong_options_are_one_line(folder, tmp_path, capsys, options, message):
    assert main([str(folder), "-o", str(tmp_path / "out"), *OPTIONS, *options]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "missing"), "-o", str(tmp_path / "out"), *OPTIONS]) == 1
    assert "got no photo; expected a folder" in capsys.readouterr().err


def test_an_output_that_cannot_be_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([str(folder), "-o", str(tmp_path / "file"), *OPTIONS]) == 1
    assert "expected a writable folder" in capsys.readouterr().err


def test_the_function_gives_the_files_of_the_command(straight, folder, tmp_path):
    """In this process: results do not depend on the number of workers."""
    prepare_photos(folder, tmp_path / "out", PrepConfig(size=64, photos_per_shard=6))
    here = contents(tmp_path / "out")
    assert here == {name: data for name, data in contents(straight).items() if name not in SHEETS}


def test_faces_that_the_detector_is_unsure_of_are_listed(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(Path(__file__).parents[1] / "data" / "astronaut.jpg", tmp_path / "photos")
    assert main([str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--jobs", "1", "--min-confidence", "1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert lines[0]["reason"] == "low confidence"
    assert lines[0]["box"] is not None
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["detector"].startswith("own:sha256=")
