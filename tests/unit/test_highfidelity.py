"""The system: which terms there are, what is zero at the truth, who gets which gradient."""

from dataclasses import asdict, replace

import pytest
import torch

from nl3dmm.errors import ConfigError
from nl3dmm.geometry.camera import project, rotation_from_euler
from nl3dmm.geometry.lighting import white_light
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, Geometry
from nl3dmm.nn.perceptual import PerceptualConfig
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.systems.highfidelity import HighFidelity, HighFidelityConfig
from nl3dmm.systems.weights import RENDERED_TERMS, LossConfig, LossWeights
from nl3dmm.types import Camera, FaceBatch, Latents, UVMaps

TERMS = set(asdict(LossWeights()))
SUPERVISED = {"camera_rotation", "camera_position", "light", "shape", "albedo", "landmark"}
OPTIONAL = {"gradient_difference", "over_exposure", "albedo_pairs"}  # computed where they weigh something
RENDERED = set(RENDERED_TERMS)
PHOTO_TERMS = ("photo_proxy_proxy", "photo_proxy_final", "photo_final_proxy", "photo_final_final")
SIZE = (48, 48)


def reconstruction(system, batch, rendered):
    """All terms that compare a rendering with the image."""
    return system._reconstruction(batch, rendered, everything())


@pytest.fixture
def system(small_model_config, small_template) -> HighFidelity:
    perceptual = PerceptualConfig(layers=("conv1_1",), weights="random", size=32)
    return HighFidelity(HighFidelityConfig(small_model_config, LossConfig(perceptual=perceptual)), small_template)


@pytest.fixture(scope="module")
def plain_world(small_world) -> SyntheticWorld:
    """Pictures that are exactly the rendering of their truth inside the mask."""
    world = object.__new__(SyntheticWorld)
    plain = replace(small_world.config, noise=0.0, occlusion=0.0, super_sampling=1)
    vars(world).update(vars(small_world) | {"config": plain})
    return world


@pytest.fixture(scope="module")
def batch(plain_world) -> FaceBatch:
    return plain_world.sample(torch.arange(4))


def only(**weights: float) -> LossWeights:
    return LossWeights(**(dict.fromkeys(TERMS, 0.0) | weights))


def everything() -> LossWeights:
    """The default weights, and every term that is off by default."""
    weights = asdict(LossWeights())
    return LossWeights(**{name: weight or 0.5 for name, weight in weights.items()})


def truth(batch: FaceBatch) -> tuple[Face, Geometry]:
    """The batch's own truth as if a network had estimated it; residuals are zero."""
    size, flat = len(batch.image), torch.zeros_like(batch.albedo)
    face = Face(Latents(torch.zeros(size, 8), torch.zeros(size, 8)), batch.camera, batch.sh_coefficients)
    return face, Geometry(UVMaps(flat, flat, batch.albedo, batch.albedo), batch.vertices, batch.vertices)


def frontal(camera: Camera) -> Camera:
    """Straight before the middle of the picture, weak perspective."""
    size, zero = len(camera.scale), torch.zeros(len(camera.scale))
    middle = torch.tensor([SIZE[1] / 2, SIZE[0] / 2]).expand(size, 2)
    return Camera(torch.eye(3).expand(size, 3, 3), torch.zeros(size, 2), camera.scale, zero, middle)


