"""Stickers in photos: where they are, what they leave alone, how they are lit."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nl3dmm.editing import FaceInPhoto, apply_sticker, fine_surface, light_as_bright
from nl3dmm.errors import ImageError, ShapeError
from nl3dmm.geometry.camera import project, rotation_from_euler, weak_perspective
from nl3dmm.geometry.lighting import decode_srgb, directional_light, encode_srgb, white_light
from nl3dmm.render.scene import render_textures
from nl3dmm.stickers import Sticker, star, sticker_plane

SIZE = 200
LIGHT = white_light(1, 0.5) + directional_light(torch.tensor([[0.48, 0.36, 0.8]]), torch.full((1, 3), 0.45))
GREEN = torch.tensor([0.1, 0.6, 0.2])


def patch(colour: torch.Tensor = GREEN, alpha: float = 1.0) -> torch.Tensor:
    return torch.cat([colour[:, None, None].expand(3, 64, 64), torch.full((1, 64, 64), alpha)])


def scene(template, yaw: float = 0.0, encoding="srgb") -> FaceInPhoto:
    """Noise behind a face with freckles of noise, drawn with the very light that the scene names."""
    zero = torch.zeros(1)
    rotation = rotation_from_euler(zero, zero + math.radians(yaw), zero)
    camera = weak_perspective(rotation, zero.expand(1, 2), zero + 0.95, torch.full((1, 2), SIZE / 2))
    albedo = 0.4 + 0.2 * torch.rand(1, 3, *template.uv_size)
    size, vertices = (SIZE, SIZE), template.vertices[None]
    drawn = render_textures(vertices, albedo[:, None], camera, LIGHT, template.surface(), size, encoding, "vertex")
    photo = torch.where(drawn.mask[:, None], drawn.images[:, 0].clamp(0, 1), torch.rand(1, 3, *size))[0]
    return FaceInPhoto(photo, template, vertices, camera, LIGHT, albedo, encoding)


def footprint(face: FaceInPhoto, sticker: Sticker) -> torch.Tensor:
    """Pixels onto which any point of the sticker's rectangle on the mesh is projected, seen or not, and 2 px round."""
    plane = sticker_plane(face.template, face.vertices, sticker).nan_to_num(1e5)
    surface = fine_surface(face.template)
    points = surface.to_uv_map(torch.cat([face.vertices[0], plane], 1)[None])[0].flatten(1).T
    height, width = sticker.sides_mm
    inside = (points[:, 3].abs() <= width / 2) & (points[:, 4].abs() <= height / 2)
    pixels = project(face.camera, points[None, inside, :3])[0][0].floor().long()
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[0, 0, pixels[:, 1].clamp(0, SIZE - 1), pixels[:, 0].clamp(0, SIZE - 1)] = 1
    return F.max_pool2d(mask, 5, 1, 2)[0, 0] > 0


@pytest.mark.parametrize(("place", "yaw"), [("left_cheek", 0), ("nose", 35), ("forehead", -20)])
def test_all_pixels_outside_are_the_photos(template, place, yaw):
    face, sticker = scene(template, yaw), Sticker(star(), place, 28, 17)
    edit = apply_sticker(face, sticker)
    outside = ~footprint(face, sticker)
    assert int((edit.picture != face.photo).any(0)[outside].sum()) == 0
    assert torch.equal(edit.picture[:, ~edit.mask], face.photo[:, ~edit.mask])
    assert int(edit.mask.sum()) > 100
    assert not (edit.mask & outside).any()
    assert edit.photo is face.photo


def test_left_is_the_subjects_left(template):
    face = scene(template)
    nose = float(project(face.camera, template.landmarks(face.vertices))[0][0, 30, 0])
    for place, sign in (("left_cheek", 1), ("right_cheek", -1)):
        columns = apply_sticker(face, Sticker(star(), place, 20)).mask.nonzero()[:, 1]
        assert sign * (float(columns.float().mean()) - nose) > 20
        assert ((columns - nose) * sign > 0).all()


