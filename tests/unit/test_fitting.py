"""Optimisation of latents, camera and light: stages, sharing, masks, early stops."""

from dataclasses import replace

import pytest
import torch

from nl3dmm.errors import ConfigError
from nl3dmm.fitting.optimise import _converged, optimise_faces
from nl3dmm.fitting.stages import FitConfig, photo_config
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.geometry.camera import rotation_from_euler
from nl3dmm.model import FaceModel
from nl3dmm.nn.perceptual import FeatureNetwork, PerceptualConfig
from nl3dmm.render.uv import unwrap_photo

STEPS = 6


@pytest.fixture(scope="module")
def model(small_model_config, small_template) -> FaceModel:
    torch.manual_seed(0)
    return FaceModel(small_model_config, small_template).eval()


@pytest.fixture(scope="module")
def faces(small_world):
    return small_world.sample(torch.arange(3))


@pytest.fixture(scope="module")
def start(model, faces):
    """Under the true cameras, so that the faces cover what they are compared with."""
    with torch.no_grad():
        return replace(model.encode(faces.image), camera=faces.camera)


@pytest.fixture(scope="module")
def target(faces) -> FitTarget:
    return FitTarget(faces.image, faces.landmarks)


CONFIG = FitConfig(STEPS, landmark=1.0, landmark_steps=1, proxy_steps=2, detail_steps=1)


def test_stages_follow_each_other_and_have_their_terms(model, target, start):
    assert CONFIG.stages() == [("pose", 1), ("proxy", 2), ("final", 2), ("detail", 1)]
    assert photo_config(20).stages() == [("pose", 4), ("final", 8), ("detail", 8)]
    seen = []
    result = optimise_faces(model, target, start, CONFIG, progress=lambda step, steps, loss: seen.append((step, steps)))
    assert seen == [(step + 1, STEPS) for step in range(STEPS)]
    lengths = {name: len(values) for name, values in result.curves[1].items()}
    assert lengths == {"landmark": 5, "latent_prior": 4, "photo": 5, "detail_prior": 1, "detail_symmetry": 1}


