"""Bad input: one line on stderr that says what to do, exit code 1, and nothing half-written."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nl3dmm import evaluate, fit
from nl3dmm import train as train_command
from nl3dmm.data.images import write_png

DATA = Path(__file__).parents[1] / "data"
PHOTO, LANDMARKS = DATA / "astronaut.jpg", DATA / "astronaut.json"


# Photos


def _png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def _small() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "PNG")
    return stream.getvalue()


def _corrupt() -> bytes:
    data = bytearray(PHOTO.read_bytes())
    data[20:600] = bytes(580)
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"not an image, but long enough to be one" * 99, "got data that is no JPEG, PNG or WebP image"),
        (PHOTO.read_bytes()[:20_000], "got damaged image data .*Copy or export the photo again"),
        (_corrupt(), "got damaged image data"),
        (_png(60_000, 60_000), "expected at most 40000000 pixels. Shrink the photo"),
        (_small(), "got 16 x 16 px; expected at least 32 px per side"),
        (_png(300, 300), "got damaged image data"),
    ],
    ids=["empty", "text", "truncated", "corrupt", "bomb", "tiny", "incomplete"],
)
def test_unreadable_photo(fit_error, tmp_path, content, message):
    photo = tmp_path / "photo.png"
    photo.write_bytes(content)
    text = fit_error(photo)
    assert text.startswith(str(photo))
    assert re.search(message, text), text


def test_photo_that_is_no_file(fit_error, tmp_path):
    assert "got no such file" in fit_error(tmp_path / "missing.jpg")
    assert "got no photos; expected" in fit_error(tmp_path)  # of this folder


def _noise() -> torch.Tensor:
    return torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))


def _flat() -> torch.Tensor:
    return torch.full((3, 96, 128), 0.5)


def _landscape() -> torch.Tensor:
    """Blue sky that fades to the horizon, and green land with some texture."""
    row = torch.linspace(0, 1, 96)[:, None].expand(96, 128)
    sky = torch.stack([0.3 + 0.6 * row, 0.5 + 0.4 * row, 0.9 + 0 * row])
    land = torch.stack([0.2 + 0.1 * row, 0.45 - 0.1 * row, 0.15 + 0 * row]) + 0.05 * (_noise() - 0.5)
    return torch.where(row < 0.55, sky, land)


@pytest.mark.parametrize("picture", [_noise, _flat, _landscape])
def test_photo_without_a_face(fit_error, tmp_path, picture):
    write_png(picture(), tmp_path / "photo.png")
    text = fit_error(tmp_path / "photo.png")
    assert text.startswith("image: no face found")
    assert "Give landmarks (68 points) or" in text


# Landmarks, boxes, numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((67, 2)), r"got shape (67, 2); expected (68, 2)"),
        (np.zeros((68, 3)), r"got shape (68, 3); expected (68, 2)"),
        (np.full((68, 2), np.nan), "got NaN or infinite landmarks"),
        (np.full((68, 2), 5000.0), "got 0 of 68 inside the 512 x 512 px image"),
        (np.full((68, 2), 100.0), "face box: got left=100.5"),
        (np.zeros((2, 68, 2)), "got 2 faces; expected one"),
    ],
    ids=["67", "3D", "nan", "outside", "one point", "two faces"],
)
def test_wrong_landmarks(fit_error, tmp_path, values, message):
    np.save(tmp_path / "points.npy", values)
    assert message in fit_error(PHOTO, "--landmarks", str(tmp_path / "points.npy"))


def test_landmark_file_of_another_kind(fit_error, tmp_path):
    assert "expected .pts, .npy or .json" in fit_error(PHOTO, "--landmarks", str(PHOTO))
    assert "got no such file" in fit_error(PHOTO, "--landmarks", str(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (("200", "100", "100", "200"), "face box: got left=200.0"),
        (("nan", "0", "10", "10"), "face box: got left=nan"),
        (("0", "0", "0.5", "0.5"), "face box: got left=0.0"),
        (("5000", "5000", "5100", "5100"), "expected one that overlaps the 512 x 512 px photo"),
        (("1", "2", "3"), "arguments: argument --box: expected 4 arguments"),
        (("1", "2", "3", "four"), "arguments: argument --box: invalid float value: 'four'"),
    ],
    ids=["reversed", "nan", "small", "outside", "three", "word"],
)
def test_wrong_box(fit_error, box, message):
    assert message in fit_error(PHOTO, "--box", *box)


@pytest.mark.parametrize("steps", ["-1", "1000000"])
def test_wrong_steps(fit_error, steps):
    assert f"steps: got {steps}" in fit_error(PHOTO, "--landmarks", str(LANDMARKS), "--steps", steps)


@pytest.mark.parametrize("device", ["tpu9", "cpu:x", "cuda:", "meta"])
def test_unknown_device(fit_error, device):
    assert f"device: got '{device}'; expected 'auto', 'cpu'" in fit_error(PHOTO, "--device", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_on_a_machine_without_it(fit_error):
    assert "device: got 'cuda' with 0 CUDA devices on this machine" in fit_error(PHOTO, "--device", "cuda")


# Config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.imagse=5", "training.imagse: Key 'imagse' not in 'TrainingConfig'. Did you mean: 'images'?"),
        ("trainings.images=5", "Did you mean: 'training'?"),
        ("training.images=many", "training.images: Value 'many'"),
        ("model.image_size=[1,2]", "model.image_size"),
        ("training.images", "override: got 'training.images'; expected key=value"),
        ("data.samples=-5", "data.samples: got -5"),
        ("template=nobody", "template: got 'nobody'"),
        ("template=missing.safetensors", "template missing"),
        ("uv_size=[40,40]", "uv_size"),
        ("loss.perceptual.weights=missing.pth", "perceptual.weights: got missing.pth"),
        ("loss.perceptual.layers=[conv9_9]", "perceptual.layers: got ['conv9_9']"),
    ],
)
def test_wrong_config(train, tmp_path, error, override, message):
    assert message in error(train(tmp_path / "run", override))
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.parametrize("override", ["training.imagse=5", "training.images=many", "training.images", "seed=-1"])
def test_wrong_config_creates_no_folder(train, tmp_path, error, override):
    error(train(tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_missing_config_file(tmp_path, error):
    assert "which does not exist" in error(train_command.main(["-c", str(tmp_path / "missing.yaml")]))


# Output folders. A file in the way stops root, too; permissions would not.


@pytest.mark.parametrize("tail", ["", "below"])
def test_output_that_cannot_be_a_folder(train, run, tmp_path, error, tail):
    file = tmp_path / "file"
    file.write_text("mine")
    commands = (
        lambda: train(file / tail),
        lambda: fit.main([str(PHOTO), "-o", str(file / tail), "--model", str(run.folder)]),
    )
    for command in commands:
        text = error(command())
        assert text.startswith(f"output folder: got {file / tail}, which cannot be used")
        assert "Choose another folder" in text
    assert file.read_text() == "mine"


def test_cache_that_cannot_be_a_folder(train, tmp_path, error):
    (tmp_path / "file").write_text("mine")
    text = error(train(tmp_path / "run", f"data.cache={tmp_path / 'file'}"))
    assert text.startswith("data.cache: cannot write")
    assert "Set data.cache to another folder" in text


def test_evaluation_whose_result_cannot_be_written(damaged_run, error):
    target = damaged_run / "checkpoints" / "last.evaluation.json"
    target.mkdir()
    text = error(evaluate.main([str(damaged_run), "--faces", "1", "--steps", "0", "--camera", "perspective"]))
    assert f"got {target}, which cannot be written" in text
    assert list(target.iterdir()) == []
