import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from nl3dmm.data.images import image_size
from nl3dmm.data.landmark_files import check_landmarks, read_landmarks
from nl3dmm.errors import ImageError, ShapeError

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def centers() -> np.ndarray:
    """68 points, 0 = centre of the first pixel."""
    return np.random.default_rng(0).uniform(0, 200, (68, 2)).round(2)


def write_pts(path: Path, centers: np.ndarray, count: int | None = 68, newline: str = "\n") -> Path:
    header = ["version: 1"] + ([f"n_points:  {count}"] if count is not None else [])
    lines = [*header, "{", *(f"{x + 1} {y + 1}" for x, y in centers), "}", ""]
    path.write_text(newline.join(lines), newline="")
    return path


def write_json(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_npy(path: Path, value) -> Path:
    np.save(path, value)
    return path


def test_all_formats_give_corner_based_pixels(tmp_path, centers):
    expected = torch.from_numpy(centers + 0.5).float()
    files = [
        write_pts(tmp_path / "a.pts", centers),
        write_pts(tmp_path / "b.PTS", centers, count=None, newline="\r\n"),
        write_npy(tmp_path / "a.npy", centers),
        write_json(tmp_path / "a.json", centers.tolist()),
        write_json(tmp_path / "b.json", {"points": centers.tolist()}),
        write_json(tmp_path / "c.json", {"landmarks": [centers.tolist()], "score": 1}),
    ]
    for file in files:
        landmarks = read_landmarks(file)
        assert landmarks.dtype == torch.float32
        torch.testing.assert_close(landmarks, expected)
    torch.testing.assert_close(read_landmarks(str(files[0])), expected)


def test_first_pixel_of_the_image_has_its_center_at_one_half(tmp_path):
    first_pixel = np.zeros((68, 2), np.int64)
    assert (read_landmarks(write_pts(tmp_path / "a.pts", first_pixel)) == 0.5).all()
    assert (read_landmarks(write_npy(tmp_path / "a.npy", first_pixel)) == 0.5).all()


def test_committed_photo():
    landmarks = read_landmarks(DATA / "astronaut.json")
    check_landmarks(landmarks, *image_size(DATA / "astronaut.jpg"))
    left_eye, right_eye = landmarks[42:48].mean(dim=0), landmarks[36:42].mean(dim=0)
    assert left_eye[0] > right_eye[0] + 30  # the subject's left is at the image's right
    assert landmarks[8, 1] > landmarks[57, 1] > landmarks[30, 1] > landmarks[27, 1] > landmarks[19, 1]


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_several_faces(tmp_path, centers, suffix):
    faces = np.stack([centers, centers + 100, centers + 200])
    path = tmp_path / f"a.{suffix}"
    (write_npy if suffix == "npy" else write_json)(path, faces if suffix == "npy" else faces.tolist())
    with pytest.raises(ImageError, match=rf"a\.{suffix}: got 3 faces; expected one. Choose one with face=0 to face=2"):
        read_landmarks(path)
    torch.testing.assert_close(read_landmarks(path, face=2), torch.from_numpy(centers + 200.5).float())
    for face in (3, -1):
        with pytest.raises(ImageError, match=f"got face={face}, but the file has 3; expected a smaller index"):
            read_landmarks(path, face=face)


def test_second_face_of_a_file_with_one(tmp_path, centers):
    path = write_pts(tmp_path / "a.pts", centers)
    assert torch.equal(read_landmarks(path, face=0), read_landmarks(path))
    with pytest.raises(ImageError, match="got face=1, but the file has 1"):
        read_landmarks(path, face=1)


def test_no_face(tmp_path):
    with pytest.raises(ImageError, match="got 0 faces"):
        read_landmarks(write_npy(tmp_path / "a.npy", np.zeros((0, 68, 2))))


@pytest.mark.parametrize("shape", [(5, 2), (68, 3), (136,), (2, 68), ()])
def test_wrong_count(tmp_path, shape):
    files = [write_npy(tmp_path / "a.npy", np.zeros(shape)), write_json(tmp_path / "a.json", np.zeros(shape).tolist())]
    for file in files:
        with pytest.raises(ShapeError, match=r"got shape \(.*\); expected \(68, 2\), iBUG order"):
            read_landmarks(file)


def test_wrong_count_in_pts(tmp_path, centers):
    with pytest.raises(ShapeError, match=r"a\.pts: got shape \(5, 2\)"):
        read_landmarks(write_pts(tmp_path / "a.pts", centers[:5], count=5))
    with pytest.raises(ImageError, match="n_points is 68, but there are 67"):
        read_landmarks(write_pts(tmp_path / "b.pts", centers[:67]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_non_finite(tmp_path, centers, value):
    centers[3, 1] = value
    files = [
        write_npy(tmp_path / "a.npy", centers),
        write_json(tmp_path / "a.json", centers.tolist()),
        write_pts(tmp_path / "a.pts", centers),
    ]
    for file in files:
        with pytest.raises(ShapeError, match="got NaN or infinite landmarks"):
            read_landmarks(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pts", b""),
        ("a.pts", b"version: 1\nn_points: 68\n{\n1 2\n"),
        ("a.pts", b"n_points: 1\n{\none two\n}"),
        ("a.pts", b"{\n1 2\n3\n}"),
        ("a.pts", b"\xff\xfe\x00"),
        ("a.npy", b""),
        ("a.npy", b"\x93NUMPY"),
        ("a.npy", b"PK\x03\x04 renamed npz"),
        ("a.json", b""),
        ("a.json", b"[[1, 2], [3"),
        ("a.json", b"[[1, 2], [3]]"),
        ("a.json", b'{"points": {"x": 1}}'),
        ("a.json", b'{"faces": []}'),
        ("a.json", b'[["a", "b"]]'),
        ("a.json", b"[1" + b"0" * 400 + b"]"),
        ("a.json", b"[" * 100_000),
    ],
)
def test_unreadable_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}: got an unreadable landmark file \(.*expected 68 points"):
        read_landmarks(tmp_path / name)


def test_truncated_npy(tmp_path, centers):
    path = write_npy(tmp_path / "a.npy", centers)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ImageError, match="unreadable landmark file"):
        read_landmarks(path)


def test_npy_with_text(tmp_path):
    with pytest.raises(ImageError, match=r"unreadable landmark file .dtype <U1"):
        read_landmarks(write_npy(tmp_path / "a.npy", np.full((68, 2), "1")))


def test_npy_that_announces_terabytes_allocates_nothing(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000, 2), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(ImageError, match="unreadable landmark file"):
        read_landmarks(tmp_path / "a.npy")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_pickle_in_npy_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Hostile()], dtype=object))
    with pytest.raises(ImageError, match="unreadable landmark file"):
        read_landmarks("a.npy")
    assert not Path("executed").exists()


