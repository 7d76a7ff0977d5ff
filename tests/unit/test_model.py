"""The model: image -> face -> maps -> meshes -> four renderings."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import ConfigError
from nl3dmm.geometry.lighting import white_light
from nl3dmm.model import Face, FaceModel, ModelConfig
from nl3dmm.types import Latents

SIZE = (48, 48)


@pytest.fixture
def model(small_model_config, small_template) -> FaceModel:
    return FaceModel(small_model_config, small_template).eval()


def randomised(model: FaceModel) -> FaceModel:
    """A model whose residuals are not zero and whose batch norms have seen data."""
    for decoder in (model.shape_decoder, model.albedo_decoder):
        nn.init.normal_(decoder.residual_end[-1].weight, std=0.1)
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in norms:
        layer.momentum = None  # running values become those of the one batch that follows
    model.train()
    model.encode(torch.rand(4, 3, *SIZE))
    model.decode(some_latents(16))
    return model.eval()


def some_latents(batch: int = 2) -> Latents:
    return Latents(torch.randn(batch, 8), torch.randn(batch, 8))


def some_face(model: FaceModel, batch: int = 2) -> Face:
    face = model.encode(torch.rand(batch, 3, *SIZE))
    return replace(face, latents=some_latents(batch))


def scattered(grid: FaceTemplate) -> FaceTemplate:
    """The same face as a template whose vertices are not texels: mirrored order, no grid."""
    last = len(grid.vertices) - 1
    return replace(
        grid,
        name="scattered",
        vertices=grid.vertices.flip(0),
        uv=grid.uv.flip(0),
        triangles=last - grid.triangles,
        landmark_vertices=last - grid.landmark_vertices,
        mirror=last - grid.mirror.flip(0),
        identity_basis=grid.identity_basis.flip(1),
        expression_basis=grid.expression_basis.flip(1),
        is_uv_grid=False,
    )


def test_forward_shapes(model, small_template):
    face = model.encode(torch.rand(2, 3, *SIZE))
    geometry = model.decode(face.latents)
    assert face.sh_coefficients.shape == (2, 3, 9)
    assert face.latents.shape_latent.shape == (2, 8)
    assert all(getattr(geometry.maps, name).shape == (2, 3, 32, 32) for name in vars(geometry.maps))
    assert geometry.vertices_proxy.shape == geometry.vertices_final.shape == (2, len(small_template.vertices), 3)


def test_first_guess_is_a_frontal_face_of_average_size_in_white_light(model):
    face = model.encode(torch.rand(4, 3, *SIZE))
    torch.testing.assert_close(face.camera.rotation, torch.eye(3).expand(4, 3, 3), atol=0.3, rtol=0)
    torch.testing.assert_close(face.camera.scale, torch.full((4,), model.mean_scale), rtol=0.3, atol=0)
    torch.testing.assert_close(face.sh_coefficients, white_light(4, 0.8), atol=0.3, rtol=0)
    assert face.camera.principal_point.tolist() == [[24.0, 24.0]] * 4


def test_average_face_fills_57_percent_of_the_image(model, small_template):
    landmarks = small_template.landmarks(small_template.vertices[None])[0, :, :2]
    extent = (landmarks.amax(0) - landmarks.amin(0)).max() * model.mean_scale
    assert float(extent) == pytest.approx(0.57 * 48, rel=1e-5)


def test_a_new_models_finals_equal_its_proxies(model):
    geometry = model.decode(some_latents())
    assert geometry.maps.shape_final.equal(geometry.maps.shape_proxy)
    assert geometry.maps.albedo_final.equal(geometry.maps.albedo_proxy)
    assert geometry.vertices_final.equal(geometry.vertices_proxy)


def test_a_new_model_is_near_the_mean_face(model, small_template):
    geometry = model.decode(some_latents())
    assert (geometry.vertices_proxy - small_template.vertices).abs().max() < 5  # mm


def test_maps_are_bounded(model):
    randomised(model).train()
    for decoder in (model.shape_decoder, model.albedo_decoder):
        nn.init.normal_(decoder.proxy_end[-1].weight, std=50.0)
    maps = model.decode(some_latents()).maps
    assert maps.shape_proxy.abs().max() <= 60
    assert maps.shape_proxy.abs().max() > 59
    assert maps.albedo_final.min() >= 0
    assert maps.albedo_final.max() <= 1


def test_vertices_are_the_mean_plus_the_map(model, small_template):
    geometry = randomised(model).decode(some_latents())
    texel = 5 * 32 + 7
    expected = small_template.vertices[texel] + geometry.maps.shape_final[:, :, 5, 7]
    torch.testing.assert_close(geometry.vertices_final[:, texel], expected)


def test_to_uv_map_is_the_inverse_of_sampling(model):
    values = torch.randn(2, 32 * 32, 3)
    assert model.surface.to_uv_map(values).flatten(2).transpose(1, 2).equal(values)


def test_render_four_equals_four_separate_renderings(model):
    randomised(model)
    face = some_face(model)
    geometry = model.decode(face.latents)
    maps = geometry.maps
    four = model.render_four(face, geometry, SIZE)
    for shape, vertices in (("proxy", geometry.vertices_proxy), ("final", geometry.vertices_final)):
        for albedo, uv_map in (("proxy", maps.albedo_proxy), ("final", maps.albedo_final)):
            single = model.render(face, vertices, uv_map[:, None], SIZE)
            torch.testing.assert_close(getattr(four, f"{shape}_{albedo}"), single.images[:, 0], atol=1e-6, rtol=0)
            assert getattr(four, f"{shape}_mask").equal(single.mask)
            if shape == "proxy":
                torch.testing.assert_close(four.proxy_shading, single.shading)
                torch.testing.assert_close(four.proxy_normals, single.normals)
    assert not four.proxy_proxy.equal(four.proxy_final)
    assert not four.proxy_proxy.equal(four.final_proxy)
    assert four.proxy_mask.any()


def test_gradients_of_render_four_equal_those_of_four_separate_renderings(model):
    randomised(model)
    face = some_face(model)
    geometry = model.decode(face.latents).detach()
    vertices, maps = (geometry.vertices_proxy, geometry.vertices_final), geometry.maps
    leaves = [*vertices, maps.albedo_proxy, maps.albedo_final]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.rand(4, 2, 3, *SIZE)
    four = model.render_four(face, geometry, SIZE)
    together = torch.stack([four.proxy_proxy, four.proxy_final, four.final_proxy, four.final_final])
    separate = [
        model.render(face, shape, albedo[:, None], SIZE).images[:, 0] for shape in vertices for albedo in leaves[2:]
    ]
    found, expected = (
        torch.autograd.grad((images * weights).sum(), leaves) for images in (together, torch.stack(separate))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=0)


def test_gradients_of_a_rendering_reach_all_networks(model):
    randomised(model).train()
    image = torch.rand(2, 3, *SIZE)
    face = model.encode(image)
    four = model.render_four(face, model.decode(face.latents), SIZE)
    (four.final_final - image).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.encoder.trunk[0][0].weight.grad.abs().sum() > 0


def test_a_template_without_grid_gives_the_same_faces(small_model_config, small_template, model):
    other = FaceModel(small_model_config, scattered(small_template)).eval()
    other.load_state_dict(randomised(model).state_dict())
    face = some_face(model)
    grid, free = model.decode(face.latents), other.decode(face.latents)
    torch.testing.assert_close(free.vertices_final.flip(1), grid.vertices_final, atol=2e-3, rtol=0)
    expected = model.surface.to_uv_map(grid.vertices_final)
    torch.testing.assert_close(other.surface.to_uv_map(free.vertices_final), expected, atol=2e-3, rtol=0)
    pictures = [part.render_four(face, part.decode(face.latents), SIZE) for part in (model, other)]
    assert (pictures[0].final_mask == pictures[1].final_mask).float().mean() > 0.995
    both = pictures[0].final_mask & pictures[1].final_mask
    gap = (pictures[0].final_final - pictures[1].final_final).abs().amax(1)[both]
    assert gap.median() < 1e-3


def test_a_free_camera_is_a_weak_perspective_one(small_model_config, small_template):
    free = FaceModel(replace(small_model_config, camera="free"), small_template)
    nn.init.normal_(free.encoder.camera_head[-1].weight, std=0.3)
    image = torch.rand(4, 3, *SIZE)
    assert free.encoder(image).camera_logits.shape == (4, 8)
    camera = free.encode(image).camera
    turn = camera.rotation @ camera.rotation.mT
    torch.testing.assert_close(turn, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
    assert not camera.rotation.allclose(torch.eye(3).expand(4, 3, 3), atol=1e-2)
    assert (camera.scale > 0).all()
    assert camera.inverse_distance.eq(0).all()
    (camera.rotation.square().sum() + camera.scale.sum() + camera.translation.sum()).backward()
    assert free.encoder.camera_head[-1].weight.grad.abs().sum() > 0


def test_a_new_free_camera_is_as_good_a_guess(small_model_config, small_template):
    model = FaceModel(replace(small_model_config, camera="free"), small_template).eval()
    camera = model.encode(torch.rand(4, 3, *SIZE)).camera
    torch.testing.assert_close(camera.rotation, torch.eye(3).expand(4, 3, 3), atol=0.3, rtol=0)
    torch.testing.assert_close(camera.scale, torch.full((4,), model.mean_scale), rtol=0.3, atol=0)


def test_a_model_with_one_end_has_no_residual(small_model_config, small_template):
    decoder = replace(small_model_config.decoder, proxy=False)
    model = FaceModel(replace(small_model_config, decoder=decoder), small_template).eval()
    face = some_face(model)
    geometry = model.decode(face.latents)
    assert geometry.maps.shape_final is geometry.maps.shape_proxy
    assert geometry.maps.albedo_final is geometry.maps.albedo_proxy
    assert geometry.vertices_final is geometry.vertices_proxy
    four = model.render_four(face, geometry, SIZE)
    assert four.final_final.equal(four.proxy_proxy)
    assert not [name for name in model.state_dict() if "residual" in name]


def test_a_model_with_one_end_draws_one_picture_with_the_gradient_of_four(small_model_config, small_template):
    decoder = replace(small_model_config.decoder, proxy=False)
    one = FaceModel(replace(small_model_config, decoder=decoder), small_template).eval()
    face = some_face(one)
    geometry = one.decode(face.latents)
    apart = geometry.map(torch.Tensor.clone)  # equal values that are not known to be equal
    weights, gradients, parameters = (2.0, 4.0, 4.0, 1.0), [], list(one.parameters())[-8:]
    for drawn in (one.render_four(face, geometry, SIZE), one.render_four(face, apart, SIZE)):
        images = (drawn.proxy_proxy, drawn.proxy_final, drawn.final_proxy, drawn.final_final)
        loss = sum(weight * (image**2).mean() for weight, image in zip(weights, images, strict=True))
        gradients.append(torch.autograd.grad(loss, parameters, retain_graph=True))
    assert one.render_four(face, geometry, SIZE).final_proxy.equal(one.render_four(face, apart, SIZE).final_proxy)
    for single, four in zip(*gradients, strict=True):
        torch.testing.assert_close(single, four, atol=1e-6, rtol=1e-4)


def test_encodings_differ(small_model_config, small_template, model):
    plain = FaceModel(replace(small_model_config, encoding="none"), small_template).eval()
    plain.load_state_dict(model.state_dict())
    face = some_face(model)
    drawn = [part.render_four(face, part.decode(face.latents), SIZE).proxy_proxy for part in (model, plain)]
    assert F.l1_loss(*drawn) > 1e-3


def test_bfloat16_networks_leave_geometry_in_float32(model):
    model.network_dtype = torch.bfloat16
    face = model.encode(torch.rand(2, 3, *SIZE))
    geometry = model.decode(face.latents)
    four = model.render_four(face, geometry, SIZE)
    for value in (face.camera.rotation, face.sh_coefficients, geometry.vertices_final, four.final_final):
        assert value.dtype == torch.float32


def test_moving_the_model_moves_its_template(model, small_template):
    moved = model.to("meta")
    assert moved.template.vertices.device.type == "meta"
    assert moved.device.type == "meta"
    assert small_template.vertices.device.type == "cpu"


def test_state_holds_parameters_only(model):
    assert not any("template" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "linear"}, "model.encoding: got 'linear'"),
        ({"image_size": 8}, "model.image_size: got 8"),
        ({"camera": "affine"}, r"model.camera: got 'affine'; expected one of \('weak_perspective', 'free'\)"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**change)
