import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from nl3dmm.data.crop import Crop, crop_from_box, crop_from_landmarks, hull_mask
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import read_landmarks
from nl3dmm.errors import ImageError
from nl3dmm.types import Camera

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_camera(inverse_distance: list[float]) -> Camera:
    batch = len(inverse_distance)
    rotation = torch.linalg.qr(torch.randn(batch, 3, 3, dtype=torch.float64))[0]
    return Camera(
        rotation=rotation * torch.linalg.det(rotation)[:, None, None],
        translation=torch.randn(batch, 2, dtype=torch.float64) * 20,
        scale=torch.rand(batch, dtype=torch.float64) + 0.5,
        inverse_distance=torch.tensor(inverse_distance, dtype=torch.float64),
        principal_point=torch.rand(batch, 2, dtype=torch.float64) * 200,
    )


def project(camera: Camera, vertices: torch.Tensor) -> torch.Tensor:
    """The formula in ``types.Camera``, written out a second time."""
    x, y, z = (camera.rotation @ vertices.mT).unbind(dim=1)
    depth = 1 - camera.inverse_distance[:, None] * z
    column = camera.principal_point[:, :1] + (camera.scale[:, None] * x + camera.translation[:, :1]) / depth
    row = camera.principal_point[:, 1:] - (camera.scale[:, None] * y - camera.translation[:, 1:]) / depth
    return torch.stack([column, row], dim=2)


def test_points_map_corners_and_back():
    crop = Crop(left=10.0, top=-20.0, scale=0.5, size=64)
    corners = torch.tensor([[10.0, -20.0], [138.0, 108.0]])
    assert torch.equal(crop.points_to_crop(corners), torch.tensor([[0.0, 0.0], [64.0, 64.0]]))
    points = torch.randn(3, 68, 2, dtype=torch.float64) * 500
    torch.testing.assert_close(crop.points_to_photo(crop.points_to_crop(points)), points)


def test_camera_to_photo_commutes_with_points_to_photo():
    camera = random_camera([0.0, 1 / 600, 1 / 250])
    crop = Crop(left=-31.7, top=12.3, scale=1.37, size=224)
    vertices = torch.randn(3, 50, 3, dtype=torch.float64) * 80
    photo = project(crop.camera_to_photo(camera), vertices)
    torch.testing.assert_close(photo, crop.points_to_photo(project(camera, vertices)), rtol=0, atol=1e-10)
    assert torch.equal(crop.camera_to_photo(camera).rotation, camera.rotation)
    assert torch.equal(crop.camera_to_photo(camera).inverse_distance, camera.inverse_distance)


def test_camera_to_crop_is_the_inverse():
    crop, camera = Crop(left=31.0, top=-12.5, scale=0.7, size=112), random_camera([0.0, 1 / 500])
    back = crop.camera_to_photo(crop.camera_to_crop(camera))
    for name, value in vars(camera).items():
        torch.testing.assert_close(getattr(back, name), value)


def test_crop_from_landmarks_is_centered_and_filled():
    landmarks = torch.rand(68, 2) * torch.tensor([80.0, 120.0]) + torch.tensor([300.0, 50.0])
    landmarks[0], landmarks[1] = torch.tensor([300.0, 50.0]), torch.tensor([380.0, 170.0])
    crop = crop_from_landmarks(landmarks, 224, fill=0.6)
    assert crop == crop_from_box(300.0, 50.0, 380.0, 170.0, 224, fill=0.6)
    inside = crop.points_to_crop(landmarks)
    torch.testing.assert_close((inside.amin(dim=0) + inside.amax(dim=0)) / 2, torch.tensor([112.0, 112.0]))
    torch.testing.assert_close(inside[:, 1].amax() - inside[:, 1].amin(), torch.tensor(0.6 * 224))


def test_whole_image_at_its_own_size_is_unchanged():
    photo = torch.rand(3, 40, 40)
    torch.testing.assert_close(Crop(0.0, 0.0, 1.0, 40).image(photo), photo)


def test_whole_pixel_shift_repeats_the_border():
    photo = torch.rand(3, 30, 40)
    padded = photo[:, torch.arange(-5, 45).clamp(0, 29)][:, :, torch.arange(-5, 45).clamp(0, 39)]
    torch.testing.assert_close(Crop(-5.0, -5.0, 1.0, 50).image(photo), padded)


