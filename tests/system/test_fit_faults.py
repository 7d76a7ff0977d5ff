"""What goes wrong with photos, and what is said of it: alone an error, in a list a status beside fitted faces."""

import functools
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nl3dmm import FitFailure, PhotoInput, Reconstruction, fit_latent
from nl3dmm.data.landmark_files import read_landmarks
from nl3dmm.errors import ImageError, Nl3dmmError, NoFaceError, ShapeError
from nl3dmm.fit import SOME_FAILED, main
from nl3dmm.fitting.located_face import profile_warnings

DATA = Path(__file__).parents[1] / "data"
PHOTO, LANDMARKS = DATA / "astronaut.jpg", DATA / "astronaut.json"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def grey_jpeg(side: int, face: float, left: int = 0) -> bytes:
    """The astronaut, ``face`` times as large, on a grey canvas."""
    photo = Image.open(PHOTO).convert("L")
    canvas = Image.new("L", (side, side), 128)
    canvas.paste(photo.resize((round(512 * face),) * 2), (left, 0))
    return encoded(canvas, "JPEG", quality=90)


def transparent() -> bytes:
    photo = Image.open(PHOTO)
    photo.putalpha(0)
    return encoded(photo)


def moved_landmarks(shift: float = 0.0, first: float | None = None) -> np.ndarray:
    values = read_landmarks(LANDMARKS).numpy() + shift
    values[0, 0] = values[0, 0] if first is None else first
    return values


@dataclass(frozen=True)
class Fault:
    """A photo that cannot be fitted, and what is said of it."""

    name: str
    photo: Callable[[], PhotoInput]
    error: type[Nl3dmmError]
    status: str
    message: str  # what was got and expected, what to do; with ... between


FAULTS = (
    Fault(
        "no face",
        lambda: PhotoInput(torch.full((3, 90, 120), 0.5)),
        NoFaceError,
        "no_face",
        "no face found in 120 x 90 px; expected one of 40 px or more ... Give landmarks (68 points) or the face's box.",
    ),
    Fault(
        "upside down",
        lambda: PhotoInput(encoded(Image.open(PHOTO).rotate(180))),
        NoFaceError,
        "no_face",
        "expected one of 40 px or more from brows to chin, not upside down. ... Give landmarks",
    ),
    Fault("transparent", lambda: PhotoInput(transparent()), NoFaceError, "no_face", "no face found in 512 x 512 px"),
    Fault(
        "16 x 16",
        lambda: PhotoInput(encoded(Image.open(PHOTO).resize((16, 16)))),
        ImageError,
        "bad_image",
        "got 16 x 16 px; expected at least 32 px per side. Use a larger photo.",
    ),
    Fault(
        "100 megapixels",
        lambda: PhotoInput(grey_jpeg(10_000, 4.0)),
        ImageError,
        "bad_image",
        "got 10000 x 10000 px; expected at most 40000000 pixels. Shrink the photo.",
    ),
    Fault(
        "NaN",
        lambda: PhotoInput(torch.full((3, 64, 64), math.nan)),
        ShapeError,
        "bad_input",
        "image: got NaN or infinite values; expected finite numbers. Find where they come from.",
    ),
    Fault(
        "-1 to 1",
        lambda: PhotoInput(torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64)),
        ImageError,
        "bad_image",
        "got values from -1 to 1; expected floats in [0, 1]. Divide by 255, or undo the normalisation, or pass uint8.",
    ),
    Fault(
        "0 to 255",
        lambda: PhotoInput(np.linspace(0, 255, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)),
        ImageError,
        "bad_image",
        "got values from 0 to 255; expected floats in [0, 1]. Divide by 255",
    ),
    Fault(
        "landmarks outside",
        lambda: PhotoInput(PHOTO, moved_landmarks(shift=600)),
        ImageError,
        "bad_image",
        "landmarks: got 0 of 68 inside the 512 x 512 px image; expected at least 34. Check that they belong to this",
    ),
    Fault(
        "landmark far outside",
        lambda: PhotoInput(PHOTO, moved_landmarks(first=1e7)),
        ImageError,
        "bad_image",
        "landmarks: got one ... image sides from the middle of the 512 x 512 px image; expected all on a face in it.",
    ),
    Fault(
        "NaN landmark",
        lambda: PhotoInput(PHOTO, moved_landmarks(first=math.nan)),
        ShapeError,
        "bad_input",
        "landmarks: got NaN or infinite values; expected finite pixels. Detect the face again.",
    ),
    Fault(
        "landmarks of words",
        lambda: PhotoInput(PHOTO, np.array(["left"] * 68)),
        ShapeError,
        "bad_input",
        "landmarks: got ... expected (68, 2) numbers. Give photo pixels.",
    ),
)