def gradient_norm(module: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_finetuning_has_every_term_and_the_total_is_their_weighted_sum(system, batch):
    for weights, terms in ((LossWeights(), TERMS - OPTIONAL), (everything(), TERMS)):
        objective = system.objective(batch, weights)
        assert set(objective.terms) == terms
        expected = sum(asdict(weights)[name] * float(value) for name, value in objective.terms.items())
        assert float(objective.total.detach()) == pytest.approx(expected, rel=1e-5)
        assert all(value >= 0 for value in objective.terms.values())


def test_pretraining_renders_nothing(system, batch, monkeypatch):
    def fail(*args):
        raise AssertionError("rendered")

    monkeypatch.setattr(system.model, "render_four", fail)
    objective = system.objective(batch, LossConfig().pretrain)
    assert set(objective.terms) == TERMS - RENDERED - OPTIONAL
    paired = system.objective(batch, replace(LossConfig().pretrain, albedo_pairs=1.0, light_tint=1.0))
    assert set(paired.terms) == TERMS - RENDERED - OPTIONAL | {"albedo_pairs"}


@pytest.mark.parametrize("term", RENDERED_TERMS)
def test_each_rendered_term_asks_for_a_rendering(system, batch, term):
    assert term in system.objective(batch, only(**{term: 1.0})).terms


def test_terms_without_labels_are_skipped(system, batch):
    photo = FaceBatch(image=batch.image, index=batch.index)
    assert set(system.objective(photo, everything()).terms) == TERMS - SUPERVISED
    marked = replace(photo, landmarks=batch.landmarks)
    assert set(system.objective(marked, everything()).terms) == TERMS - SUPERVISED | {"landmark"}


def test_supervised_terms_are_zero_at_the_truth(system, batch):
    for name, term in system._supervised(batch, *truth(batch)).items():
        assert term.shape == (4,), name
        torch.testing.assert_close(term, torch.zeros(4), atol=1e-4, rtol=0, msg=name)


def test_supervised_terms_have_the_documented_units(system, batch):
    face, geometry = truth(batch)
    shifted = replace(geometry, vertices_proxy=geometry.vertices_proxy + torch.tensor([10.0, 0, 0]))
    torch.testing.assert_close(system._supervised(batch, face, shifted)["shape"], torch.ones(4))  # cm^2
    moved = replace(face, camera=replace(face.camera, translation=face.camera.translation + torch.tensor([24.0, 0])))
    weak = replace(batch, camera=replace(batch.camera, inverse_distance=torch.zeros(4)))
    moved = replace(moved, camera=replace(moved.camera, inverse_distance=torch.zeros(4)))
    terms = system._supervised(replace(weak, landmarks=batch.landmarks), moved, geometry)
    torch.testing.assert_close(terms["camera_position"], torch.full((4,), 0.5))  # half image sizes, mean of two axes
    larger = replace(face, camera=replace(face.camera, scale=face.camera.scale * torch.e))
    torch.testing.assert_close(system._supervised(batch, larger, geometry)["camera_position"], torch.ones(4))
    brighter = replace(face, sh_coefficients=face.sh_coefficients + 0.5)
    torch.testing.assert_close(system._supervised(batch, brighter, geometry)["light"], torch.full((4,), 0.25))


def test_landmarks_are_measured_in_half_image_sizes(system, batch):
    off = replace(batch, landmarks=batch.landmarks + torch.tensor([0.0, 24.0]))
    torch.testing.assert_close(system._supervised(off, *truth(batch))["landmark"], torch.ones(4), rtol=1e-4, atol=0)


def test_reconstruction_is_zero_at_the_truth(system, batch):
    face, geometry = truth(batch)
    drawn = system.model.render_four(face, geometry, SIZE)
    terms = reconstruction(system, batch, drawn)
    assert set(terms) == {*PHOTO_TERMS, "perceptual", "gradient_difference"}
    for name, term in terms.items():
        assert term.shape == (4,), name
        assert term.max() < 2e-3, name  # pixels above 1 are clipped in the photo only
    wrong = replace(batch, sh_coefficients=batch.sh_coefficients * 0.5)
    darker = reconstruction(system, batch, system.model.render_four(*truth(wrong), SIZE))
    for name, term in darker.items():
        assert (term > terms[name] + 1e-3).all(), name


def test_reconstruction_looks_inside_the_known_mask_only(system, batch):
    """Half of each face is known; what the photo shows on the other half changes no photo term."""
    left = torch.arange(48) < 24
    half = replace(batch, mask=batch.mask & left)
    face, geometry = truth(replace(batch, sh_coefficients=batch.sh_coefficients * 0.5))
    drawn = system.model.render_four(face, geometry, SIZE)
    before = reconstruction(system, half, drawn)
    spoilt = torch.where(left, batch.image, torch.rand_like(batch.image))
    for name, term in reconstruction(system, replace(half, image=spoilt), drawn).items():
        if name != "perceptual":
            torch.testing.assert_close(term, before[name], msg=name)
            assert (term > 1e-3).all(), name
    nothing = replace(batch, mask=torch.zeros_like(batch.mask))
    for name, term in reconstruction(system, nothing, drawn).items():
        assert term.abs().max() < 1e-9, name


def test_occluded_pixels_of_a_rendering_get_no_gradient(system, batch):
    """What is drawn behind an occluder matters to no term: features there are the photo's own."""
    half = replace(batch, mask=batch.mask & (torch.arange(48) < 24))
    drawn = system.model.render_four(*truth(replace(batch, sh_coefficients=batch.sh_coefficients * 0.5)), SIZE)
    names = ("proxy_proxy", "proxy_final", "final_proxy", "final_final")
    images = {name: getattr(drawn, name).detach().requires_grad_() for name in names}
    for name, term in reconstruction(system, half, replace(drawn, **images)).items():
        gradients = torch.autograd.grad(term.sum(), list(images.values()), retain_graph=True, allow_unused=True)
        reached = [gradient for gradient in gradients if gradient is not None]
        assert len(reached) == (1 if name in PHOTO_TERMS else 2), name
        for gradient in reached:
            assert gradient.abs().sum() > 0, name
            assert gradient.masked_select(~half.mask[:, None]).eq(0).all(), name


def test_occluded_texels_are_hidden(system, batch, small_template):
    """An occluder over the image's left half: texels there take no colour from the photo and mirror the other side."""
    face, geometry = truth(batch)
    face = replace(face, camera=frontal(face.camera))
    residual, albedo = torch.randn(4, 3, 32, 32, requires_grad=True), torch.rand(4, 3, 32, 32, requires_grad=True)
    maps = replace(geometry.maps, shape_final=residual, albedo_proxy=albedo)
    geometry = replace(geometry, maps=maps, vertices_proxy=small_template.vertices.expand(4, -1, -1))
    drawn = system.model.render_four(face, geometry, SIZE)
    facing = system.model.surface.to_uv_map(drawn.proxy_normals)[:, 2]
    occluded = replace(batch, mask=(torch.arange(48) >= 24).expand(4, *SIZE))
    terms = system._visibility_terms(occluded, face, geometry, drawn)
    (shape,) = torch.autograd.grad(terms["residual_symmetry"].sum(), residual, retain_graph=True)
    hidden = shape[:, 2].ne(0)
    expected = (torch.arange(32) < 16) | (facing < 0)
    assert hidden[:, 1:-1, 1:-1].equal(expected[:, 1:-1, 1:-1] & system.skin_interior[1:-1, 1:-1])
    (colour,) = torch.autograd.grad(terms["albedo_constancy"].sum(), albedo)
    assert colour[..., :16].eq(0).all()
    assert colour[..., 17:].ne(0).any()


def test_albedo_may_change_where_the_image_seen_at_a_texel_does(system, batch, small_template):
    """Red and blue halves of the map, seen in a picture that has them too, against one that is grey."""
    face, geometry = truth(batch)
    face = Face(face.latents, frontal(face.camera), white_light(4))
    halves = torch.full((4, 3, 32, 32), 0.1)
    halves[:, 0, :, :16], halves[:, 2, :, 16:] = 0.8, 0.8
    mean = small_template.vertices.expand(4, -1, -1)
    geometry = replace(geometry, maps=replace(geometry.maps, albedo_proxy=halves), vertices_proxy=mean)
    drawn = system.model.render_four(face, geometry, SIZE)
    coloured = torch.full((4, 3, *SIZE), 0.1)
    coloured[:, 0, :, :24], coloured[:, 2, :, 24:] = 0.8, 0.8
    batch = replace(batch, mask=None)
    pictures = {"same": coloured, "grey": torch.full_like(coloured, 0.5), "turned": coloured.transpose(2, 3)}
    terms = {
        name: system._visibility_terms(replace(batch, image=image), face, geometry, drawn)["albedo_constancy"]
        for name, image in pictures.items()
    }
    assert (terms["same"] < 0.2 * terms["grey"]).all()
    assert (terms["turned"] > 0.5 * terms["grey"]).all()
    hidden = replace(batch, image=coloured, mask=torch.zeros(4, *SIZE, dtype=torch.bool))
    assert system._visibility_terms(hidden, face, geometry, drawn)["albedo_constancy"].eq(0).all()


def test_each_photo_term_has_its_own_pair(system, batch):
    """Final albedo moves the second term, final shape the third, and both what is asked of (S, A)."""
    face, geometry = truth(batch)
    before = reconstruction(system, batch, system.model.render_four(face, geometry, SIZE))
    maps = replace(geometry.maps, albedo_final=1 - geometry.maps.albedo_final)
    after = reconstruction(system, batch, system.model.render_four(face, replace(geometry, maps=maps), SIZE))
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-5)}
    assert changed == {"photo_proxy_final", "photo_final_final", "perceptual", "gradient_difference"}
    stretched = replace(geometry, vertices_final=geometry.vertices_final * torch.tensor([1.0, 1.2, 1.0]))
    after = reconstruction(system, batch, system.model.render_four(face, stretched, SIZE))
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-5)}
    assert changed == {"photo_final_proxy", "photo_final_final", "perceptual", "gradient_difference"}


