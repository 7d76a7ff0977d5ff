"""300W-LP and AFLW2000-3D with the Basel model's bases: original layout and the authors' preprocessed one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from aflw2000_files import rotation
from face_model_files import landmarks, vertices_mm, write_front_bfm2009, write_trimmed_bfm2009
from PIL import Image
from scipy.io import savemat

from nl3dmm.assets.bfm2009 import read_bfm2009
from nl3dmm.data.aflw2000 import AnnotatedPhotos
from nl3dmm.data.w300lp import SIDE, PreprocessedFaces
from nl3dmm.errors import AssetError, ShapeError
from nl3dmm.geometry.camera import project

SIZE, SCALE = 450, 0.0013  # px, px per micrometre, as in 300W-LP
POSES = [(4.0, -12.0, 7.0), (-20.0, 50.0, -3.0), (10.0, 75.0, 15.0)]
ALL = torch.arange(3)


class Files:
    """Bases of 199 and 29 modes, and faces made with the formulas of the data's authors, in micrometres."""

    def __init__(self, folder: Path):
        generator = np.random.default_rng(0)
        count = vertices_mm().size
        self.mean = 1000 * vertices_mm().reshape(-1)
        self.shape_modes = np.linalg.qr(generator.normal(size=(count, 199)))[0]
        self.deviations = np.linspace(8e4, 1e3, 199)
        self.expression_modes = generator.normal(size=(count, 29)) * 300
        self.shift = generator.normal(size=count) * 500
        self.model = write_trimmed_bfm2009(
            folder,
            w=self.shape_modes,
            sigma=self.deviations[:, None],
            mu_exp=self.shift[:, None],
            w_exp=self.expression_modes,
            sigma_exp=np.linspace(1.6, 0.1, 29)[:, None],
        )
        self.shapes = generator.normal(size=(3, 199)) * self.deviations
        self.expressions = generator.normal(size=(3, 29))

    def mesh(self, face: int) -> np.ndarray:
        """Micrometres, (3, vertices)."""
        offset = self.shape_modes @ self.shapes[face] + self.expression_modes @ self.expressions[face]
        return (self.mean + self.shift + offset).reshape(-1, 3).T

    def marks(self, face: int, shift: np.ndarray, scale: float) -> np.ndarray:
        """(3, 68), pixels with y up."""
        mesh = scale * rotation(*np.radians(POSES[face])) @ self.mesh(face) + shift[:, None]
        return mesh[:, landmarks()]

    def write_original(self, folder: Path, is_plane: bool) -> Path:
        """``.mat`` with ``pt2d`` (300W-LP) or ``pt3d_68`` (AFLW2000-3D), and ``.jpg``."""
        folder.mkdir()
        shift = np.array([SIZE / 2, SIZE / 2 - 20, -80.0])
        for face, degrees in enumerate(POSES):
            x, y, z = self.marks(face, shift, SCALE)
            points = {"pt2d": np.stack([x, SIZE + 1 - y])} if is_plane else {"pt3d_68": np.stack([x, SIZE + 1 - y, z])}
            fit = {"Shape_Para": self.shapes[face][:, None], "Exp_Para": self.expressions[face][:, None]}
            pose = np.array([[*np.radians(degrees), *shift, SCALE]], np.float32)
            savemat(folder / f"face_{face}.mat", {**points, **fit, "Pose_Para": pose})
            Image.new("RGB", (SIZE, SIZE), (90, 80, 70)).save(folder / f"face_{face}.jpg")
        return folder

    def write_preprocessed(self, folder: Path) -> Path:
        """Filelist, rows of 294 numbers, pictures with a white pixel at point 30, and masks of their left halves."""
        for name in ("filelist", "image", "mask_img"):
            (folder / name).mkdir(parents=True)
        names, rows, scale = [], [], 9.2e-4
        for face, degrees in enumerate(POSES):
            shift = np.array([SIDE / 2 + 20, SIDE / 2 - 5, 0.0])
            turned = scale * rotation(*np.radians(degrees))
            x, y, _ = self.marks(face, shift, scale)[:, 30]
            picture = np.zeros((SIDE, SIDE, 3), np.uint8)
            picture[SIDE - round(y), round(x) - 1] = 255
            mask = np.zeros((SIDE, SIDE, 3), np.uint8)
            mask[:, : SIDE // 2] = 255
            names.append(f"AFW_{face}_0.png")
            Image.fromarray(picture).save(folder / "image" / names[-1])
            Image.fromarray(mask).save(folder / "mask_img" / names[-1])
            projection = np.concatenate([turned[:2].T, shift[None, :2]]).reshape(-1)
            rest = [np.radians(degrees), shift, [scale], self.shapes[face], self.expressions[face], np.zeros(50)]
            rows.append(np.concatenate([[face], projection, *rest]))
        (folder / "filelist" / "AFW_filelist.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        (folder / "filelist" / "AFW_param.dat").write_bytes(np.array(rows, np.float32).tobytes())
        return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("basel"))


@pytest.fixture(scope="module")
def basis(files):
    return read_bfm2009(files.model, any_size=True)


@pytest.mark.parametrize("is_plane", [True, False])
def test_parameters_become_the_mesh_that_the_camera_sees(files, basis, tmp_path, is_plane):
    photos = AnnotatedPhotos(files.write_original(tmp_path / "faces", is_plane), 224, basis)
    batch = photos.sample(ALL)
    expected = np.stack([files.mesh(face).T / 1000 for face in range(3)])
    np.testing.assert_allclose(batch.vertices.numpy(), expected, atol=2e-3)
    seen, _ = project(batch.camera, photos.fits.landmarks(batch.vertices))
    error = (seen - batch.landmarks).norm(dim=2) / (batch.camera.scale / (1000 * SCALE))[:, None]
    assert float(error.mean()) < 0.01  # photo px


def test_without_the_basis_pose_and_crop_are_still_right(files, basis, tmp_path):
    folder = files.write_original(tmp_path / "faces", is_plane=True)
    photos = AnnotatedPhotos(folder, 224)
    batch, known = photos.sample(ALL), AnnotatedPhotos(folder, 224, basis).sample(ALL)
    assert batch.vertices is None
    assert torch.equal(batch.landmarks, known.landmarks)
    for face, degrees in enumerate(POSES):
        nose = rotation(*np.radians(degrees))[:, 2]
        np.testing.assert_allclose(batch.camera.rotation[face, :, 2].numpy(), nose, atol=1e-6)
    box = batch.landmarks.amax(1) - batch.landmarks.amin(1)
    torch.testing.assert_close(box.amax(1), torch.full((3,), 0.57 * 224), atol=0.01, rtol=0)
    message = (
        r"basis: got none; expected .*Model_Shape\.mat with Model_Expression\.mat .*Give basis=read_bfm2009\(path\)"
    )
    with pytest.raises(AssetError, match=message + r".*faces\.dmi\.unibas\.ch"):
        photos.vertices(ALL)


def test_points_in_the_plane_have_no_depth(files, tmp_path):
    photos = AnnotatedPhotos(files.write_original(tmp_path / "faces", is_plane=True), 224)
    with pytest.raises(AssetError, match=r"face_0\.mat: got points in the plane; expected pt3d_68"):
        photos.points(ALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Shape_Para": np.zeros((198, 1))}, r"got float64 \(198, 1\) as Shape_Para; expected .*Shape_Para \(199, 1\)"),
        ({"Exp_Para": np.full((29, 1), np.nan)}, "got NaN or infinite values in Exp_Para"),
        ({"Exp_Para": "smile"}, "as Exp_Para"),
    ],
)
def test_wrong_parameters_are_named(basis, tmp_path, changes, message):
    pose, pair = {"Pose_Para": np.ones((1, 7))}, {"Shape_Para": np.zeros((199, 1)), "Exp_Para": np.zeros((29, 1))}
    savemat(tmp_path / "a.mat", pose | pair | {"pt2d": np.ones((2, 68))} | changes)
    with pytest.raises(AssetError, match=message):
        AnnotatedPhotos(tmp_path, 224, basis).vertices(torch.tensor([0]))


