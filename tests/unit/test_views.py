"""What can be drawn of a fitted face: it is the photo's face, lit and turned as asked."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nl3dmm.errors import ConfigError, OutputError, ShapeError
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.lighting import NAMED_LIGHTS, directional_light, light_albedo, light_from, shade, white_light
from nl3dmm.geometry.uv import erode, sample_uv_map


@pytest.fixture
def face(true_face):
    return true_face("perspective")


def covered(face) -> torch.Tensor:
    """Photo pixels well inside the face."""
    size = (face.photo.shape[1], face.photo.shape[2])
    drawn = face.model.render_final(replace(face.face, camera=face.camera), face.geometry, size)
    return erode(drawn.mask[0], 3)


def test_a_perfect_fit_draws_the_photo(face):
    picture = face.render()
    inside = covered(face)
    assert picture.shape == face.photo.shape
    assert float((picture - face.photo).abs()[:, inside].mean()) < 0.02
    assert (picture[:, :5] == 1).all()


@pytest.mark.parametrize("size", [96, (96, 150), (150, 96)])
def test_with_a_size_the_fitted_square_fills_the_middle(face, size):
    height, width = (size, size) if isinstance(size, int) else size
    picture = face.render(size=size)
    assert picture.shape == (3, height, width)
    top, left = (height - 96) // 2, (width - 96) // 2
    square = picture[:, top : top + 96, left : left + 96]
    torch.testing.assert_close(square, face.render(size=96), atol=2e-3, rtol=0)


def test_views_turn_about_the_middle(face):
    used = face.vertices[face.triangles.unique()]
    for yaw in (-60.0, 0.0, 60.0):
        pixels, _ = project(face.view(yaw, size=(100, 140)), used[None])
        assert float(pixels.min()) > 0
        assert float(pixels[..., 1].max()) < 100
        picture = face.render(face.view(yaw, size=64), size=64)
        assert (picture.amin(0)[[0, -1]] == 1).all()  # nothing is cut off
    nose = face.landmarks_3d[None, 30:31]
    columns = [float(project(face.view(yaw, size=64), nose)[0][0, 0, 0]) for yaw in (-30.0, 0.0, 30.0)]
    rows = [float(project(face.view(0.0, pitch, size=64), nose)[0][0, 0, 1]) for pitch in (-20.0, 0.0, 20.0)]
    assert columns == sorted(columns)
    assert rows == sorted(rows)  # positive pitch looks down


def test_light_comes_from_where_it_is_said_to(face):
    pictures = {name: face.render(face.view(size=64), name, 64) for name in NAMED_LIGHTS}
    inside = face.render(face.view(size=64), white_light(1, 1e-4)[0], 64).amax(0) < 0.5
    left, right = inside.clone(), inside.clone()
    left[:, 32:], right[:, :32] = False, False

    def level(name: str, where: torch.Tensor) -> float:
        return float(pictures[name][:, where].mean())

    assert level("image_left", left) > 1.3 * level("image_left", right)
    assert level("image_right", right) > 1.3 * level("image_right", left)
    above, below = inside.clone(), inside.clone()
    above[20:], below[:44] = False, False
    assert level("above", above) - level("above", below) > level("below", above) - level("below", below)


def test_lights_by_name_direction_and_coefficients():
    assert torch.equal(light_from("ambient"), white_light(1)[0])
    assert torch.equal(light_from("front"), light_from((0.0, 0.0, 5.0)))
    coefficients = directional_light(torch.tensor([0.0, 0, 1]), torch.ones(3))
    assert torch.equal(light_from(coefficients), coefficients)
    facing = shade(torch.tensor([[[0.0, 0, 1]]]), light_from("front")[None])
    assert 0.9 < float(facing.min()) <= float(facing.max()) < 1.1


def test_wrong_lights():
    with pytest.raises(ConfigError, match="light: got 'moon'; expected one of ambient, front"):
        light_from("moon")
    with pytest.raises(ShapeError, match=r"light: got shape \(9,\); expected finite \(3, 9\) coefficients"):
        light_from(torch.zeros(9))
    for wrong in ((0.0, 0.0, 0.0), (1.0, float("nan"), 0.0), torch.full((3, 9), torch.inf)):
        with pytest.raises(ShapeError, match=r"light: got \[.*\]; expected finite numbers, not all 0"):
            light_from(wrong)


def test_relit_by_its_own_light_the_photo_stays(face):
    relit = face.relight(face.face.sh_coefficients[0])
    torch.testing.assert_close(relit, face.photo, atol=2e-5, rtol=0)


def test_relit_the_face_is_as_drawn_in_that_light(face):
    light = light_from("image_left")
    relit, inside = face.relight(light), covered(face)
    deep = erode(inside, 2)
    drawn = face.render(light=light)
    assert float((relit - face.photo).abs()[:, deep].mean()) > 0.05
    assert float((relit - drawn).abs()[:, deep].mean()) < 0.03
    outside = ~torch.from_numpy(cv2.dilate(inside.numpy().astype(np.uint8), np.ones((9, 9)))).bool()
    torch.testing.assert_close(relit[:, outside], face.photo[:, outside], atol=2e-5, rtol=0)


def test_shading_times_albedo_is_what_the_renderer_draws(face):
    lit = light_albedo(face.albedo, face.shading, "srgb").clamp(0, 1)
    maps = replace(face.geometry.maps, albedo_final=lit[None])
    painted = replace(face, geometry=replace(face.geometry, maps=maps))
    torch.testing.assert_close(painted.render(light="ambient"), face.render(), atol=0.02, rtol=0)


def test_normal_map_has_the_vertex_normals(face):
    at_vertices = sample_uv_map(face.normal_map[None], face.uv)[0]
    torch.testing.assert_close(at_vertices, face.normals, atol=1e-5, rtol=0)


def test_arrays_have_everything(face):
    arrays = face.arrays()
    assert torch.equal(arrays["vertices_mm"], face.vertices)
    assert torch.equal(arrays["landmarks_px"], face.landmarks)
    assert torch.equal(arrays["camera_rotation"], face.camera.rotation[0])
    assert arrays["shape_latent"].shape == (8,)
    assert arrays["shading"].shape == arrays["normal_map"].shape == arrays["albedo_proxy"].shape == face.albedo.shape


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_turntable(face, tmp_path, suffix):
    file = face.turntable(tmp_path / f"film.{suffix}", frames=12, size=63, frames_per_second=12.0)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    if suffix == "gif":
        with Image.open(file) as film:
            assert (film.n_frames, film.info["loop"], film.info["duration"]) == (12, 0, 80)
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    else:
        reader = cv2.VideoCapture(str(file))
        assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
        frames = [reader.read()[1][..., ::-1] for _ in range(12)]
        assert not reader.read()[0]
    for k, yaw in ((0, 0.0), (3, 60.0), (9, -60.0)):
        expected = (face.render(face.view(yaw, size=64), size=64) * 255).permute(1, 2, 0).numpy()
        assert np.abs(frames[k].astype(float) - expected).mean() < 6
    assert np.abs(frames[3].astype(float) - frames[9]).mean() > 6


def test_turntable_errors(face, tmp_path):
    with pytest.raises(OutputError, match=r"path: got .*film\.avi; expected a name that ends in \.mp4 or \.gif"):
        face.turntable(tmp_path / "film.avi")
    with pytest.raises(OutputError, match=r"output file: got .*missing"):
        face.turntable(tmp_path / "missing" / "film.gif")
    with pytest.raises(ConfigError, match="frames: got 1; expected 2 to"):
        face.turntable(tmp_path / "film.gif", frames=1)
    with pytest.raises(ConfigError, match="frames_per_second: got 60"):
        face.turntable(tmp_path / "film.gif", frames_per_second=60.0)
    assert list(tmp_path.iterdir()) == []