def test_landmarks_move_the_camera_only(system, batch):
    system.objective(batch, only(landmark=1.0)).total.backward()
    model = system.model
    for part in (model.shape_decoder, model.albedo_decoder):
        assert gradient_norm(part) == 0
    for head in (model.encoder.light_head, model.encoder.shape_head, model.encoder.albedo_head):
        assert gradient_norm(head) == 0
    assert gradient_norm(model.encoder.camera_head) > 0
    assert gradient_norm(model.encoder.trunk) > 0


def test_landmarks_may_move_the_whole_encoder_but_never_the_decoders(system, batch, small_model_config, small_template):
    """The paper's encoder-only step: camera and shape latent, as if the decoders' parameters were constants."""
    reaching = HighFidelity(
        HighFidelityConfig(small_model_config, LossConfig(landmark_reaches="encoder")), small_template
    )
    reaching.load_state_dict(system.state_dict())
    objective = reaching.objective(batch, only(landmark=1.0))
    torch.testing.assert_close(
        objective.terms["landmark"], system.objective(batch, only(landmark=1.0)).terms["landmark"]
    )
    objective.total.backward()
    model = reaching.model
    for part in (model.shape_decoder, model.albedo_decoder, model.encoder.light_head, model.encoder.albedo_head):
        assert gradient_norm(part) == 0
    for part in (model.encoder.camera_head, model.encoder.shape_head, model.encoder.trunk):
        assert gradient_norm(part) > 0

    expected = {name: parameter.grad for name, parameter in model.encoder.named_parameters()}
    system.model.shape_decoder.requires_grad_(False)
    face = system.model.encode(batch.image)
    geometry, distances = system.model.decode(face.latents), []
    for vertices in (geometry.vertices_proxy, geometry.vertices_final):
        points, _ = project(face.camera, small_template.landmarks(vertices))
        distances.append(landmark_distance(points, batch.landmarks) / 24)
    torch.stack(distances).mean().backward()
    for name, parameter in system.model.encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(expected[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_landmarks_reach_nothing_where_no_gradient_is_asked_for(small_model_config, small_template, batch):
    config = HighFidelityConfig(small_model_config, LossConfig(landmark_reaches="encoder"))
    with torch.no_grad():
        objective = HighFidelity(config, small_template).objective(batch, only(landmark=1.0))
    assert objective.total > 0
    linear = HighFidelity(config, small_template)
    linear.linear_objective(batch, only(landmark=1.0)).total.backward()
    assert gradient_norm(linear.linear_shape) == 0
    assert gradient_norm(linear.model.encoder.shape_head) > 0


@pytest.mark.parametrize(
    ("term", "part"),
    [("shape", "shape_decoder"), ("albedo", "albedo_decoder"), ("shape_smoothness", "shape_decoder")],
)
def test_supervision_reaches_the_proxy_of_its_decoder_only(system, batch, term, part):
    system.objective(batch, only(**{term: 1.0})).total.backward()
    other = "albedo_decoder" if part == "shape_decoder" else "shape_decoder"
    assert gradient_norm(getattr(system.model, part).proxy_end) > 0
    assert gradient_norm(getattr(system.model, part).residual_end) == 0
    assert gradient_norm(getattr(system.model, other)) == 0


def test_residual_terms_are_zero_and_finite_at_the_start(system, batch):
    objective = system.objective(batch, only(residual_shape=1.0, residual_albedo=1.0))
    assert float(objective.total.detach()) == 0
    objective.total.backward()
    assert gradient_norm(system.model) == 0


def test_hidden_residuals_are_those_turned_away(system, batch, small_template):
    """The face looks to image right: its image-right half has texels that cannot be seen."""
    angle, zero = torch.full((4,), 0.9), torch.zeros(4)
    face, geometry = truth(batch)
    camera = replace(frontal(face.camera), rotation=rotation_from_euler(zero, angle, zero))
    mean = small_template.vertices.expand(4, -1, -1)
    residual = torch.randn(4, 3, 32, 32, requires_grad=True)
    maps = replace(geometry.maps, shape_final=residual)
    geometry, face = replace(geometry, maps=maps, vertices_proxy=mean), replace(face, camera=camera)
    drawn = system.model.render_four(face, geometry, SIZE)
    term = system._visibility_terms(replace(batch, mask=None), face, geometry, drawn)["residual_symmetry"]
    assert (term > 0).all()
    (gradient,) = torch.autograd.grad(term.sum(), residual)
    assert gradient[:, :2].eq(0).all()
    hidden = gradient[:, 2].ne(0)
    assert hidden.any()
    facing = system.model.surface.to_uv_map(drawn.proxy_normals)[:, 2]
    assert (facing[hidden] < 0).all()
    assert (hidden.nonzero()[:, 2] >= 16).float().mean() > 0.9
    assert not hidden[:, 0].any()  # the map's border is left out


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("albedo_pairs", {"albedo_decoder.proxy_end"}),
        ("shape_smoothness_final", {"shape_decoder.proxy_end", "shape_decoder.residual_end"}),
        ("light_tint", {"encoder.light_head"}),
        ("white_shading_of_batch", {"encoder.light_head", "shape_decoder.proxy_end"}),
    ],
)
def test_regularisers_reach_their_part_only(system, batch, term, reached):
    torch.nn.init.normal_(system.model.shape_decoder.residual_end[-1].weight, std=0.01)
    system.objective(batch, only(**{term: 1.0})).total.backward()
    parts = ["encoder.light_head"]
    parts += [f"{kind}_decoder.{end}_end" for kind in ("shape", "albedo") for end in ("proxy", "residual")]
    assert {part for part in parts if gradient_norm(system.model.get_submodule(part)) > 0} == reached