def test_another_basis_is_refused(files, tmp_path):
    other = read_bfm2009(write_front_bfm2009(tmp_path), any_size=True)
    folder = files.write_original(tmp_path / "faces", is_plane=True)
    with pytest.raises(AssetError, match="basis: got bfm2009 with 4 identities and 3 expressions; expected 199 and 29"):
        AnnotatedPhotos(folder, 224, other)


def test_preprocessed_rows_are_split(files, tmp_path):
    faces = PreprocessedFaces(files.write_preprocessed(tmp_path / "crops"), "AFW")
    values = faces.parameters(torch.tensor([2, 0]))
    assert len(faces) == 3
    assert values.person[:, 0].tolist() == [2, 0]
    np.testing.assert_allclose(values.shape.numpy(), files.shapes[[2, 0]], rtol=1e-6)
    np.testing.assert_allclose(values.expression.numpy(), files.expressions[[2, 0]], rtol=1e-6)
    assert [part.shape[1] for part in values] == [1, 8, 7, 199, 29, 40, 10]


@pytest.mark.parametrize("image_size", [256, 224, 223])
def test_preprocessed_faces_lie_under_their_cameras(files, basis, tmp_path, image_size):
    """The white pixel is point 30 of the mesh: the rows count pixels from 1 with y upwards."""
    faces = PreprocessedFaces(files.write_preprocessed(tmp_path / "crops"), "AFW", image_size, basis)
    batch = faces.sample(ALL)
    assert batch.image.shape == (3, 3, image_size, image_size)
    np.testing.assert_allclose(batch.vertices[1].numpy(), files.mesh(1).T / 1000, atol=2e-3)
    axis = torch.arange(image_size) + 0.5
    for face in range(3):
        light = batch.image[face, 0]
        centre = torch.stack([(light.sum(0) * axis).sum(), (light.sum(1) * axis).sum()]) / light.sum()
        assert (centre - batch.landmarks[face, 30]).abs().max() < 0.51  # rounded to a pixel
    assert batch.mask[:, :, : image_size // 2 - 1].all()
    assert not batch.mask[:, :, image_size // 2 + 1 :].any()
    torch.testing.assert_close(torch.linalg.det(batch.camera.rotation), torch.ones(3))
    torch.testing.assert_close(batch.camera.scale, torch.full((3,), 0.92))


def test_preprocessed_faces_without_the_basis(files, tmp_path):
    faces = PreprocessedFaces(files.write_preprocessed(tmp_path / "crops"), "AFW")
    batch = faces.sample(ALL)
    assert batch.landmarks is batch.vertices is None
    with pytest.raises(AssetError, match="basis: got none"):
        faces.vertices(ALL)
    with pytest.raises(ShapeError, match="image_size: got 257; expected 1 to 256"):
        PreprocessedFaces(tmp_path / "crops", "AFW", 257)


def test_damaged_preprocessed_files_are_refused(files, tmp_path):
    folder = files.write_preprocessed(tmp_path / "crops")
    names, rows = folder / "filelist" / "AFW_filelist.txt", folder / "filelist" / "AFW_param.dat"
    whole, listed = rows.read_bytes(), names.read_text(encoding="utf-8")
    with pytest.raises(AssetError, match=r"IBUG_filelist\.txt: got a file that cannot be read"):
        PreprocessedFaces(folder, "IBUG")
    rows.write_bytes(whole[:-4])
    with pytest.raises(AssetError, match=r"got 3524 bytes; expected 3528, 294 numbers \(float32\) for each of 3 names"):
        PreprocessedFaces(folder, "AFW")
    rows.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(AssetError, match="got NaN or infinite values"):
        PreprocessedFaces(folder, "AFW")
    rows.write_bytes(whole[:4] + np.ones(8, np.float32).tobytes() + whole[36:])
    with pytest.raises(AssetError, match=r"AFW_0_0\.png: got a projection whose rows differ from a scaled rotation's"):
        PreprocessedFaces(folder, "AFW").sample(torch.tensor([0]))
    names.write_text(listed.replace("AFW_0_0.png", "../secret.png"), encoding="utf-8")
    with pytest.raises(AssetError, match=r"got the name '\.\./secret\.png'; expected names of pictures in image/"):
        PreprocessedFaces(folder, "AFW")
    names.write_text("", encoding="utf-8")
    with pytest.raises(AssetError, match="got no names"):
        PreprocessedFaces(folder, "AFW")
    names.write_text(listed, encoding="utf-8")
    rows.write_bytes(whole)
    Image.new("RGB", (64, 64)).save(folder / "mask_img" / "AFW_0_0.png")
    with pytest.raises(AssetError, match=r"AFW_0_0\.png: got \(64, 64\) px; expected 256 x 256"):
        PreprocessedFaces(folder, "AFW").sample(torch.tensor([0]))


@pytest.mark.skipif("NL3DMM_AFLW2000" not in os.environ, reason="NL3DMM_AFLW2000 does not name a folder of AFLW2000-3D")
def test_the_real_samples():
    """The nose points where the pose says, and the points lie in the crop."""
    photos = AnnotatedPhotos(os.environ["NL3DMM_AFLW2000"], 224)
    everyone = torch.arange(len(photos))
    batch, points = photos.sample(everyone), photos.points(everyone)
    forwards = torch.nn.functional.normalize(points[:, 30] - points[:, [0, 16]].mean(1), dim=1)
    cosine = (forwards * batch.camera.rotation[..., 2]).sum(1)
    assert float(cosine.min()) > np.cos(np.radians(30))  # the tip of the nose is lower than the ears
    assert bool(((batch.landmarks > 0) & (batch.landmarks < 224)).all())
    box = batch.landmarks.amax(1) - batch.landmarks.amin(1)
    torch.testing.assert_close(box.amax(1), torch.full((len(photos),), 0.57 * 224), atol=0.01, rtol=0)
    with pytest.raises(AssetError, match="basis: got none"):
        photos.vertices(everyone)