def assert_says(text: str, message: str) -> None:
    """All parts in order."""
    start = 0
    for part in message.split(" ... "):
        start = text.find(part, start)
        assert start >= 0, text


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_alone_it_is_an_error(trained, fault):
    with pytest.raises(fault.error) as raised:
        fit_latent(fault.photo(), model=trained, steps=2)
    assert type(raised.value) is fault.error
    assert_says(str(raised.value), fault.message)


def test_in_a_list_each_has_its_status_and_the_others_are_fitted(trained):
    results = fit_latent([PHOTO, *(fault.photo() for fault in FAULTS), PHOTO], model=trained, steps=2)
    assert isinstance(results[0], Reconstruction)
    assert results[-1].status == "ok"
    for fault, result in zip(FAULTS, results[1:-1], strict=True):
        assert isinstance(result, FitFailure), fault.name
        assert result.status == fault.status, fault.name
        assert_says(result.message, fault.message)


def test_what_no_type_checker_has_seen(run):
    """In a process of its own: this one checks types at every call."""
    code = """
import sys
from nl3dmm import PhotoInput, fit_latent
photo, landmarks, model = sys.argv[1:]
wrong = [None, PhotoInput(photo, box=(1, 2, "right", 4)), PhotoInput(photo, landmarks=5.0)]
for result in fit_latent([*wrong, PhotoInput(photo, landmarks)], model=model, steps=0):
    print(result.status, getattr(result, "message", ""))
"""
    command = [sys.executable, "-c", code, str(PHOTO), str(LANDMARKS), str(run.folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = (
        "bad_image image: got NoneType; expected a path, bytes, a Pillow image, an array or a tensor. Check where",
        "bad_input box: got (1, 2, 'right', 4); expected left, top, right, bottom. Give four numbers.",
        "bad_input landmarks: got shape (); expected (68, 2). Give all 68 points.",
        "ok",
    )
    for line, message in zip(lines, expected, strict=True):
        assert line.startswith(message)


def test_a_large_file_is_refused_before_it_is_decoded():
    """Its header alone gets the same answer; decoding would find that the rest is missing."""
    from nl3dmm.data.images import read_image

    with pytest.raises(ImageError, match="got 10000 x 10000 px"):
        read_image(grey_jpeg(10_000, 4.0)[:5_000])


# Photos that are fitted


@pytest.mark.parametrize(("side", "face"), [(6_300, 4.0), (3_500, 0.55)], ids=["40 megapixels", "small face"])
def test_faces_of_large_photos_are_found(trained, side, face):
    """The large one in a coarse search; where that finds nothing, small ones in a fine search."""
    result = fit_latent(grey_jpeg(side, face), model=trained, steps=0)
    target = read_landmarks(LANDMARKS) * face
    assert result.photo.shape == (3, side, side)
    assert (result.crop.points_to_crop(target).mean(0) - 24).abs().max() < 4  # of 48 px


@pytest.mark.parametrize("orientation", range(2, 9))
def test_faces_are_found_in_photos_turned_by_exif(trained, orientation):
    """Two quarter turns and mirror images, all undone by the note in the file."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = encoded(Image.open(PHOTO).transpose(stored[orientation]), exif=exif)
    turned, upright = fit_latent([photo, PHOTO], model=trained, steps=0)
    assert torch.equal(turned.photo, upright.photo)
    assert turned.crop == upright.crop


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_faces_are_found_in_every_mode_of_pixels(trained, mode):
    """Grey, with alpha, with a palette, black and white."""
    result, upright = fit_latent([encoded(Image.open(PHOTO).convert(mode)), PHOTO], model=trained, steps=0)
    points = upright.crop.points_to_crop(read_landmarks(LANDMARKS))
    assert (result.crop.points_to_crop(read_landmarks(LANDMARKS)) - points).norm(dim=1).mean() < 4  # of 48 px


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_landmarks_may_be_what_detectors_give(trained, kind):
    given = read_landmarks(LANDMARKS).round()
    arrays = (given, given.numpy().astype(kind))
    results = [fit_latent(PHOTO, model=trained, landmarks=each, steps=0) for each in arrays]
    assert results[0].crop == results[1].crop


@pytest.mark.parametrize("large_first", [True, False])
def test_of_several_faces_the_largest_is_fitted_with_a_warning(trained, large_first):
    photo, canvas = Image.open(PHOTO), Image.new("RGB", (830, 512), (90, 90, 90))
    canvas.paste(photo, (0 if large_first else 300, 0))
    small = photo.crop((100, 0, 400, 300)).resize((240, 240))
    canvas.paste(small, (520 if large_first else 30, 100))
    result = fit_latent(np.asarray(canvas), model=trained, steps=0)
    assert result.warnings == ("several faces: the largest of 2 is fitted",)
    target = read_landmarks(LANDMARKS) + torch.tensor([0.0 if large_first else 300.0, 0.0])
    assert (result.crop.points_to_crop(target).mean(0) - 24).abs().max() < 4  # of 48 px


def test_profiles_are_fitted_with_a_warning(trained):
    """From the landmarks, so that the encoder's estimate has it too."""
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    world = SyntheticWorld(
        trained.system.model.template, WorldConfig(yaw=80.0, occlusion=0.0, super_sampling=1), image_size=160
    )
    batch = world.sample(torch.arange(30))
    yaw = torch.rad2deg(torch.asin(batch.camera.rotation[:, 0, 2].clamp(-1, 1)))
    chosen = [int(yaw.argmin()), int(yaw.argmax()), int(yaw.abs().argmin())]
    inputs = [PhotoInput(batch.image[index], batch.landmarks[index]) for index in chosen]
    results = fit_latent(inputs, model=trained, steps=0)
    warned = [[text for text in result.warnings if "profile" in text] for result in results]
    assert warned[2] == []
    for (text,), index in zip(warned[:2], chosen, strict=False):
        stated = int(text.removeprefix("profile: turned by ").partition(" ")[0])
        assert abs(stated - float(yaw[index])) < 20
        assert text.endswith("degrees, the hidden side is a guess")


@pytest.mark.parametrize("degrees", [-60.0, 20.0, 60.0])
def test_profiles_without_landmarks_are_known_from_the_fit(true_face, degrees):
    from dataclasses import replace

    from nl3dmm.geometry.camera import rotation_from_euler, yaw_degrees

    face, yaw = true_face().face, torch.tensor([math.radians(degrees)])
    camera = replace(face.camera, rotation=rotation_from_euler(0 * yaw, yaw, 0 * yaw))
    stated = [f"profile: turned by {degrees:.0f} degrees, the hidden side is a guess"]
    assert profile_warnings(float(yaw_degrees(camera))) == (stated if abs(degrees) > 50 else [])


# The command: disk and Ctrl-C


def folder_of(names: str, folder: Path) -> Path:
    """Copies of the astronaut with landmarks."""
    folder.mkdir()
    for name in names:
        shutil.copy(PHOTO, folder / f"{name}.jpg")
        shutil.copy(LANDMARKS, folder / f"{name}.json")
    return folder


def read_status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, where this process may make one."""
    folder.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_is_done_and_says_what_is_not(run, tmp_path, capsys):
    photos = folder_of("abc", tmp_path / "photos")
    with small_disk(tmp_path / "disk", 1_700) as disk:  # a face takes 1100
        out = disk / "out"
        assert main([str(photos), "-o", str(out), "--model", str(run.folder), "--steps", "0"]) == 1
        stored = read_status(out)
        assert (stored["photos"], stored["done"], stored["fitted"]) == (3, 2, 1)
        assert [(line["name"], line["status"]) for line in stored["results"]] == [("a", "ok"), ("b", "not_written")]
        assert "No space left on device" in stored["results"][1]["message"]
        assert {path.name for path in (out / "a").iterdir()} >= {"panel.png", "face.glb", "face.obj", "face.json"}
        assert list((out / "b").iterdir()) == []
        assert not list(out.rglob(".nl3dmm-*"))
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: output file: got {out / 'b'}")
    assert_says(printed.err, "which cannot be written ([Errno 28] ... expected room ... free disk space")
    assert printed.err.count("\n") == 1
    assert_says(printed.out, "a: mean colour error ... b: not_written: output file ... 1 of 3 fitted")


def test_a_disk_that_is_full_from_the_start(run, tmp_path, error):
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "other").write_bytes(bytes(100_000))
        code = main([str(PHOTO), "-o", str(disk), "--model", str(run.folder), "--steps", "0"])
        assert {path.name for path in disk.iterdir()} == {"other"}
    assert_says(error(code), "output folder: got ... No space left on device ... free disk space")


def test_one_face_that_cannot_be_written_does_not_stop_the_others(run, tmp_path, capsys):
    photos, out = folder_of("abc", tmp_path / "photos"), tmp_path / "out"
    out.mkdir()
    (out / "b").write_text("mine")
    assert main([str(photos), "-o", str(out), "--model", str(run.folder), "--steps", "0"]) == SOME_FAILED
    assert [line["status"] for line in read_status(out)["results"]] == ["ok", "not_written", "ok"]
    assert "move the file that is in its way" in read_status(out)["results"][1]["message"]
    assert (out / "b").read_text() == "mine"
    assert_says(capsys.readouterr().out, "b: not_written: output folder: got ... 2 of 3 fitted")


def test_an_interruption_before_anything_is_done(run, tmp_path):
    """A real Ctrl-C; test_fit_many has one after some batches."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nl3dmm.fit", str(PHOTO), "-o", str(out), "--model", str(run.folder)]
    process = subprocess.Popen(
        [*command, "--steps", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (out / "status.json").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert (read_status(out)["photos"], read_status(out)["done"]) == (1, 0)
    assert [path.name for path in out.iterdir()] == ["status.json"]