def test_over_exposure_reaches_the_light_and_is_zero_in_the_shade(system, batch):
    face, geometry = truth(batch)
    for brightness, exposed in ((0.7, False), (4.0, True)):
        lit = replace(face, sh_coefficients=white_light(4, brightness).requires_grad_())
        drawn = system.model.render_four(lit, geometry, SIZE)
        term = system._light(geometry, drawn, only(over_exposure=1.0))["over_exposure"]
        assert term.gt(0).tolist() == [exposed] * 4
        (gradient,) = torch.autograd.grad(term.sum(), lit.sh_coefficients)
        assert gradient[:, :, 0].gt(0).any() == exposed


def test_random_pairs_are_skin_and_belong_to_the_step(system, batch, small_template):
    skin = small_template.regions["skin"].flatten()[system.skin_texels]
    assert (skin > 0.5).all()
    assert len(skin) > 100
    weights = only(albedo_pairs=1.0)
    first, again, other = (float(system.objective(batch, weights, step).terms["albedo_pairs"]) for step in (3, 3, 4))
    assert first == again
    assert first != other


def test_final_and_proxy_may_be_the_same_tensors(system, batch):
    """A model without proxies: its four pictures are one, and nothing is residual."""
    face, _ = truth(batch)
    flat, albedo = torch.zeros(4, 3, 32, 32, requires_grad=True), batch.albedo.clone().requires_grad_()
    vertices = system.model.vertices_from_map(flat)
    one = Geometry(UVMaps(flat, flat, albedo, albedo), vertices, vertices)
    drawn = system.model.render_four(face, one, SIZE)
    terms = system._supervised(batch, face, one) | system._regularisers(one)
    terms |= system._reconstruction(batch, drawn, everything()) | system._light(one, drawn, everything())
    terms |= system._visibility_terms(batch, face, one, drawn)
    for name in ("residual_shape", "residual_albedo", "residual_symmetry"):
        assert terms[name].eq(0).all()
    torch.testing.assert_close(terms["photo_proxy_final"], terms["photo_final_proxy"])
    torch.testing.assert_close(terms["shape_smoothness"], terms["shape_smoothness_final"])
    gradients = torch.autograd.grad(sum(term.mean() for term in terms.values()), (flat, albedo))
    assert all(gradient.isfinite().all() and gradient.ne(0).any() for gradient in gradients)


