"""Representation power: known values of the detail scores, fits that find their origin, the truth folder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nl3dmm.data.images import write_png
from nl3dmm.data.truth import TruthFaces
from nl3dmm.errors import AssetError, ShapeError
from nl3dmm.evaluation.detail import detail_region, detail_scores, detail_sigma, high_pass
from nl3dmm.evaluation.latent_search import LandmarkTarget, MeshTarget, ends, fit_shape, minimise
from nl3dmm.evaluation.representation import (
    TextureFit,
    draw_truth,
    errors_table,
    fit_texture,
    known,
    placement_errors,
    texture_errors,
)
from nl3dmm.geometry.camera import project, rotation_from_euler
from nl3dmm.geometry.similarity import similarity_aligned
from nl3dmm.losses.pixels import l21
from nl3dmm.model import FaceModel
from nl3dmm.render.scene import render_textures
from nl3dmm.types import Latents

UV = (64, 80)


@pytest.fixture(scope="module")
def model(small_model_config, small_template) -> FaceModel:
    """Decoders with random weights in every layer: of fresh ones the ends are 0, and latent 0 stays so."""
    torch.manual_seed(3)
    model = FaceModel(small_model_config, small_template).eval()
    with torch.no_grad():
        for decoder in (model.shape_decoder, model.albedo_decoder):
            for parameter in decoder.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.kaiming_normal_(parameter)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def batch(small_world):
    return small_world.sample(torch.arange(3))


def stripes(period: int) -> torch.Tensor:
    """Horizontal waves, mean 0.5."""
    rows = 0.5 + 0.1 * torch.sin(2 * torch.pi * torch.arange(UV[0]) / period)
    return rows[None, None, :, None].expand(1, 3, *UV).contiguous()


def test_sigma_is_the_same_part_of_every_face():
    assert detail_sigma((192, 224)) == pytest.approx(4)
    assert detail_sigma((96, 112)) == pytest.approx(2)


def test_high_pass_of_a_constant_is_nothing_also_at_the_mask_edge():
    mask = torch.rand(UV) > 0.3
    assert high_pass(torch.full((2, 3, *UV), 0.7), mask, 1.5).abs().max() < 1e-6


@pytest.mark.parametrize(("period", "sigma"), [(4, 4.0), (8, 2.0), (16, 3.0), (32, 1.5), (64, 0.5)])
def test_high_pass_of_waves(period, sigma):
    """A Gaussian of sigma s leaves exp(-(2 pi s / period)^2 / 2) of a wave; the rest passes."""
    wave, expected = stripes(period), 1 - math.exp(-0.5 * (2 * math.pi * sigma / period) ** 2)
    inner = (slice(None), slice(None), slice(20, 44), slice(20, 60))
    passed = high_pass(wave, torch.ones(UV, dtype=torch.bool), sigma)[inner]
    torch.testing.assert_close(passed, expected * (wave[inner] - 0.5), atol=2e-3, rtol=0.02)


def test_region_leaves_out_the_edges():
    skin = torch.ones(UV)
    skin[30:34, 30:50] = 0.2
    region = detail_region(skin)
    assert not region[28:36, 28:52].any()  # ceil(80 * 4 / 224) = 2 texels
    assert region[27, 40]
    assert not region[:2].any()


def test_detail_scores_of_known_estimates():
    torch.manual_seed(1)
    mean = torch.rand(3, *UV)
    own = 0.02 * torch.randn(2, 3, *UV)
    smooth = 0.2 * torch.rand(2, 3, 1, 1)
    truth = mean + own
    assert_scores(detail_scores(truth, truth, mean, torch.ones(UV)), 1, 1, 1)
    assert_scores(detail_scores(mean + smooth + own / 2, truth, mean, torch.ones(UV)), 0.5, 1, 0.25)
    assert_scores(detail_scores(mean.expand(2, -1, -1, -1), truth, mean, torch.ones(UV)), 0, 0, 0)
    assert_scores(detail_scores(mean - own, truth, mean, torch.ones(UV)), -1, -1, 1)
    noise = mean + 0.02 * torch.randn(2, 3, *UV)
    assert_scores(detail_scores(noise, truth, mean, torch.ones(UV)), 0, 0, 1, tolerance=0.06)


def test_without_detail_nothing_is_recovered():
    """A truth that is the average face, or differs from it in what is no detail: rounding is not measured."""
    torch.manual_seed(1)
    mean = torch.rand(3, *UV)
    estimate = mean + 0.02 * torch.randn(3, 3, *UV)
    offset = torch.tensor([0.0, 0.25, 0.1])[:, None, None, None]
    assert_scores(detail_scores(estimate, mean + offset, mean, torch.ones(UV)), 0, 0, 0, tolerance=0)
    fine = mean + offset + 1e-4 * torch.randn(3, 3, *UV)
    assert_scores(detail_scores(fine, fine, mean, torch.ones(UV)), 1, 1, 1)


def assert_scores(scores, recovered, correlation, energy, tolerance=1e-4):
    for name, value in (("recovered", recovered), ("correlation", correlation), ("energy", energy)):
        got = scores[f"detail_{name}"]
        torch.testing.assert_close(got, torch.full_like(got, value), atol=tolerance, rtol=0, msg=name)


def test_only_visible_skin_counts():
    truth, mean = torch.rand(1, 3, *UV), torch.zeros(3, *UV)
    estimate, visible = truth.clone(), torch.zeros(1, *UV, dtype=torch.bool)
    visible[:, :, :40] = True
    estimate[..., 50:] = 0.5
    assert_scores(detail_scores(estimate, truth, mean, torch.ones(UV), visible), 1, 1, 1)
    assert_scores(detail_scores(estimate, truth, mean, torch.ones(UV), visible & False), 0, 0, 0)


def test_minimise_finds_the_least_of_each_face_on_its_own():
    goal = torch.tensor([[1.0], [-3.0], [0.2]])

    def run(rows):
        free = torch.zeros(len(rows), 1, requires_grad=True)
        minimise([(free, 0.1)], lambda: ((free - goal[rows]) ** 2).sum(1), 150)
        return free.detach()

    torch.testing.assert_close(run([0, 1, 2]), goal, atol=0.02, rtol=0)
    torch.testing.assert_close(run([1]), run([0, 1, 2])[1:2])


def test_texture_fit_finds_a_face_of_the_model(model, batch):
    """Images that the decoder and some light can make are made again; shape, camera and the model stay."""
    torch.manual_seed(0)
    face = model.encode(batch.image).detach()
    latent = face.latents.albedo_latent + 0.7 * torch.randn(3, 8)
    with torch.no_grad():
        albedo = model.decode(Latents(face.latents.shape_latent, latent)).maps.albedo_final
        drawn = draw_truth(model, batch, albedo, batch.sh_coefficients)
    made = replace(batch, image=drawn.images[:, 0], mask=drawn.mask, albedo=albedo)
    before = [parameter.clone() for parameter in model.parameters()]
    start, fit = (fit_texture(model, made, face, steps) for steps in (0, 80))
    errors = [texture_errors(model, made, each, albedo.mean(0)) for each in (start, fit)]
    assert (errors[1]["l21"] < 0.25 * errors[0]["l21"]).all()
    assert all(one.equal(other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_texture_fit_without_steps_is_the_encoders(model, batch):
    face = model.encode(batch.image).detach()
    for end in ("proxy", "final"):
        fit = fit_texture(model, batch, face, 0, end)
        torch.testing.assert_close(fit.albedo, getattr(model.decode(face.latents).maps, f"albedo_{end}").detach())
        assert fit.sh_coefficients.equal(face.sh_coefficients)


def test_the_true_texture_is_nearly_perfect(model, batch):
    fit = TextureFit(batch.albedo, batch.sh_coefficients)
    errors = texture_errors(model, batch, fit, batch.albedo.mean(0))
    assert (errors["l21"] < 0.05).all()
    torch.testing.assert_close(errors["detail_recovered"], torch.ones(3))
    assert errors["albedo_l1"].eq(0).all()
    drawn = draw_truth(model, batch, fit.albedo, fit.sh_coefficients)
    expected = l21(drawn.images[:, 0].clamp(0, 1), batch.image, drawn.mask & batch.mask)
    torch.testing.assert_close(errors["l21"], expected)


@pytest.mark.parametrize("end", ["proxy", "final"])
def test_shape_fit_finds_a_mesh_of_the_model_wherever_it_stands(model, end):
    torch.manual_seed(0)
    latent = 0.7 * torch.randn(2, 8)
    with torch.no_grad():
        target = getattr(model.decode(Latents(latent, latent)), f"vertices_{end}")
    turn = rotation_from_euler(*(0.3 * torch.randn(3, 2)))
    moved = MeshTarget(model.template, 1.3 * target @ turn.transpose(1, 2) + 20)
    start, fit = (fit_shape(model, moved, steps, end) for steps in (0, 120))
    errors = [moved.errors(vertices) for vertices in (start, fit)]
    assert (errors[1]["nme"] < 0.35 * errors[0]["nme"]).all()
    assert (errors[1]["normal_cosine"] > errors[0]["normal_cosine"]).all()
    still = MeshTarget(model.template, target, align=False)
    assert (still.errors(fit_shape(model, still, 120, end))["nme"] < 0.35 * errors[0]["nme"]).all()


def test_nme_of_a_known_offset(model):
    """3 mm everywhere without alignment; the outer corners of the eyes are the measure."""
    target = model.template.vertices[None] * 1.0
    errors = MeshTarget(model.template, target, align=False).errors(target + torch.tensor([0.0, 0, 3.0]))
    eyes = model.template.landmarks(target)[0, [36, 45]]
    torch.testing.assert_close(errors["distance_mm"], torch.tensor([3.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(errors["nme"], 3 / (eyes[0] - eyes[1]).norm()[None], rtol=1e-4, atol=0)
    assert MeshTarget(model.template, target).errors(target + 3.0)["nme"] < 1e-4
    torch.testing.assert_close(errors["normal_cosine"], torch.ones(1))


def landmarks_of(model, latent, unit=1.7):
    """68 points in another unit and pose, and the mesh they are of."""
    torch.manual_seed(1)
    with torch.no_grad():
        vertices = model.decode(Latents(latent, latent)).vertices_final
    turn = rotation_from_euler(*(0.5 * torch.randn(3, len(latent))))
    points = unit * model.template.landmarks(vertices) @ turn.mT + 30
    return LandmarkTarget(model.template, points), vertices


def test_shape_fit_to_landmarks_finds_them_wherever_they_are(model):
    target, vertices = landmarks_of(model, 0.7 * torch.randn(2, 8))
    start, fit = (target.errors(fit_shape(model, target, steps)) for steps in (0, 120))
    for name in ("landmark_nme_3d", "landmark_nme_3d_inner"):
        assert (fit[name] < 0.4 * start[name]).all()
        assert (target.errors(vertices)[name] < 1e-4).all()
    torch.testing.assert_close(target.similarity(vertices).scale, torch.full((2,), 1.7))


def test_the_contour_does_not_move_the_pose(model):
    """Contour points 12 units off in an image of 1.7 units per mm: 17 of 68, and none of the 51."""
    target, vertices = landmarks_of(model, torch.zeros(1, 8))
    off = target.points.clone()
    off[:, :17, 1] -= 12
    errors = LandmarkTarget(model.template, off).errors(vertices)
    span = (target.points[0, 36] - target.points[0, 45]).norm()
    torch.testing.assert_close(errors["landmark_nme_3d"][0], 12 * 17 / 68 / span, rtol=1e-3, atol=0)
    assert errors["landmark_nme_3d_inner"] < 1e-4
    assert LandmarkTarget(model.template, off).losses(vertices) == pytest.approx(12 * 17 / 68 / 1.7, rel=1e-3)


def test_the_prior_holds_latents_back(model):
    target, _ = landmarks_of(model, 2 * torch.randn(1, 8))
    start = fit_shape(model, target, 0)
    free, held = (fit_shape(model, LandmarkTarget(model.template, target.points, prior), 40) for prior in (0.0, 30.0))
    assert (held - start).norm() < 0.5 * (free - start).norm()


def test_without_true_albedo_the_placement_is_reported(model, batch):
    face = model.encode(batch.image).detach()
    unknown = replace(batch, albedo=None, sh_coefficients=None)
    errors = texture_errors(model, unknown, fit_texture(model, unknown, face, 0), None)
    assert list(errors) == ["l21", "landmark_nme", "landmark_nme_inner"]
    assert errors["landmark_nme"].max() < 1e-4
    shifted = replace(batch.camera, principal_point=batch.camera.principal_point + torch.tensor([3.0, 4.0]))
    errors = placement_errors(model, replace(unknown, camera=shifted))
    box = (batch.landmarks.amax(1) - batch.landmarks.amin(1)).prod(1).sqrt()
    torch.testing.assert_close(errors["landmark_nme"], 5 / box, rtol=1e-4, atol=0)
    torch.testing.assert_close(errors["landmark_nme_inner"], 5 / box, rtol=1e-4, atol=0)


def test_table_of_groups():
    errors = {"encoder": {"l21": 0.2, "landmark_nme_3d_inner": 0.03}, "final": {"l21": 0.1, "landmark_nme_3d_inner": 0}}
    lines = errors_table({"errors": errors, "groups": {"yaw 0-30": {"faces": 2, "errors": errors}}}).splitlines()
    assert lines[0].split() == ["l21", "landmark_nme_3d_inner"]
    assert lines[1].split() == ["encoder", "0.2000", "0.0300"]
    assert lines[3] == "yaw 0-30: 2 face(s)"
    assert lines[1:3] == lines[4:]
    assert len({len(line) for line in lines if not line.startswith("yaw")}) == 1


def test_one_end_is_fitted_once(model):
    assert ends(model) == ("proxy", "final")

    class OneEnd(torch.nn.Module):
        def __init__(self, decoder):
            super().__init__()
            self.decoder = decoder

        def forward(self, latent):
            return (self.decoder(latent)[1],) * 2

    single = FaceModel(model.config, model.template).eval()
    single.shape_decoder, single.albedo_decoder = OneEnd(model.shape_decoder), OneEnd(model.albedo_decoder)
    assert ends(single) == ("final",)


def test_faces_without_truth_are_refused(model, batch):
    fit = TextureFit(batch.albedo, batch.sh_coefficients)
    with pytest.raises(ShapeError, match="batch: got faces without truth; expected mask, camera, mesh, albedo"):
        texture_errors(model, replace(batch, vertices=None), fit, batch.albedo.mean(0))
    assert known(0) == 0


@pytest.fixture(scope="module")
def truth_folder(tmp_path_factory, small_template):
    """Two faces rendered as those of the ICT truth set, with the embedded face in its place."""
    folder, size = tmp_path_factory.mktemp("truth"), 96
    torch.manual_seed(5)
    identity = 0.5 * torch.randn(2, len(small_template.identity_basis))
    expression = 0.2 * torch.rand(2, len(small_template.expression_basis))
    rotation = rotation_from_euler(*(0.2 * torch.randn(3, 2)))
    look_at, distance, focal = torch.tensor([0.0, 3.0, 20.0]), 600.0, 3.2 * size
    vertices = small_template.morph(identity, expression)
    points = (small_template.landmarks(vertices) - look_at) @ rotation.transpose(1, 2)
    away = distance - points[..., 2]
    landmarks = size / 2 + focal * points[..., :2] * torch.tensor([1, -1]) / away[..., None]
    np.savez(
        folder / "truth.npz",
        mask=np.ones((2, size, size), bool),
        landmarks=landmarks.numpy(),
        identity=identity.numpy(),
        expression=expression.numpy(),
        rotation=rotation.numpy(),
        sh=np.eye(9, 3, dtype=np.float32)[None].repeat(2, 0),
        albedo=np.full((2, 64, 64, 3), 102, np.uint8),
        seed=np.array([70, 71]),
        focal_px=np.float32(focal),
        camera_distance_cm=np.float32(distance / 10),
        look_at_cm=(look_at / 10).numpy(),
    )
    for seed in (70, 71):
        write_png(torch.full((3, size, size), 0.25), folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def ict_like(small_template):
    return replace(small_template, name="ict")


def test_truth_faces_agree_with_their_landmarks(truth_folder, ict_like):
    faces = TruthFaces(truth_folder, ict_like, 48)
    assert len(faces) == 2
    batch = faces.sample(torch.tensor([1, 0]))
    assert batch.index.tolist() == [1, 0]
    assert batch.image.shape == (2, 3, 48, 48)
    pixels, _ = project(batch.camera, ict_like.landmarks(batch.vertices))
    torch.testing.assert_close(pixels, batch.landmarks, atol=1e-3, rtol=0)
    torch.testing.assert_close(batch.vertices, faces.vertices(torch.tensor([1, 0])))
    torch.testing.assert_close(batch.albedo, torch.full((2, 3, 32, 32), 0.4), atol=1e-3, rtol=0)
    torch.testing.assert_close(faces.mean_albedo(), torch.full((3, 32, 32), 0.4), atol=1e-3, rtol=0)
    assert batch.sh_coefficients.shape == (2, 3, 9)
    assert batch.sh_coefficients[:, 1, 1].eq(1).all()
    drawn = render_textures(
        batch.vertices, batch.albedo[:, None], batch.camera, batch.sh_coefficients, ict_like.surface(), (48, 48), "srgb"
    )
    assert drawn.mask.float().mean() > 0.2


def test_truth_of_another_topology_is_refused(truth_folder, small_template):
    with pytest.raises(AssetError, match="for a model of template 'embedded'; expected one trained with template=ict"):
        TruthFaces(truth_folder, small_template, 48)


@pytest.mark.parametrize("damage", ["cut", "key", "shape"])
def test_damaged_truth_is_refused(damage, truth_folder, ict_like, tmp_path):
    data = dict(np.load(truth_folder / "truth.npz"))
    if damage == "key":
        data.pop("sh")
    if damage == "shape":
        data["rotation"] = data["rotation"][:, :2]
    np.savez(tmp_path / "truth.npz", **data)
    if damage == "cut":
        whole = (tmp_path / "truth.npz").read_bytes()
        (tmp_path / "truth.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AssetError, match="expected the truth of rendered ICT faces"):
        TruthFaces(tmp_path, ict_like, 48)


def test_alignment_is_that_of_the_evaluation(model):
    target = model.template.vertices[None] + torch.randn(1, len(model.template.vertices), 3)
    used = model.template.triangles.unique()
    aligned = similarity_aligned(model.template.vertices[None, used], target[:, used])
    expected = (aligned - target[:, used]).norm(dim=-1).mean(1)
    got = MeshTarget(model.template, target).errors(model.template.vertices[None])["distance_mm"]
    torch.testing.assert_close(got, expected)
