"""Augmentation: what is known of a face moves with its picture, and random numbers belong to samples."""

from dataclasses import replace

import pytest
import torch

from nl3dmm.data.augment import NONE, PHOTOS, AugmentConfig, augment, colour, degrade, dress, move
from nl3dmm.data.dressing import add_glasses, add_hair, add_objects, replace_background, without_features
from nl3dmm.data.motion import mirror
from nl3dmm.errors import ConfigError, ShapeError
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.plane import PlaneSimilarity, similarity_onto
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import Camera, FaceBatch


def draws(count: int = 4, first: int = 0) -> Draws:
    return Draws(3, torch.arange(first, first + count), 7)


@pytest.fixture(scope="module")
def batch(small_world) -> FaceBatch:
    return small_world.sample(torch.arange(4))


def assert_consistent(batch: FaceBatch, template, tolerance: float = 1e-2) -> None:
    """The projected vertices still land on the landmarks."""
    pixels, _ = project(batch.camera, template.landmarks(batch.vertices))
    torch.testing.assert_close(pixels, batch.landmarks, atol=tolerance, rtol=0)


def shared_pixels(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_nothing_changes_when_all_is_off(batch, small_template):
    same = augment(batch, NONE, draws(), small_template.mirror)
    torch.testing.assert_close(same.image, batch.image, atol=1e-4, rtol=0)
    torch.testing.assert_close(same.landmarks, batch.landmarks)
    assert torch.equal(same.mask, batch.mask)


def test_moved_landmarks_are_where_the_camera_projects(batch, small_template):
    moved = move(batch, AugmentConfig(turn=60.0, zoom=0.3, shift=0.2), draws())
    assert (moved.landmarks - batch.landmarks).abs().amax() > 3
    assert_consistent(moved, small_template)


def test_the_picture_moves_as_the_points_do(batch):
    """A bright dot that is drawn where a landmark lies is found again where the moved landmark lies."""
    image = torch.zeros_like(batch.image)
    centre = torch.tensor([20.5, 27.5])  # the middle of a pixel
    image[:, :, 26:29, 19:22] = 1
    dotted = replace(batch, image=image, landmarks=centre.expand(4, 68, 2).clone())
    moved = move(dotted, AugmentConfig(turn=40.0, zoom=0.2, shift=0.1), draws())
    axis = torch.arange(48) + 0.5
    weight = moved.image[:, 0] / moved.image[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)], 1)
    torch.testing.assert_close(found, moved.landmarks[:, 0], atol=0.1, rtol=0)


def _rendered(batch: FaceBatch, template) -> FaceBatch:
    """The face alone before grey, with its mask."""
    from nl3dmm.render.scene import render_textures

    albedo, size = batch.albedo[:, None], batch.image.shape[-2:]
    drawn = render_textures(
        batch.vertices, albedo, batch.camera, batch.sh_coefficients, template.surface(), size, "srgb"
    )
    image = torch.where(drawn.mask[:, None], drawn.images[:, 0].clamp(0, 1), 0.5)
    return replace(batch, image=image, mask=drawn.mask)


def test_a_moved_and_mirrored_face_is_what_the_new_truth_renders(batch, small_template):
    """Mask and shading too: rendered again with the new camera, light, shape and albedo, it is the moved picture."""
    start = _rendered(batch, small_template)
    turned = mirror(move(start, AugmentConfig(turn=50.0), draws()), torch.ones(4) > 0, small_template.mirror)
    again = _rendered(turned, small_template)
    assert shared_pixels(again.mask, turned.mask) > 0.9
    inside = torch.nn.functional.avg_pool2d(again.mask[:, None].float(), 7, 1, 3) > 0.99
    difference = ((again.image - turned.image).abs() * inside).sum() / (3 * inside.sum())
    assert difference < 0.03
    unlit = _rendered(replace(turned, sh_coefficients=start.sh_coefficients), small_template)
    assert ((unlit.image - turned.image).abs() * inside).sum() / (3 * inside.sum()) > 1.3 * difference


