"""Folders of AFLW2000-3D: points, poses and crops in our conventions, and files that are refused."""

import shutil

import numpy as np
import pytest
import torch
from aflw2000_files import SCALE, SIZE, annotation, write_face
from PIL import Image
from scipy.io import loadmat, savemat

from nl3dmm.data.aflw2000 import AnnotatedPhotos, is_aflw2000_folder
from nl3dmm.errors import AssetError, ImageError
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.similarity import similarity

POSES = [(4.0, -12.0, 7.0), (-20.0, 50.0, -3.0), (10.0, 75.0, 15.0)]
ALL = torch.arange(3)


@pytest.fixture(scope="module")
def marks(small_template) -> np.ndarray:
    return small_template.landmarks(small_template.vertices[None])[0].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, marks):
    folder = tmp_path_factory.mktemp("aflw2000")
    for number, pose in enumerate(POSES):
        write_face(folder, f"image{number:05}", marks, pose)
    return folder


@pytest.fixture
def one(folder, tmp_path):
    """A folder with one face, to be damaged."""
    for suffix in (".mat", ".jpg"):
        shutil.copy(folder / f"image00000{suffix}", tmp_path)
    return tmp_path / "image00000.mat"


def test_the_annotated_camera_sees_the_landmarks(folder, marks):
    batch = AnnotatedPhotos(folder, 48).sample(ALL)
    assert batch.image.shape == (3, 3, 48, 48)
    assert batch.index.tolist() == [0, 1, 2]
    pixels, _ = project(batch.camera, torch.from_numpy(marks).expand(3, -1, -1))
    torch.testing.assert_close(pixels, batch.landmarks, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.linalg.det(batch.camera.rotation), torch.ones(3))
    assert batch.camera.inverse_distance.eq(0).all()
    assert batch.albedo is batch.vertices is batch.sh_coefficients is None


def test_points_in_space_are_the_face_in_one_similarity(folder, marks):
    """No mirror image: x right, y up, z towards the camera, all in one unit; the rotation is the camera's."""
    photos = AnnotatedPhotos(folder, 48)
    points, batch = photos.points(ALL), photos.sample(ALL)
    mesh = torch.from_numpy(marks).expand(3, -1, -1)
    best = similarity(mesh, points)
    torch.testing.assert_close(best.apply(mesh), points, atol=2e-3, rtol=0)
    torch.testing.assert_close(best.rotation, batch.camera.rotation, atol=1e-4, rtol=0)
    torch.testing.assert_close(best.scale, batch.camera.scale)
    torch.testing.assert_close(points[..., :2] * torch.tensor([1, -1]), batch.landmarks)


def test_the_first_pixel_is_one(tmp_path, marks):
    """A white pixel at point 30 of the file's coordinates is where the crop has that landmark."""
    values = annotation(marks, (0.0, 0.0, 0.0))
    values["pt3d_68"] = values["pt3d_68"].round()
    column, row = values["pt3d_68"][:2, 30].astype(int)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[row - 1, column - 1] = 255
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    savemat(tmp_path / "a.mat", values)
    batch = AnnotatedPhotos(tmp_path, 300).sample(torch.tensor([0]))
    light = batch.image[0, 1] * (batch.image[0, 1] > 0.2)
    axis = torch.arange(300) + 0.5
    centre = torch.stack([(light.sum(0) * axis).sum(), (light.sum(1) * axis).sum()]) / light.sum()
    assert (centre - batch.landmarks[0, 30]).abs().max() < 0.2 * scale(batch)  # photo pixels: not half a pixel off


def test_yaw_is_the_files(folder):
    torch.testing.assert_close(AnnotatedPhotos(folder, 48).yaw(ALL), torch.tensor([-12.0, 50.0, 75.0]))
    assert is_aflw2000_folder(folder)
    assert not is_aflw2000_folder(folder / "none")
    assert len(AnnotatedPhotos(folder, 48)) == 3