@pytest.mark.parametrize("size", [200, 100, 37, 20, 7])
def test_resampling_agrees_with_torch(size):
    """Away from the border, where torch cuts the filter off instead of repeating the border."""
    photo = torch.rand(3, 100, 100, dtype=torch.float64)
    expected = interpolate(photo[None], size=(size, size), mode="bilinear", antialias=size < 100)[0]
    border = 2 if size < 100 else 0
    inner = slice(border, size - border)
    actual = Crop(0.0, 0.0, size / 100, size).image(photo)
    torch.testing.assert_close(actual[:, inner, inner], expected[:, inner, inner])


@pytest.mark.parametrize("scale", [3.7, 1.0, 0.81, 0.13])
def test_a_ramp_keeps_its_positions(scale):
    """Pixel centres carry their own coordinates, so each output pixel must read where its centre lies in the photo."""
    rows, columns = torch.meshgrid(torch.arange(400.0) + 0.5, torch.arange(500.0) + 0.5, indexing="ij")
    crop = Crop(left=120.3, top=90.7, scale=scale, size=round(200 * scale))
    image = crop.image(torch.stack([columns, rows]).double())
    rows, columns = torch.meshgrid(*[torch.arange(crop.size).double() + 0.5] * 2, indexing="ij")
    expected = crop.points_to_photo(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1)
    tolerance = 1e-9 if scale >= 1 else 0.1  # photo px; a tent sampled at whole pixels is that much off centre
    torch.testing.assert_close(image, expected, rtol=0, atol=tolerance)


def test_minifying_does_not_alias():
    """A one-pixel chequerboard must turn grey."""
    board = (torch.arange(512)[:, None] + torch.arange(512)).remainder(2).double()[None]
    image = Crop(0.0, 0.0, 0.11, 56).image(board)
    assert (image - 0.5).abs().max() < 0.02


def test_constant_stays_constant_far_over_the_border():
    image = Crop(-300.0, -200.0, 0.3, 224).image(torch.full((3, 60, 50), 0.7))
    torch.testing.assert_close(image, torch.full((3, 224, 224), 0.7))


@pytest.mark.parametrize("scale", [1.3, 0.4])
def test_image_gradient(scale):
    photo = torch.rand(1, 9, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Crop(-2.2, 1.4, scale, 5).image, (photo,))


@pytest.mark.parametrize(("left", "top"), [(50.0, 0.0), (0.0, 40.0), (-20.0, 0.0), (0.0, -20.0)])
def test_square_beside_the_photo(left, top):
    with pytest.raises(ImageError, match=r"crop: got a square of 20 px at .*expected one that overlaps the 50 x 40 px"):
        Crop(left, top, 2.0, 40).image(torch.zeros(3, 40, 50))


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 0.0, 0.0), (9.0, 0.0, 1.0, 9.0), (0.0, math.nan, 9.0, 9.0), (0.0, 0.0, math.inf, 9.0)]
)
def test_bad_box(box):
    with pytest.raises(ImageError, match=r"face box: got left=.*; expected finite pixels with left < right"):
        crop_from_box(*box, 224)


def test_bad_landmarks():
    for landmarks in (torch.full((68, 2), 7.0), torch.full((68, 2), torch.nan)):
        with pytest.raises(ImageError, match="face box: got"):
            crop_from_landmarks(landmarks, 224)


@pytest.mark.parametrize(("size", "fill"), [(0, 0.57), (224, 0.0), (224, math.nan)])
def test_bad_size(size, fill):
    with pytest.raises(ImageError, match=r"crop: got size=.*expected positive numbers"):
        crop_from_box(0.0, 0.0, 9.0, 9.0, size, fill)


def test_committed_photo_at_two_scales():
    """Halving the photo and its landmarks gives (nearly) the same crop."""
    photo, landmarks = read_image(DATA / "astronaut.jpg"), read_landmarks(DATA / "astronaut.json")
    half = interpolate(photo[None], scale_factor=0.5, mode="area")[0]
    full_crop, half_crop = crop_from_landmarks(landmarks, 64), crop_from_landmarks(landmarks / 2, 64)
    assert half_crop.scale == pytest.approx(2 * full_crop.scale)
    assert (full_crop.image(photo) - half_crop.image(half)).abs().mean() < 0.01


def test_hull_mask_holds_the_pixels_inside():
    points = torch.tensor([[2.0, 3], [8, 3], [8, 9], [2, 9], [5, 5]])  # columns 2 - 7, rows 3 - 8
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[3:9, 2:8] = True
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        assert hull_mask(points[order], 12).equal(expected)
    assert not hull_mask(points - 50, 12).any()