def test_unknown_suffix_missing_file_and_size(tmp_path):
    with pytest.raises(ImageError, match=r"a\.mat: got suffix '\.mat'; expected \.pts, \.npy or \.json"):
        read_landmarks(tmp_path / "a.mat")
    with pytest.raises(ImageError, match=r"a\.pts: got no such file"):
        read_landmarks(tmp_path / "a.pts")
    (tmp_path / "a.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ImageError, match="got 1048577 bytes; expected at most 1048576"):
        read_landmarks(tmp_path / "a.json")


def test_check_landmarks():
    landmarks = torch.rand(68, 2) * torch.tensor([300.0, 200.0])
    check_landmarks(landmarks, 200, 300)
    with pytest.raises(ImageError, match="landmarks: got 0 of 68 inside the 300 x 200 px image; expected at least 34"):
        check_landmarks(landmarks + 300, 200, 300)
    with pytest.raises(ImageError, match="got 0 of 68 inside"):
        check_landmarks(landmarks - 300, 200, 300)
    with pytest.raises(ImageError, match="Check that they belong to this photo"):
        check_landmarks(torch.full((68, 2), torch.nan), 200, 300)
    landmarks[:30] -= 1000  # a face that is cut by the image's border is fine
    check_landmarks(landmarks, 200, 300)


def test_points_far_outside_are_refused():
    """One wild point would make a crop of thousands of millions of pixels."""
    points = torch.rand(68, 2, generator=torch.Generator().manual_seed(0)) * 100
    check_landmarks(points, 100, 100)
    points[3, 0] = 1e9
    with pytest.raises(ImageError, match=r"got one .* image sides from the middle of the 100 x 100 px image"):
        check_landmarks(points, 100, 100)
