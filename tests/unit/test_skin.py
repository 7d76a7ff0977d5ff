import time
from dataclasses import replace

import pytest
import torch

from nl3dmm.assets import FaceTemplate, embedded_template
from nl3dmm.errors import ShapeError
from nl3dmm.geometry.lighting import decode_srgb
from nl3dmm.synthetic.skin import SkinSampler, paint
from nl3dmm.synthetic.skin_params import Mix, SkinParameters, draw_skin
from nl3dmm.types import concatenate


@pytest.fixture(scope="module")
def template() -> FaceTemplate:
    return embedded_template((64, 80))


@pytest.fixture(scope="module")
def sampler(template) -> SkinSampler:
    return SkinSampler(template)


@pytest.fixture(scope="module")
def sheet(sampler) -> torch.Tensor:
    return sampler.albedo(0, torch.arange(64))


def without(mix: Mix) -> Mix:
    return replace(mix, weights=torch.zeros_like(mix.weights))


def plain_face(melanin: float = 0.2) -> SkinParameters:
    """A face with dark hair and no marks, beard or make-up."""
    face, none = draw_skin(0, 0), torch.zeros(1)
    mixes = {name: without(getattr(face, name)) for name in ("freckles", "moles", "spots", "lines", "lip_stripes")}
    noise = {name: without(getattr(face, name)) for name in ("pigment", "flush", "blotches", "grain")}
    return replace(
        face,
        **mixes,
        **noise,
        melanin=torch.full((1,), melanin),
        haemoglobin=torch.full((1,), 0.35),
        hair_colour=torch.full((1, 3), 0.02),
        brow_colour=torch.full((1, 3), 0.02),
        brows=replace(face.brows, weights=torch.ones(1, 1)),
        iris_colour=torch.full((1, 3), 0.05),
        beard_zones=torch.zeros(1, 3),
        stubble_zones=torch.zeros(1, 3),
        lipstick=none,
        blush=none,
        eye_shadow=none,
        liner=none,
        gain=torch.ones(1, 3),
    )


def at(template: FaceTemplate, albedo: torch.Tensor, *landmarks: int, shift=(0.0, 0.0)) -> torch.Tensor:
    """Linear colour at the mean of some landmarks, moved by ``shift`` (u, v)."""
    corners = template.uv[template.landmark_vertices[list(landmarks)]]
    u, v = (corners * template.landmark_weights[list(landmarks)][..., None]).sum(1).mean(0) + torch.tensor(shift)
    rows, columns = albedo.shape[-2:]
    return decode_srgb(albedo[0, :, int(v * rows), int(u * columns)])


CHEEK = (2, 3, 31, 48)
CHIN = (7, 8, 9, 57)


def test_maps_are_finite_and_in_range(sheet):
    assert sheet.shape == (64, 3, 64, 80)
    assert bool(sheet.isfinite().all())
    assert float(sheet.min()) >= 0
    assert float(sheet.max()) <= 1


def test_same_bytes_for_any_batch_split_and_instance(template, sampler, sheet):
    parts = [sampler.albedo(0, indices) for indices in torch.arange(64).split([1, 5, 26, 32])]
    assert torch.equal(torch.cat(parts), sheet)
    assert torch.equal(sampler.albedo(0, torch.tensor([40, 7])), sheet[[40, 7]])
    assert torch.equal(SkinSampler(template).albedo(0, torch.arange(3)), sheet[:3])
    assert not torch.equal(sampler.albedo(1, torch.arange(3)), sheet[:3])


def test_empty_batch_and_negative_index(sampler):
    assert sampler.albedo(0, torch.arange(0)).shape == (0, 3, 64, 80)
    with pytest.raises(ShapeError, match="expected 0 or more"):
        sampler.albedo(0, torch.tensor([-1]))


def test_batched_painting_equals_one_by_one(sampler, sheet):
    batch = paint(sampler.banks, concatenate([draw_skin(0, index) for index in range(4)]))
    assert torch.allclose(batch, sheet[:4], atol=2e-6)


def test_population_has_dark_and_light_and_real_skin_hues(template, sheet):
    skin = (template.regions["skin"] > 0.9) & template.uv_mask
    colours = sheet[:, :, skin].mean(-1)
    brightness = colours.mean(1)
    assert float(brightness.min()) < 0.32
    assert float(brightness.max()) > 0.70
    assert float(brightness.std()) > 0.11
    red, green, blue = colours.unbind(1)
    assert bool((red > green).all())
    assert float((green > blue).float().mean()) > 0.9
    pairs = torch.pdist(sheet[:16, :, skin].flatten(1))
    assert float(pairs.min()) > 0.02 * skin.sum() ** 0.5