def test_a_mirrored_person_keeps_the_meaning_of_points(batch, small_template):
    other = mirror(batch, torch.tensor([True, False, True, False]), small_template.mirror)
    assert torch.equal(other.image[1], batch.image[1])
    assert torch.equal(other.image[0], batch.image[0].flip(-1))
    assert_consistent(other, small_template, tolerance=0.3)  # the template's two sides differ by less
    torch.testing.assert_close(torch.linalg.det(other.camera.rotation), torch.ones(4))
    # Right eye's outer corner (36) is left of the left one (45) in both pictures of frontal faces.
    assert torch.equal(other.landmarks[0, 36, 1], batch.landmarks[0, 45, 1])
    assert torch.allclose(other.landmarks[0, 36, 0], 48 - batch.landmarks[0, 45, 0])
    back = mirror(other, torch.tensor([True, False, True, False]), small_template.mirror)
    for name in ("image", "landmarks", "mask", "sh_coefficients", "vertices", "albedo"):
        torch.testing.assert_close(getattr(back, name), getattr(batch, name), atol=1e-5, rtol=0)


def test_vertices_need_the_templates_mirror(batch):
    with pytest.raises(ShapeError, match=r"vertex_mirror: got None; .* Pass it"):
        mirror(batch, torch.ones(4) > 0)


@pytest.mark.parametrize("step", [dress, colour, degrade])
def test_geometry_survives_what_only_changes_colours(step, batch):
    changed = step(
        batch, AugmentConfig(background=1.0, hair=1.0, glasses=1.0, objects=1.0, blur=1.0, jpeg=1.0), draws()
    )
    assert torch.equal(changed.landmarks, batch.landmarks)
    assert (changed.image - batch.image).abs().amax() > 0.05
    assert changed.image.amin() >= 0
    assert changed.image.amax() <= 1
    assert not (changed.mask & ~batch.mask).any()  # what is hidden stays hidden


@pytest.mark.parametrize("add", [add_hair, add_glasses, add_objects])
def test_what_hides_skin_leaves_the_mask(add, batch):
    dressed = add(batch, draws())
    assert torch.equal(dressed.landmarks, batch.landmarks)
    untouched = (dressed.image == batch.image).all(1)
    assert not (dressed.mask & ~untouched)[:, 1:-1, 1:-1].float().mean() > 0.1  # soft rims only
    assert (batch.mask & ~dressed.mask).any()


@pytest.mark.parametrize("name", ["background", "hair", "glasses", "objects", "shadow", "blur", "jpeg"])
def test_only_the_share_that_is_asked_for_is_changed(name, small_world):
    faces = small_world.sample(torch.arange(16))
    some = augment(faces, replace(NONE, **{name: 0.5}), draws(16))
    is_changed = (some.image != faces.image).flatten(1).any(1)
    assert 3 < int(is_changed.sum()) < 13
    assert torch.equal(some.mask[~is_changed], faces.mask[~is_changed])


def test_photos_change_mildly(batch, small_template):
    changed = augment(batch, PHOTOS, draws(), small_template.mirror)
    assert_consistent(changed, small_template, tolerance=0.3)
    still = augment(
        batch, replace(PHOTOS, turn=0.0, zoom=0.0, shift=0.0, mirror=0.0, objects=0.0, glasses=0.0), draws()
    )
    assert 0.005 < float((still.image - batch.image).abs().mean()) < 0.15
    assert float(still.image.std(1).mean()) > 0.3 * float(batch.image.std(1).mean())  # coloured as before, not grey


def test_glasses_are_on_the_eyes(batch):
    dressed = add_glasses(batch, draws())
    changed = (dressed.image - batch.image).abs().sum(1) > 0.02
    rows = torch.arange(48) + 0.5
    middle = (changed.sum(2) * rows).sum(1) / changed.sum((1, 2))
    eyes = batch.landmarks[:, 36:48, 1].mean(1)
    brow_to_nose = batch.landmarks[:, 33, 1] - batch.landmarks[:, 19, 1]
    assert ((middle - eyes).abs() < 0.5 * brow_to_nose).all()