def test_every_parameter_gets_a_finite_gradient(system, batch):
    system.objective(batch, everything()).total.backward()
    for name, parameter in system.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_picture_of_nothing_gives_finite_gradients(system, batch, value):
    blank = FaceBatch(torch.full_like(batch.image, value), batch.index, mask=torch.zeros_like(batch.mask))
    objective = system.objective(blank, everything())
    objective.total.backward()
    assert objective.total.isfinite()
    assert all(p.grad.isfinite().all() for p in system.parameters() if p.grad is not None)


def test_a_few_steps_lower_the_objective(system, batch):
    optimizer, totals = torch.optim.Adam(system.parameters(), lr=3e-3), []
    for _ in range(15):
        objective = system.objective(batch, LossWeights())
        optimizer.zero_grad()
        objective.total.backward()
        optimizer.step()
        totals.append(float(objective.total.detach()))
    assert totals[-1] < 0.7 * totals[0]


def test_features_are_no_part_of_the_checkpoint(system):
    assert system.feature_network().weights_source == "random"
    assert all(name.startswith(("model.", "linear_")) for name in system.state_dict())
    shared = {p.data_ptr() for p in system.feature_network().parameters()}
    assert not shared & {p.data_ptr() for p in system.parameters()}


def test_features_are_not_built_when_no_stage_needs_them(small_model_config, small_template, batch):
    weights = LossWeights(perceptual=0.0)
    loss = LossConfig(pretrain=weights, finetune=weights, perceptual=PerceptualConfig(weights="no such file"))
    system = HighFidelity(HighFidelityConfig(small_model_config, loss), small_template)
    assert "perceptual" not in system.objective(batch, weights).terms


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_weights_are_finite_and_not_negative(value):
    with pytest.raises(ConfigError, match=r"weights.albedo: got (nan|-1.0|inf); expected 0 to"):
        LossWeights(albedo=value)


