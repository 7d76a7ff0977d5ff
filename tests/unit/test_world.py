"""The synthetic world: determinism per (seed, index), and truth that agrees with the picture."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nl3dmm.errors import ConfigError, ShapeError
from nl3dmm.geometry.camera import FACE_FILL, project
from nl3dmm.geometry.lighting import shade
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.render.scene import render_textures
from nl3dmm.synthetic.draws import Draws
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig, _usual_expressions, mean_face, without_similarity
from nl3dmm.types import FaceBatch, concatenate

SIZE = 48


@pytest.fixture(scope="module")
def batch(small_world) -> FaceBatch:
    return small_world.sample(torch.arange(24))


def variant(world: SyntheticWorld, seed: int = 0, **changes) -> SyntheticWorld:
    """The same world with another config; its slow parts are shared."""
    other = object.__new__(SyntheticWorld)
    vars(other).update(vars(world) | {"config": replace(world.config, **changes), "seed": seed})
    return other


def tensors(batch: FaceBatch) -> dict[str, torch.Tensor]:
    flat = {name: value for name, value in vars(batch).items() if name != "camera"}
    return flat | {f"camera.{name}": value for name, value in vars(batch.camera).items()}


def assert_same(first: FaceBatch, second: FaceBatch) -> None:
    for name, value in tensors(first).items():
        if value.dtype.is_floating_point:
            torch.testing.assert_close(value, tensors(second)[name], atol=2e-5, rtol=0, msg=name)
        else:
            assert value.equal(tensors(second)[name]), name


def test_shapes_and_ranges(batch, small_template):
    assert batch.image.shape == (24, 3, SIZE, SIZE)
    assert batch.landmarks.shape == (24, 68, 2)
    assert batch.mask.shape == (24, SIZE, SIZE)
    assert batch.vertices.shape == (24, len(small_template.vertices), 3)
    assert batch.albedo.shape == (24, 3, 32, 32)
    assert batch.index.tolist() == list(range(24))
    for value in (batch.image, batch.albedo):
        assert value.min() >= 0
        assert value.max() <= 1
    for name, value in tensors(batch).items():
        assert value.isfinite().all(), name
        assert value.dtype in (torch.float32, torch.bool, torch.int64), name


@pytest.mark.parametrize("splits", [[1] * 6, [2, 4], [5, 1]])
def test_samples_do_not_depend_on_the_batch(small_world, batch, splits):
    parts = [small_world.sample(indices) for indices in torch.arange(6).split(splits)]
    assert_same(concatenate(parts), batch[slice(0, 6)])


def test_samples_do_not_depend_on_order_or_history(small_world, batch):
    torch.manual_seed(99)
    picked = small_world.sample(torch.tensor([7, 3]))
    assert_same(picked, batch[[7, 3]])
    assert_same(small_world.sample(torch.tensor([7, 3])), picked)


def test_another_process_would_draw_the_same(small_template, small_world, batch):
    """A world built anew, as in another process, has no state but its arguments."""
    other = SyntheticWorld(small_template, WorldConfig(), SIZE)
    assert_same(other.sample(torch.arange(2)), batch[slice(0, 2)])


def test_vertices_alone_are_those_of_the_sample(small_world, batch):
    torch.testing.assert_close(small_world.vertices(torch.arange(24)), batch.vertices, atol=2e-5, rtol=0)


def test_seeds_and_indices_are_different_faces(small_world, batch):
    other = variant(small_world, seed=1).sample(torch.arange(2))
    for first, second in ((batch[0], batch[1]), (batch[0], other[0])):
        for name in ("image", "vertices", "albedo", "sh_coefficients", "landmarks"):
            assert not tensors(first)[name].equal(tensors(second)[name]), name


def test_landmarks_are_the_projected_truth(small_world, batch):
    pixels, _ = project(batch.camera, small_world.template.landmarks(batch.vertices))
    torch.testing.assert_close(batch.landmarks, pixels, atol=1e-4, rtol=0)


def test_the_picture_is_the_rendering_of_the_truth(small_world):
    """Without noise and occluders the image is the lit mesh wherever the mask says so."""
    world = variant(small_world, noise=0.0, occlusion=0.0, super_sampling=1)
    batch = world.sample(torch.arange(4))
    drawn = render_textures(
        batch.vertices, batch.albedo[:, None], batch.camera, batch.sh_coefficients, world.surface, (SIZE, SIZE), "srgb"
    )
    assert batch.mask.equal(drawn.mask)
    where = batch.mask[:, None].expand_as(batch.image)
    torch.testing.assert_close(batch.image[where], drawn.images[:, 0].clamp(0, 1)[where], atol=1e-5, rtol=0)


def test_super_sampling_changes_the_edges_only_a_little(small_world):
    plain = variant(small_world, noise=0.0, occlusion=0.0)
    pictures = [variant(plain, noise=0.0, occlusion=0.0, super_sampling=k).sample(torch.arange(4)) for k in (1, 4)]
    assert F.l1_loss(pictures[0].image, pictures[1].image) < 0.02
    assert (pictures[0].mask == pictures[1].mask).float().mean() > 0.98


def test_faces_are_framed_as_crops_are(batch):
    extent = batch.landmarks.amax(1) - batch.landmarks.amin(1)
    fill = extent.amax(1) / SIZE
    assert ((fill > 0.88 * FACE_FILL) & (fill < 1.12 * FACE_FILL)).all()
    centre = (batch.landmarks.amax(1) + batch.landmarks.amin(1)) / 2
    assert (centre / SIZE - 0.5).abs().max() < 0.081
    assert ((batch.landmarks > 0) & (batch.landmarks < SIZE)).float().mean() > 0.99


def test_lights_are_about_white_and_bright(batch, small_template):
    normals = vertex_normals(batch.vertices, small_template.triangles) @ batch.camera.rotation.transpose(1, 2)
    shading = shade(normals, batch.sh_coefficients)
    assert 0.6 < shading.mean() < 1.0
    mean = shading.mean((0, 1))
    assert (mean / mean.mean() - 1).abs().max() < 0.1


def test_occluders_hide_skin(small_world):
    indices = torch.arange(8)
    free = variant(small_world, occlusion=0.0, noise=0.0).sample(indices)
    hidden = variant(small_world, occlusion=1.0, noise=0.0).sample(indices)
    assert not (hidden.mask & ~free.mask).any()
    assert hidden.mask.sum() < 0.97 * free.mask.sum()
    where = hidden.mask[:, None].expand_as(free.image)
    torch.testing.assert_close(hidden.image[where], free.image[where])


@pytest.mark.parametrize(
    ("camera", "share"), [("weak_perspective", (0, 0)), ("perspective", (1, 1)), ("mixed", (0.2, 0.8))]
)
def test_camera_types(small_world, camera, share):
    inverse_distance = variant(small_world, camera=camera).sample(torch.arange(24)).camera.inverse_distance
    pinhole = inverse_distance > 0
    assert share[0] <= pinhole.float().mean() <= share[1]
    assert ((inverse_distance[pinhole] >= 1 / 1500) & (inverse_distance[pinhole] <= 1 / 400)).all()


def test_rotations_are_proper_and_limited(batch):
    rotation = batch.camera.rotation
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(24, 3, 3), atol=1e-5, rtol=0)
    assert (rotation[:, 2, 2] > 0.6).all()  # yaw within 40 and pitch within 15 degrees


def test_zero_spread_is_the_mean_face(small_world, small_template):
    mean = variant(small_world, identity=0.0, expression=0.0).vertices(torch.arange(2))
    torch.testing.assert_close(mean, small_template.vertices.expand(2, -1, -1))


def test_usual_expressions_move_both_sides():
    kinds = _usual_expressions(("jawOpen", "mouthSmile_L", "mouthSmile_R", "unknown"))
    assert not kinds[0].any()  # neutral
    assert kinds[:, 1].equal(kinds[:, 2])
    assert kinds[:, 0].max() == 0.5
    assert not kinds[:, 3].any()


def test_identity_neither_moves_nor_turns_nor_scales_the_face(small_template):
    vertices = small_template.vertices
    centred = vertices - vertices.mean(0)
    scaling, shift, turn = (
        centred,
        torch.ones_like(centred),
        torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).expand_as(centred), centred),
    )
    assert without_similarity(torch.stack([scaling, shift, turn]), vertices).abs().max() < 1e-3
    basis = without_similarity(small_template.identity_basis, vertices)
    assert (basis * centred).sum((1, 2)).abs().max() < 1e-1
    assert basis.mean(1).abs().max() < 1e-4
    torch.testing.assert_close(without_similarity(basis, vertices), basis, atol=1e-4, rtol=0)


def test_draws_belong_to_samples():
    one, all_ = Draws(3, torch.tensor([5]), 1), Draws(3, torch.tensor([4, 5, 6]), 1)
    for draw in ("uniform", "normal"):
        first = getattr(one, draw)(0.1, 1.0, 2, 3)
        second = getattr(all_, draw)(0.1, 1.0, 2, 3)
        assert first.shape == (1, 2, 3)
        assert second.shape == (3, 2, 3)
        assert first[0].equal(second[1])
        assert not second[0].equal(second[1])
    assert not Draws(3, torch.tensor([5]), 2).uniform(0, 1, 4).equal(Draws(3, torch.tensor([5]), 1).uniform(0, 1, 4))


def test_draws_have_their_distribution():
    draws = Draws(0, torch.arange(2000), 1)
    uniform, normal = draws.uniform(-1, 3), draws.normal(0.5, 0.8)
    assert uniform.shape == normal.shape == (2000,)
    assert (float(uniform.mean()), float(uniform.std())) == pytest.approx((1, 4 / 12**0.5), abs=0.1)
    assert normal.abs().max() == pytest.approx(0.8)
    assert float(normal.mean()) == pytest.approx(0, abs=0.05)
    assert float(draws.chance(0.3).mean()) == pytest.approx(0.3, abs=0.05)
    assert draws.chance(0.0).eq(0).all()
    assert draws.chance(1.0).eq(1).all()


def test_mean_face(small_world):
    vertices, albedo = mean_face(small_world, samples=4)
    torch.testing.assert_close(albedo, small_world.skin.albedo(small_world.seed, torch.arange(4)).mean(0))
    torch.testing.assert_close(vertices, small_world.vertices(torch.arange(4)).mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": "fisheye"}, "world.camera: got 'fisheye'; expected one of"),
        ({"yaw": 91.0}, "world.yaw: got 91.0; expected 0 to 90"),
        ({"super_sampling": 0}, "world.super_sampling: got 0; expected 1 to 4"),
        ({"distance_mm": (500.0, 300.0)}, r"world.distance_mm: got 500.0; expected 200 to 300"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        WorldConfig(**change)


def test_the_same_person_in_another_light(small_world):
    world = variant(small_world, noise=0.0, occlusion=0.0)
    indices, others = torch.arange(2), torch.arange(2, 4)
    person, source = world.sample(indices), world.sample(others)
    relit = tensors(world.sample(indices, light_indices=others))
    assert relit.pop("sh_coefficients").equal(source.sh_coefficients)
    assert not relit.pop("image").isclose(person.image).all()
    for name, value in relit.items():
        assert value.equal(tensors(person)[name]), name


def test_the_same_person_from_another_side(small_world):
    indices, others = torch.arange(2), torch.arange(2, 4)
    person, source = small_world.sample(indices), small_world.sample(others)
    turned = small_world.sample(indices, camera_indices=others)
    assert turned.camera.rotation.equal(source.camera.rotation)
    assert turned.camera.inverse_distance.equal(source.camera.inverse_distance)
    for name in ("vertices", "albedo", "sh_coefficients", "index"):
        assert tensors(turned)[name].equal(tensors(person)[name]), name
    torch.testing.assert_close(
        project(turned.camera, small_world.template.landmarks(turned.vertices))[0], turned.landmarks, atol=1e-4, rtol=0
    )


def test_another_background_leaves_the_face(small_world):
    world = variant(small_world, noise=0.0, occlusion=0.0, super_sampling=1)
    person = world.sample(torch.arange(2))
    moved = world.sample(torch.arange(2), scenery_indices=torch.arange(2, 4))
    assert moved.mask.equal(person.mask)
    where = person.mask[:, None].expand_as(person.image)
    assert moved.image[where].equal(person.image[where])
    assert not moved.image[~where].isclose(person.image[~where]).all()


def test_frames_of_one_person_differ_in_expression_only(small_world):
    persons, frames = torch.tensor([3, 3, 3]), torch.tensor([5, 6, 7])
    world = variant(small_world, expression=1.0)
    clip = world.sample(persons, frames, frames, frames, frames)
    calm = variant(small_world, expression=0.0).sample(persons, frames, frames, frames, frames)
    assert clip.albedo is not None
    assert clip.albedo[0].equal(clip.albedo[1])
    assert calm.vertices.equal(calm.vertices[:1].expand_as(calm.vertices))
    assert not clip.vertices[0].equal(clip.vertices[1])
    expressions = clip.vertices - calm.vertices
    neutral = variant(small_world, identity=0.0)
    worn = neutral.vertices(frames) - variant(neutral, identity=0.0, expression=0.0).vertices(frames)
    torch.testing.assert_close(expressions, worn, atol=1e-3, rtol=0)


def test_own_indices_change_nothing(small_world, batch):
    indices = torch.arange(3)
    assert_same(small_world.sample(indices, indices, indices, indices, indices), batch[slice(0, 3)])


def test_cameras_alone_are_those_of_the_sample(small_world, batch):
    camera = small_world.camera(torch.arange(24))
    for name, value in vars(camera).items():
        torch.testing.assert_close(value, vars(batch.camera)[name], atol=2e-4, rtol=1e-5, msg=name)


def test_indices_of_other_faces_are_as_many(small_world):
    with pytest.raises(ShapeError, match="light_indices: got 1; expected 2"):
        small_world.sample(torch.arange(2), light_indices=torch.arange(1))