def test_the_background_is_replaced_and_the_skin_is_not(batch):
    other = replace_background(batch, draws())
    inner = torch.nn.functional.avg_pool2d(batch.mask[:, None].float(), 7, 1, 3)[:, 0] > 0.999
    change = (other.image - batch.image).abs().mean(1)
    assert change[inner].amax() < 1e-4
    assert change[~batch.mask].mean() > 0.05


def test_blank_heads_have_no_eyes(batch):
    blank = without_features(batch, draws(), torch.ones(4) > 0)
    inner = torch.nn.functional.avg_pool2d(batch.mask[:, None].float(), 5, 1, 2)[:, 0] > 0.999
    roughness = lambda picture: (picture.diff(dim=-1).abs().mean(1) * inner[..., 1:]).sum()  # noqa: E731
    assert roughness(blank.image) < 0.5 * roughness(batch.image)


def test_a_sample_does_not_depend_on_its_batch(batch, small_template):
    whole = augment(batch, AugmentConfig(), draws(), small_template.mirror)
    alone = augment(batch[2], AugmentConfig(), draws(1, 2), small_template.mirror)
    torch.testing.assert_close(alone.image[0], whole.image[2], atol=1e-4, rtol=0)  # the motion rounds differently
    torch.testing.assert_close(alone.landmarks[0], whole.landmarks[2])
    assert torch.equal(alone.mask[0], whole.mask[2])
    again = augment(batch, AugmentConfig(), draws(), small_template.mirror)
    assert torch.equal(again.image, whole.image)
    still = replace(AugmentConfig(), turn=0.0, zoom=0.0, shift=0.0)
    whole, alone = (
        augment(each, still, dice) for each, dice in ((bare(batch), draws()), (bare(batch[2]), draws(1, 2)))
    )
    assert torch.equal(alone.image[0], whole.image[2])


def bare(batch: FaceBatch) -> FaceBatch:
    """What is known of a photo."""
    return FaceBatch(batch.image, batch.index, batch.landmarks, batch.mask)


def test_photos_without_truth_are_augmented_too(batch):
    photo = FaceBatch(batch.image, batch.index)
    changed = augment(photo, AugmentConfig(), draws())
    assert changed.landmarks is None
    assert changed.image.shape == photo.image.shape


def test_wrong_values_are_refused(batch):
    with pytest.raises(ConfigError, match=r"augment\.jpeg: got 2"):
        AugmentConfig(jpeg=2.0)
    wide = FaceBatch(batch.image[..., :40], batch.index)
    with pytest.raises(ShapeError, match=r"got 40 x 48 px; expected squares"):
        move(wide, AugmentConfig(), draws())


def test_plane_similarities_invert_and_compose_with_cameras():
    random = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    motion = PlaneSimilarity(random[:, 0] + 0.5, random[:, 1] * 3, random[:, 2:4] * 20)
    points = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(2)) * 50
    torch.testing.assert_close(motion.inverse().points(motion.points(points)), points, atol=1e-3, rtol=0)
    camera = Camera(
        torch.eye(3).expand(3, 3, 3), random[:, :2] * 9, random[:, 4] + 1, torch.full((3,), 1e-3), random[:, 1:3] * 40
    )
    shape = torch.rand(3, 7, 3, generator=torch.Generator().manual_seed(3)) * 80
    torch.testing.assert_close(
        project(motion.camera(camera), shape)[0], motion.points(project(camera, shape)[0]), atol=1e-3, rtol=0
    )


def test_a_quarter_turn_is_clockwise_and_exact():
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    middle = torch.full((1, 2), 4.0)
    turn = similarity_onto(middle, middle, torch.ones(1), torch.full((1,), torch.pi / 2))
    torch.testing.assert_close(turn.pictures(picture, 8), picture.rot90(-1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn.points(torch.tensor([[[8.0, 0.0]]])), torch.tensor([[[8.0, 8.0]]]))