def test_the_mask_ends_where_the_photo_ends(one, marks):
    values = annotation(marks, POSES[0])
    values["pt3d_68"][0] += 60  # the crop reaches over the right border
    savemat(one, values)
    batch = AnnotatedPhotos(one.parent, 48).sample(torch.tensor([0]))
    left = batch.landmarks[0, 30, 0] - (values["pt3d_68"][0, 30] - 0.5) * scale(batch)
    end = float(left + SIZE * scale(batch))  # crop column of the photo's right border
    assert 24 < end < 48
    assert batch.mask[0].any(0).equal(torch.arange(48) + 0.5 <= end)


def scale(batch) -> torch.Tensor:
    """Crop pixels per photo pixel."""
    return batch.camera.scale[0] / (1000 * SCALE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pt3d_68": None}, r"got nothing as pt3d_68; expected pt3d_68 \(3, 68\) and Pose_Para"),
        ({"Pose_Para": None}, "got nothing as Pose_Para"),
        ({"pt3d_68": np.zeros((2, 68))}, r"got float64 \(2, 68\) as pt3d_68"),
        ({"Pose_Para": np.zeros((1, 6))}, r"got float64 \(1, 6\) as Pose_Para"),
        ({"pt3d_68": np.full((3, 68), np.nan)}, "got NaN or infinite values in pt3d_68"),
        ({"Pose_Para": np.zeros((1, 7))}, "got scale 0 in Pose_Para"),
        ({"Pose_Para": "a pose"}, "as Pose_Para"),
        ({"Pose_Para": np.ones((1, 7), complex)}, r"got complex128 \(1, 7\) as Pose_Para"),
        ({"pt3d_68": np.full((3, 68), 40.0)}, "face box: got"),
        ({"pt3d_68": {"a": 1}}, "as pt3d_68"),
    ],
)
def test_wrong_contents_are_refused(one, change, message):
    values = {key: value for key, value in loadmat(one).items() if not key.startswith("__")} | change
    savemat(one, {key: value for key, value in values.items() if value is not None})
    with pytest.raises(AssetError, match=message) as caught:
        AnnotatedPhotos(one.parent, 48).sample(torch.tensor([0]))
    assert one.name in str(caught.value)


def test_points_of_another_photo_are_refused(one):
    values = loadmat(one)
    values["pt3d_68"][:2] += 90
    savemat(one, {key: values[key] for key in ("pt3d_68", "Pose_Para")})
    with pytest.raises(ImageError, match=r"image00000.mat: landmarks: got \d+ of 68 inside the 160 x 160 px image"):
        AnnotatedPhotos(one.parent, 48).sample(torch.tensor([0]))


@pytest.mark.parametrize("kept", [0, 1, 100, 127, 140, 300, 700])
def test_cut_files_are_refused(one, kept):
    one.write_bytes(one.read_bytes()[:kept])
    with pytest.raises(AssetError, match=r"image00000\.mat: got"):
        AnnotatedPhotos(one.parent, 48).yaw(torch.tensor([0]))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_flipped_bytes_are_read_or_refused(one, is_compressed):
    """Never another exception, whichever byte is wrong."""
    values = loadmat(one)
    savemat(one, {key: values[key] for key in ("pt3d_68", "Pose_Para")}, do_compression=is_compressed)
    whole = one.read_bytes()
    photos = AnnotatedPhotos(one.parent, 48)
    generator = np.random.default_rng(0)
    refused = 0
    for position in [*range(0, 220, 3), *generator.integers(0, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        one.write_bytes(damaged)
        try:
            photos.yaw(torch.tensor([0]))
        except AssetError:
            refused += 1
    assert refused > 5


def test_too_large_a_file_is_refused(one):
    with one.open("ab") as stream:
        stream.truncate(2**20 + 1)
    with pytest.raises(AssetError, match="1048577 bytes"):
        AnnotatedPhotos(one.parent, 48).points(torch.tensor([0]))


def test_a_missing_photo_is_refused(one):
    one.with_suffix(".jpg").unlink()
    with pytest.raises(ImageError, match=r"image00000\.jpg: got no such file"):
        AnnotatedPhotos(one.parent, 48).sample(torch.tensor([0]))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(AssetError, match=r"got no \.mat files; expected a folder of AFLW2000-3D"):
        AnnotatedPhotos(tmp_path, 48)
