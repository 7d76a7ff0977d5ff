"""The evaluation: each figure has a known value somewhere, and the command line stores what it prints."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from nl3dmm.errors import ConfigError
from nl3dmm.evaluate import main
from nl3dmm.evaluation.accuracy import (
    METRICS,
    TEST_SEED,
    Protocol,
    evaluate,
    face_errors,
    landmark_nme,
    mean_face_errors,
    sample_faces,
    similarity_aligned,
    training_world,
)
from nl3dmm.evaluation.accuracy import test_world as unseen_world  # its own name would be collected as a test
from nl3dmm.geometry.camera import project, rotation_from_euler
from nl3dmm.model import Face
from nl3dmm.types import Latents

CAMERAS = ("weak_perspective", "perspective")


@pytest.fixture(scope="module")
def batch(trained):
    return sample_faces(unseen_world(trained, Protocol()), 4)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """A copy of the run, because results are stored in it."""
    return shutil.copytree(run.folder, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def stored(folder):
    """What the command line writes for 4 faces and 8 latent steps."""
    assert main([str(folder), "--faces", "4", "--steps", "8"]) == 0
    return json.loads((folder / "checkpoints" / "last.evaluation.json").read_text())


def test_similarity_alignment_is_exact_under_any_similarity():
    points = torch.randn(5, 40, 3, dtype=torch.float64) * 50
    angles = (torch.rand(3, 5, dtype=torch.float64) - 0.5) * 2 * math.pi
    scale = torch.tensor([1e-3, 0.5, 1.0, 7.0, 1e3], dtype=torch.float64)[:, None, None]
    moved = (
        scale * points @ rotation_from_euler(*angles).transpose(1, 2) + torch.randn(5, 1, 3, dtype=torch.float64) * 99
    )
    torch.testing.assert_close(similarity_aligned(points.float(), moved.float()), moved.float(), rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(similarity_aligned(moved, points), points)


def test_similarity_alignment_does_not_mirror():
    points = torch.randn(1, 40, 3, dtype=torch.float64)
    mirrored = points * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert (similarity_aligned(points, mirrored) - mirrored).norm(dim=-1).mean() > 0.3


def test_similarity_alignment_is_the_best_one():
    points, target = torch.randn(2, 30, 3, dtype=torch.float64).split(1)
    best = ((similarity_aligned(points, target) - target) ** 2).sum()
    for _ in range(20):
        turn = rotation_from_euler(*(torch.randn(3, 1, dtype=torch.float64) * 0.1))
        other = (points - points.mean(1, keepdim=True)) @ turn.transpose(1, 2) * 1.02
        assert ((similarity_aligned(points, target) @ turn.transpose(1, 2) - target) ** 2).sum() >= best - 1e-9
        torch.testing.assert_close(similarity_aligned(other, target), similarity_aligned(points, target))


def test_nme_of_shifted_landmarks():
    target = torch.rand(3, 68, 2) * 100
    target[:, 36], target[:, 45] = torch.tensor([20.0, 40.0]), torch.tensor([80.0, 40.0])
    shift = torch.tensor([[3.0, 4.0], [0, 0], [-6.0, 8.0]])[:, None]
    torch.testing.assert_close(landmark_nme(target + shift, target), torch.tensor([5.0, 0, 10.0]) / 60)
    one = target.clone()
    one[:, 7, 0] += 68 * 60
    torch.testing.assert_close(landmark_nme(one, target), torch.ones(3))


def test_mean_face_is_perfect_where_the_truth_is_the_mean_face(trained, batch):
    count, albedo = len(batch.image), torch.full((3, 32, 32), 0.4)
    same = replace(
        batch,
        vertices=trained.template.vertices.expand(count, -1, -1).contiguous(),
        albedo=albedo.expand(count, -1, -1, -1),
        landmarks=project(batch.camera, trained.template.landmarks(trained.template.vertices.expand(count, -1, -1)))[0],
    )
    errors = mean_face_errors(trained.system.model, trained.template.vertices, albedo, same)
    assert float(errors["shape_mm"].max()) < 1e-3
    assert float(errors["albedo_l1"].max()) < 1e-6
    assert float(errors["nme"].max()) < 1e-6


def test_shape_error_of_a_known_offset(trained, batch):
    """Every vertex moved 2 mm forwards or backwards at random; no similarity takes that away."""
    moved = trained.template.vertices.expand(len(batch.image), -1, -1).clone()
    moved[..., 2] += 2.0 * torch.randn(moved.shape[:2]).sign()
    errors = mean_face_errors(
        trained.system.model, trained.template.vertices, torch.zeros(3, 32, 32), replace(batch, vertices=moved)
    )
    torch.testing.assert_close(errors["shape_mm"], torch.full_like(errors["shape_mm"], 2.0), rtol=0.05, atol=0)


def test_uncovered_pixels_count_as_black(trained, batch):
    count = len(batch.image)
    away = replace(batch.camera, translation=batch.camera.translation + 1e4)
    grey = replace(batch, camera=away, image=torch.full_like(batch.image, 0.5), mask=torch.ones_like(batch.mask))
    errors = mean_face_errors(trained.system.model, trained.template.vertices, torch.ones(3, 32, 32), grey)
    torch.testing.assert_close(errors["photo"], torch.full((count,), 0.5 * math.sqrt(3)))
    torch.testing.assert_close(errors["mask_iou"], torch.zeros(count))


def test_rotation_error_is_the_angle_between_the_cameras(trained, batch):
    count = len(batch.image)
    zero = torch.zeros(count)
    turn = rotation_from_euler(zero, zero + math.radians(10), zero)
    camera = replace(batch.camera, rotation=turn @ batch.camera.rotation)
    face = Face(Latents(torch.zeros(count, 8), torch.zeros(count, 8)), camera, batch.sh_coefficients)
    errors = face_errors(trained.system.model, face, batch)
    torch.testing.assert_close(errors["rotation_deg"], torch.full((count,), 10.0), rtol=1e-3, atol=0)
    assert errors.keys() == set(METRICS)


@pytest.mark.parametrize("camera", CAMERAS)
def test_stored_figures_say_what_was_measured(stored, trained, camera):
    result = stored[camera]
    assert result["protocol"] == vars(Protocol(faces=4, latent_steps=8, camera=camera))
    assert result["checkpoint_step"] == 200
    assert result["template"] == "embedded"
    assert list(result["errors"]) == ["mean_face", "encoder", "fitted"]
    for stage, errors in result["errors"].items():
        assert set(errors) == set(METRICS) - ({"rotation_deg"} if stage == "mean_face" else set())
        assert all(math.isfinite(value) and value >= 0 for value in errors.values())
    for stage, ratios in result["ratios_to_mean_face"].items():
        for metric, ratio in ratios.items():
            assert ratio == pytest.approx(result["errors"][stage][metric] / result["errors"]["mean_face"][metric])


@pytest.mark.parametrize("camera", CAMERAS)
def test_latent_steps_lower_the_photo_error(stored, camera):
    errors = stored[camera]["errors"]
    assert errors["fitted"]["photo"] < 0.9 * errors["encoder"]["photo"]


def test_the_camera_is_the_protocols(trained):
    weak, pinhole = (sample_faces(unseen_world(trained, Protocol(camera=name)), 4).camera for name in CAMERAS)
    assert float(weak.inverse_distance.abs().max()) == 0
    assert float(pinhole.inverse_distance.min()) > 0


def test_test_faces_are_not_training_faces(trained):
    seen, unseen = (sample_faces(world, 4) for world in (training_world(trained), unseen_world(trained, Protocol())))
    assert trained.config.seed != TEST_SEED
    assert not torch.isclose(seen.vertices, unseen.vertices).all((1, 2)).any()


def test_figures_do_not_depend_on_the_batch_size_nor_on_the_day(trained):
    """Convolutions round differently per batch size; a vertex that then snaps to another 1/16 px changes the shape's
    gradient by 0.1 %, and Adam's first steps, which divide each gradient by its own size, make that 2 %."""
    first, second = (evaluate(trained, Protocol(faces=4, latent_steps=2, batch_size=size)) for size in (4, 3))
    for stage, tolerance in {"mean_face": 1e-4, "encoder": 1e-3, "fitted": 5e-2}.items():
        assert first["errors"][stage] == pytest.approx(second["errors"][stage], rel=tolerance)


def test_one_camera_without_steps(folder, capsys):
    checkpoint = folder / "checkpoints" / "step-000100.ckpt"
    target = checkpoint.with_suffix(".evaluation.json")
    assert main([str(checkpoint), "--faces", "2", "--steps", "0", "--camera", "perspective"]) == 0
    printed = capsys.readouterr().out
    assert "perspective camera, 2 unseen, unoccluded faces" in printed
    assert str(target) in printed
    result = json.loads(target.read_text())
    assert list(result) == ["perspective"]
    assert list(result["perspective"]["errors"]) == ["mean_face", "encoder"]
    assert f"{result['perspective']['errors']['encoder']['photo']:.4f}" in printed


@pytest.mark.parametrize("wrong", [{"faces": 0}, {"latent_steps": -1}, {"batch_size": 0}])
def test_protocols_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong)).replace('_', '.')}.*: got {next(iter(wrong.values()))}"):
        Protocol(**wrong)