def test_each_face_is_fitted_as_if_it_were_alone(model, target, start):
    together = optimise_faces(model, target, start, CONFIG)
    alone = optimise_faces(model, FitTarget(target.image[1:2], target.landmarks[1:2]), start[1], CONFIG)
    second, only = together.face[1], alone.face
    torch.testing.assert_close(second.latents.shape_latent, only.latents.shape_latent, atol=2e-3, rtol=0)
    torch.testing.assert_close(second.camera.rotation, only.camera.rotation, atol=1e-3, rtol=0)
    for name, values in alone.curves[0].items():
        assert values == pytest.approx(together.curves[1][name], rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("shared", [("albedo",), ("shape", "albedo")])
def test_shared_latents_are_one_and_all_else_is_not(model, target, start, shared):
    face = optimise_faces(model, target, start, CONFIG, shared).face
    latents = {"shape": face.latents.shape_latent, "albedo": face.latents.albedo_latent}
    for name, latent in latents.items():
        assert (latent[0].equal(latent[1]) and latent[0].equal(latent[2])) == (name in shared)
    assert not face.camera.rotation[0].equal(face.camera.rotation[1])
    assert not face.sh_coefficients[0].equal(face.sh_coefficients[1])
    mean = start.latents.albedo_latent.mean(0)
    assert (face.latents.albedo_latent[0] - mean).norm() > 0.05  # they have moved from where they start


def test_what_a_mask_hides_does_not_matter(model, target, start):
    mask = torch.ones_like(target.image[:, 0], dtype=torch.bool)
    mask[:, :, 24:] = False
    other = torch.where(mask[:, None], target.image, torch.rand_like(target.image))
    config = FitConfig(STEPS)
    targets = [FitTarget(image, None, mask) for image in (target.image, other)]
    fitted = [optimise_faces(model, each, start, config).face for each in targets]
    assert fitted[0].latents.albedo_latent.equal(fitted[1].latents.albedo_latent)
    without = optimise_faces(model, FitTarget(other), start, config).face
    assert not without.latents.albedo_latent.equal(fitted[0].latents.albedo_latent)


def test_a_stage_ends_when_nothing_falls_any_more(model, target, start):
    config = FitConfig(200, learning_rate=1e-9, camera_rate=0.0, light_rate=0.0, tolerance=0.01)
    result = optimise_faces(model, target, start, config)
    assert len(result.curves[0]["photo"]) == 20  # two windows
    assert result.converged == [True] * 3
    falling = optimise_faces(model, target, start, replace(config, steps=22, learning_rate=0.05, light_rate=0.05))
    assert len(falling.curves[0]["photo"]) == 22


def test_convergence_is_not_claimed_of_a_few_steps(model, target, start):
    assert optimise_faces(model, target, start, FitConfig(5)).converged == [False] * 3


def test_converged_is_what_neither_falls_nor_rises():
    """Three faces: one rests, one falls, one rises."""
    steps = torch.arange(25.0)
    totals = torch.stack([torch.full_like(steps, 2.0), 2 - 0.04 * steps, 2 + 0.04 * steps], 1)
    assert _converged(list(totals)).tolist() == [True, False, False]
    assert not _converged(list(totals[:19])).any()


def test_the_perceptual_term_pulls_too(model, target, start):
    features = FeatureNetwork(PerceptualConfig(layers=("conv1_1",), weights="random", size=32))
    config = FitConfig(STEPS, perceptual=1.0, proxy_steps=2)
    result = optimise_faces(model, target, start, config, features=features)
    assert len(result.curves[0]["perceptual"]) == STEPS - 2
    without = optimise_faces(model, target, start, replace(config, perceptual=0.0))
    assert "perceptual" not in without.curves[0]
    assert not result.face.sh_coefficients.equal(without.face.sh_coefficients)


def test_unknown_names_and_impossible_stages_are_refused(model, target, start):
    with pytest.raises(ConfigError, match=r"shared: got \['light'\]; expected some of"):
        optimise_faces(model, target, start, CONFIG, ("light",))
    with pytest.raises(ConfigError, match="detail_steps: got 4; expected 0 to 3"):
        FitConfig(6, landmark_steps=1, proxy_steps=2, detail_steps=4)


def test_the_model_is_trainable_afterwards(model, target, start):
    optimise_faces(model, target, start, FitConfig(1))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_detail_stage_changes_albedo_alone(model, target, start):
    before = optimise_faces(model, target, start, FitConfig(3))
    after = optimise_faces(model, target, start, FitConfig(5, detail_steps=2))
    assert after.face.latents.shape_latent.equal(before.face.latents.shape_latent)
    assert after.face.camera.rotation.equal(before.face.camera.rotation)
    assert after.face.sh_coefficients.equal(before.face.sh_coefficients)
    assert before.albedo_detail.abs().max() == 0
    assert after.albedo_detail.abs().max() > 0.05
    photo = after.curves[0]["photo"]
    assert photo[4] < photo[3]


def test_landmarks_within_the_tolerance_do_not_pull(model, target, start):
    """The pose is found on landmarks alone: with a wide tolerance there is nothing to find."""
    config = FitConfig(5, landmark=1.0, landmark_steps=4)
    moved = replace(target, landmarks=target.landmarks + 4)
    loose = replace(moved, landmark_tolerance=torch.tensor([9.0, 9.0, 0.0]))
    pulled, left = (optimise_faces(model, each, start, config).curves for each in (moved, loose))
    assert [pulled[0]["landmark"][0] > 0.1, left[0]["landmark"][0], left[1]["landmark"][0]] == [True, 0, 0]
    assert left[2]["landmark"] == pytest.approx(pulled[2]["landmark"], rel=1e-4)


def test_hidden_detail_is_like_its_mirror_image(model, target, start):
    """Of a face that is turned away, with and without the prior."""
    turn = rotation_from_euler(*torch.deg2rad(torch.tensor([[0.0] * 3, [60.0] * 3, [0.0] * 3])))
    turned = replace(start, camera=replace(start.camera, rotation=turn))
    config = FitConfig(40, detail_steps=39, detail_prior=0.0, learning_rate=1e-6, light_rate=1e-6, camera_rate=1e-6)
    results = [optimise_faces(model, target, turned, replace(config, detail_symmetry=weight)) for weight in (0.0, 1.0)]
    with torch.no_grad():
        vertices = model.decode(turned.latents).vertices_final
        seen = unwrap_photo(target.image, turned.camera, vertices, model.surface).confidence
    hidden = (seen == 0) & (seen.flip(-1) > 0.5) & model.template.uv_mask
    gaps = [
        (result.albedo_detail - result.albedo_detail.flip(-1)).abs().mean(1)[hidden].mean().item() for result in results
    ]
    assert hidden.sum() > 100
    assert gaps[1] < 0.3 * gaps[0]


def test_the_light_stays_near_its_start_if_it_is_asked_to(model, target, start):
    moved = []
    for weight in (0.0, 10.0):
        face = optimise_faces(model, target, start, FitConfig(20, light_prior=weight)).face
        moved.append((face.sh_coefficients - start.sh_coefficients).norm())
    assert moved[1] < 0.5 * moved[0]


def test_a_mask_hides_from_the_mirror_too(model, target, start):
    """What lies under an occluder gets its mirror image's detail, and gives none."""
    zero = torch.zeros(3)
    frontal = replace(start, camera=replace(start.camera, rotation=rotation_from_euler(zero, zero, zero)))
    mask = torch.ones_like(target.image[:, 0], dtype=torch.bool)
    mask[:, :, :24] = False
    config = FitConfig(41, detail_steps=40, detail_prior=0.0, learning_rate=1e-6, light_rate=1e-6, camera_rate=1e-6)
    detail = optimise_faces(model, replace(target, mask=mask), frontal, config).albedo_detail.abs().mean((0, 1, 2))
    sides = detail[: len(detail) // 2].mean(), detail[len(detail) // 2 :].mean()
    assert min(sides) > 0.3 * max(sides)


def test_a_pose_stage_needs_landmarks(model, target, start):
    with pytest.raises(ConfigError, match="landmark_steps: got 2 with no landmarks"):
        optimise_faces(model, FitTarget(target.image), start, photo_config(10))
    with pytest.raises(ConfigError, match="landmark_steps: got 2 with landmark=0"):
        optimise_faces(model, target, start, FitConfig(5, landmark_steps=2))