def test_landmark_reaches_is_checked():
    with pytest.raises(
        ConfigError, match=r"loss.landmark_reaches: got 'decoder'; expected one of \('camera', 'encoder'\)"
    ):
        LossConfig(landmark_reaches="decoder")


def test_the_perceptual_term_starts_when_it_is_told_to():
    late = LossConfig(perceptual_start=0.5)
    assert late.finetune_at(0.0) == late.finetune_at(0.49) == replace(late.finetune, perceptual=0.0)
    assert late.finetune_at(0.5) == late.finetune_at(1.0) == late.finetune
    assert LossConfig().finetune_at(0.0) == LossConfig().finetune
    with pytest.raises(ConfigError, match=r"loss.perceptual_start: got 1.5; expected 0 to 1"):
        LossConfig(perceptual_start=1.5)


@pytest.mark.parametrize("network", ["vgg16", "lpips"])
def test_either_perceptual_network_is_zero_for_equal_pictures(small_model_config, small_template, batch, network):
    perceptual = PerceptualConfig(network=network, weights="random", size=32)
    config = HighFidelityConfig(small_model_config, LossConfig(perceptual=perceptual))
    system = HighFidelity(config, small_template)
    face, geometry = truth(batch)
    drawn = system.model.render_four(face, geometry, SIZE)
    same = replace(drawn, proxy_final=batch.image, final_proxy=batch.image)
    assert system._perceptual(batch, same).eq(0).all()
    assert (system._perceptual(batch, replace(drawn, proxy_final=0.5 * batch.image)) > 1e-3).all()