def test_size_in_the_photo_is_that_of_the_camera(template):
    """The forehead faces the camera, 0.95 px per mm."""
    mask = apply_sticker(scene(template), Sticker(patch(), "forehead", 20)).mask
    rows, columns = mask.nonzero().unbind(1)
    assert int(columns.max() - columns.min()) == pytest.approx(19, abs=2)
    assert int(rows.max() - rows.min()) == pytest.approx(19, abs=4)  # leans back


@pytest.mark.parametrize("encoding", ["srgb", "none"])
def test_an_opaque_sticker_is_lit_as_the_face_is(template, encoding):
    face = scene(template, 10, encoding)
    albedo = GREEN[None, None, :, None, None].expand(1, 1, 3, *template.uv_size)
    size = (SIZE, SIZE)
    drawn = render_textures(face.vertices, albedo, face.camera, LIGHT, template.surface(), size, encoding, "vertex")
    edit = apply_sticker(face, Sticker(patch(), "left_cheek", 25))
    inner = -F.max_pool2d(-edit.mask[None].float(), 5, 1, 2)[0] > 0
    difference = (edit.picture - drawn.images[0, 0]).abs().amax(0)[inner]
    assert int(inner.sum()) > 150
    assert float(difference.max()) < 0.01


def test_multiplying_keeps_the_photo_whatever_the_light(template):
    """Half the light comes back, also where the estimates of light and albedo are wrong."""
    face = replace(scene(template), sh_coefficients=white_light(1, 2.0))
    grey = encode_srgb(torch.full((3,), 0.5))
    edit = apply_sticker(face, Sticker(patch(grey), "left_cheek", 25, blend="multiply"))
    inner = -F.max_pool2d(-edit.mask[None].float(), 5, 1, 2)[0] > 0
    expected = encode_srgb(decode_srgb(face.photo) / 2)
    torch.testing.assert_close(edit.picture[:, inner], expected[:, inner], atol=1e-4, rtol=0)


def test_transparent_stickers_show_the_skins_own_texture(template):
    face = scene(template)
    edit = apply_sticker(face, Sticker(patch(alpha=0.5), "left_cheek", 25))
    inner = -F.max_pool2d(-edit.mask[None].float(), 5, 1, 2)[0] > 0
    light, paint = decode_srgb(face.photo)[:, inner], decode_srgb(edit.picture)[:, inner]
    left = paint - 0.5 * light  # half the shaded sticker: smooth
    assert float(left.diff(dim=1).abs().median()) < 0.1 * float(light.diff(dim=1).abs().median())


def test_hidden_places_are_refused_and_half_hidden_ones_noticed(template):
    face = scene(template, yaw=55)
    with pytest.raises(ImageError, match=r"at: got 'left_cheek', of which the photo shows nothing"):
        apply_sticker(face, Sticker(star(), "left_cheek", 20))
    assert apply_sticker(face, Sticker(star(), "right_cheek", 20)).visible > 0.9
    with pytest.warns(UserWarning, match=r"sticker: the photo shows \d+ % of it, the rest is hidden"):
        edit = apply_sticker(scene(template, yaw=45), Sticker(patch(), "left_cheek", 60))
    assert 0.1 < edit.visible < 0.5


def test_the_hidden_part_is_not_painted_onto_what_hides_it(template):
    """Turned away, the nose stands before the far cheek, and the sticker on that cheek ends behind the nose."""
    face, sticker = scene(template, yaw=40), Sticker(patch(), "left_cheek", 60)
    edit = apply_sticker(face, sticker)
    tip = project(face.camera, template.landmarks(face.vertices))[0][0, 30].long().tolist()
    around = (slice(tip[1] - 3, tip[1] + 4), slice(tip[0] - 6, tip[0]))  # its outline lies to the right
    assert footprint(face, sticker)[around].any()  # the hidden part is projected there
    assert not edit.mask[around].any()


