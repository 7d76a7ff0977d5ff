"""Whom a fit believes of the pose: encoder, found landmarks, given landmarks."""

from dataclasses import replace

import pytest
import torch

from nl3dmm.fitting.pose import FOUND_TOLERANCE, GIVEN_TOLERANCE, pose_faces
from nl3dmm.fitting.stages import photo_config
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.geometry.camera import project, rotation_from_euler
from nl3dmm.model import FaceModel

CONFIG = photo_config(500)


@pytest.fixture(scope="module")
def model(small_model_config, small_template) -> FaceModel:
    torch.manual_seed(0)
    return FaceModel(small_model_config, small_template).eval()


@pytest.fixture(scope="module")
def scene(model, small_world):
    """Two faces of the model itself, drawn, with their true cameras and landmarks."""
    batch = small_world.sample(torch.arange(2))
    with torch.no_grad():
        face = replace(model.encode(batch.image), camera=batch.camera)
        geometry = model.decode(face.latents)
        image = model.render_final(face, geometry, (48, 48)).images[:, 0]
        landmarks, _ = project(face.camera, model.template.landmarks(geometry.vertices_final))
    return face, FitTarget(image, landmarks)


def turned(face, degrees: float):
    zero = torch.zeros(2)
    turn = rotation_from_euler(zero, zero + torch.deg2rad(torch.tensor(degrees)), zero)
    return replace(face, camera=replace(face.camera, rotation=turn @ face.camera.rotation))


def gap(model, face, target) -> torch.Tensor:
    with torch.no_grad():
        landmarks = model.template.landmarks(model.decode(face.latents).vertices_final)
    return (project(face.camera, landmarks)[0] - target.landmarks).norm(dim=-1).mean(1)


def test_landmarks_put_a_wrong_pose_right(model, scene):
    face, target = scene
    start = turned(face, 40.0)
    posed = pose_faces(model, target, start, torch.tensor([True, False]), CONFIG)
    assert (gap(model, start, target) > 2).all()
    assert (gap(model, posed.start, target) < 0.5).all()
    assert posed.target.landmark_tolerance.tolist() == pytest.approx([FOUND_TOLERANCE, GIVEN_TOLERANCE])
    assert posed.contradicted.tolist() == [False, False]


def test_found_landmarks_that_contradict_the_photo_are_left_out_and_given_ones_are_not(model, scene):
    """The start is the truth; landmarks are those of a face that is turned further."""
    face, target = scene
    with torch.no_grad():
        wrong = turned(face, 50.0)
        landmarks, _ = project(wrong.camera, model.template.landmarks(model.decode(face.latents).vertices_final))
    posed = pose_faces(model, replace(target, landmarks=landmarks), face, torch.tensor([True, False]), CONFIG)
    assert posed.contradicted.tolist() == [True, False]
    assert posed.start.camera.rotation[0].equal(face.camera.rotation[0])
    assert (posed.start.camera.rotation[1] - wrong.camera.rotation[1]).abs().max() < 0.1
    assert posed.target.landmark_tolerance[0] > 100  # they do not pull later either


def test_found_landmarks_near_the_encoders_do_not_move_the_camera(model, scene):
    face, target = scene
    near = replace(target, landmarks=target.landmarks + 0.7)
    posed = pose_faces(model, near, face, torch.tensor([True, False]), CONFIG)
    assert posed.start.camera.translation[0].equal(face.camera.translation[0])
    moved = posed.start.camera.translation[1] - face.camera.translation[1]
    torch.testing.assert_close(moved, torch.tensor([0.7, 0.7]), atol=0.3, rtol=0)