@pytest.mark.parametrize("melanin", [0.1, 0.9])
def test_brow_and_iris_and_nostrils_are_dark(template, sampler, melanin):
    albedo = paint(sampler.banks, plain_face(melanin))
    forehead = at(template, albedo, 19, 24, shift=(0.0, -0.08)).mean()
    assert at(template, albedo, 19).mean() < 0.75 * forehead
    assert at(template, albedo, 24).mean() < 0.75 * forehead
    eyes = sampler.banks.eyeball > 0.8
    iris, white = sampler.banks.iris[0], eyes & (sampler.banks.iris.amax(0) < 0.05)
    face = replace(plain_face(melanin), eyes=Mix(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)))
    painted = decode_srgb(paint(sampler.banks, face))[0].mean(0)
    assert painted[eyes & (iris > 0.9)].mean() < 0.4 * painted[white].mean()
    nostrils = template.regions["nostrils"] > 0.8
    assert painted[nostrils].mean() < 0.5 * forehead


def test_lips_are_redder_than_the_cheek_and_lipstick_more_so(template, sampler):
    face = plain_face()
    painted = replace(face, lipstick=torch.ones(1), lipstick_colour=torch.tensor([[0.42, 0.025, 0.04]]))
    redness = {}
    for name, parameters in (("bare", face), ("painted", painted)):
        albedo = paint(sampler.banks, parameters)
        lip = at(template, albedo, 57, 66)
        redness[name] = lip[0] / lip[1]
    cheek = at(template, paint(sampler.banks, face), *CHEEK)
    assert redness["bare"] > 1.1 * cheek[0] / cheek[1]
    assert redness["painted"] > 3 * redness["bare"]


def test_beards_darken_their_zones_only(template, sampler):
    bare = paint(sampler.banks, plain_face())
    full = paint(sampler.banks, replace(plain_face(), beard_zones=torch.ones(1, 3)))
    moustache = paint(sampler.banks, replace(plain_face(), beard_zones=torch.tensor([[1.0, 0.0, 0.0]])))
    stubble = paint(sampler.banks, replace(plain_face(), stubble_zones=torch.ones(1, 3)))
    chin = at(template, bare, *CHIN).mean()
    assert at(template, full, *CHIN).mean() < 0.4 * chin
    assert 0.2 * chin < at(template, stubble, *CHIN).mean() < 0.85 * chin
    assert torch.equal(at(template, moustache, *CHIN), at(template, bare, *CHIN))
    assert torch.equal(at(template, full, 19, 24, shift=(0.0, -0.08)), at(template, bare, 19, 24, shift=(0.0, -0.08)))
    upper_lip = (32, 34, 50, 52)
    assert at(template, moustache, *upper_lip).mean() < 0.6 * at(template, bare, *upper_lip).mean()


def test_freckles_and_moles_add_dark_marks(sampler):
    face = plain_face()
    bare = paint(sampler.banks, face)
    for name, weight in (("freckles", 0.34), ("moles", 1.0)):
        mix = getattr(face, name)
        marked = paint(sampler.banks, replace(face, **{name: replace(mix, weights=torch.full((1, 4), weight))}))
        assert bool((marked <= bare + 1e-6).all())
        assert float((bare - marked).max()) > 0.08


def test_order_of_vertices_does_not_matter(template, sheet):
    """A template that is no UV grid: the same surface with its vertices shuffled gets the same maps."""
    order = torch.randperm(len(template.vertices), generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    shuffled = replace(
        template,
        vertices=template.vertices[order],
        uv=template.uv[order],
        triangles=place[template.triangles],
        landmark_vertices=place[template.landmark_vertices],
        mirror=place[template.mirror[order]],
        identity_basis=template.identity_basis[:, order],
        expression_basis=template.expression_basis[:, order],
        is_uv_grid=False,
    )
    assert torch.equal(SkinSampler(shuffled).albedo(0, torch.arange(3)), sheet[:3])


def test_density_of_the_template_does_not_change_the_face(sheet):
    fine = SkinSampler(embedded_template((96, 112))).albedo(0, torch.arange(8))
    coarse = torch.nn.functional.interpolate(fine, (64, 80), mode="area")
    difference = (coarse - sheet[:8]).abs().mean((1, 2, 3))
    assert float(difference.max()) < 0.04
    others = (coarse - sheet[1:9]).abs().mean((1, 2, 3))
    assert bool((difference < 0.7 * others).all())


def test_painting_is_fast(sampler):
    indices = torch.arange(16)
    start = time.perf_counter()
    sampler.albedo(5, indices)
    assert (time.perf_counter() - start) / len(indices) < 0.1