def test_what_an_occluder_covers_is_not_painted(template):
    face, sticker = scene(template), Sticker(star(), "left_cheek", 30)
    whole = apply_sticker(face, sticker)
    occluder = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    occluder[int(whole.mask.nonzero()[:, 0].float().mean()) + 4 :] = True
    part = apply_sticker(replace(face, occluder=occluder), sticker)
    assert torch.equal(part.picture[:, occluder], face.photo[:, occluder])
    assert torch.equal(part.picture[:, ~occluder], whole.picture[:, ~occluder])
    assert 0.5 < part.visible < 0.8 < whole.visible
    with pytest.raises(ImageError, match="shows nothing"):
        apply_sticker(replace(face, occluder=torch.ones_like(occluder)), sticker)


def test_stickers_over_the_end_of_the_mesh_are_noticed(template):
    with pytest.warns(UserWarning, match=r"sticker: \d+ % of it lies beyond the face's surface"):
        apply_sticker(scene(template), Sticker(patch(), (0.5, 0.03), 40))


def test_the_edited_albedo_holds_the_photos_texture_without_its_light(template):
    face = scene(template)
    edit = apply_sticker(face, Sticker(patch(), "left_cheek", 25))
    albedo = F.interpolate(edit.albedo[None], template.uv_size, mode="area")[0]
    inside = template.regions["face"] > 0.5
    corner = template.uv_mask & inside
    corner[:, 40:] = False  # the other side
    error = (albedo - face.albedo[0]).abs().mean(0)[corner]
    flat = (face.albedo[0] - face.albedo[0].mean((1, 2), keepdim=True)).abs().mean(0)[corner]
    assert float(error.mean()) < 0.6 * float(flat.mean())  # 0.95 px per mm blurs texels of 2.5 mm somewhat
    column = int(0.72 * edit.albedo.shape[2])
    green = (edit.albedo - GREEN[:, None, None]).abs().amax(0) < 0.02
    assert green.any()
    assert green.nonzero()[:, 1].float().mean() == pytest.approx(column, abs=60)


def test_a_new_light_changes_the_face_and_nothing_else(template):
    face, sticker = scene(template), Sticker(star(), "left_cheek", 25)
    lamp = light_as_bright(face, (-1.0, 0.2, 0.5))
    edit, plain = apply_sticker(face, sticker, lamp), apply_sticker(face, sticker)
    drawn = render_textures(
        face.vertices, face.albedo[:, None], face.camera, lamp, template.surface(), (SIZE, SIZE), "srgb", "vertex"
    )
    border = F.max_pool2d(drawn.mask[None].float(), 3, 1, 1)[0, 0] > 0
    assert torch.equal(edit.picture[:, ~border], face.photo[:, ~border])
    middle = slice(SIZE // 2 - 20, SIZE // 2 + 20)
    expected, got = drawn.images[0, 0][:, middle, middle], edit.picture[:, middle, middle]
    assert float((got - expected).abs()[:, ~plain.mask[middle, middle]].mean()) < 0.01
    left, right = edit.picture[:, 80:120, :100].mean(), edit.picture[:, 80:120, 100:].mean()
    old_left, old_right = face.photo[:, 80:120, :100].mean(), face.photo[:, 80:120, 100:].mean()
    assert left / right > 1.1 * old_left / old_right


def test_a_lamp_is_as_bright_as_the_photos_light(template):
    face = scene(template)
    lamp = light_as_bright(face, (1.0, 0.0, 1.0))
    means = [float(face.shading(light).mean()) for light in (lamp, LIGHT)]
    assert means[0] == pytest.approx(means[1], rel=0.15)
    with pytest.raises(ShapeError, match=r"light: got \[0.0, 0.0, 0.0\]; expected finite numbers, not all 0"):
        light_as_bright(face, torch.zeros(3))
