"""The linear model: filled from a bank's labels, undistorted, carried by the state."""

from dataclasses import replace

import pytest
import torch

from nl3dmm.data.bank import FaceBank
from nl3dmm.errors import ConfigError
from nl3dmm.model import FaceModel, ModelConfig
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.training.linear_basis import fit_linear_model
from nl3dmm.types import Latents


@pytest.fixture(scope="module")
def bank(small_world, tmp_path_factory) -> FaceBank:
    return FaceBank(small_world, 96, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def config(small_model_config) -> ModelConfig:
    return replace(small_model_config, shape_latent=24, albedo_latent=24, decoder=DecoderConfig(kind="linear"))


@pytest.fixture(scope="module")
def model(config, small_template, bank) -> FaceModel:
    model = FaceModel(config, small_template).eval()
    explained = fit_linear_model(model, bank)
    assert 0.98 < min(explained) <= max(explained) <= 1
    return model


def project(decoder, maps: torch.Tensor) -> torch.Tensor:
    """Coefficients of maps by least squares."""
    return (maps.flatten(1) - decoder.mean) @ torch.linalg.pinv(decoder.basis)


def test_decoded_maps_are_the_labels_own_projection_in_mm_and_albedo(model, bank, small_template):
    batch = bank.read(torch.arange(96))
    offsets = model.surface.to_uv_map(batch.vertices - small_template.vertices)
    latents = Latents(project(model.shape_decoder, offsets), project(model.albedo_decoder, batch.albedo))
    torch.testing.assert_close(latents.shape_latent.T.cov(), torch.eye(24), atol=1e-2, rtol=0)
    geometry = model.decode(latents)
    linear = model.shape_decoder.mean + latents.shape_latent @ model.shape_decoder.basis
    torch.testing.assert_close(geometry.maps.shape_final.flatten(1), linear, atol=1e-3, rtol=1e-4)
    linear = model.albedo_decoder.mean + latents.albedo_latent @ model.albedo_decoder.basis
    torch.testing.assert_close(geometry.maps.albedo_final.flatten(1), linear.clamp(1e-4, 1 - 1e-4), atol=1e-5, rtol=0)
    assert (geometry.vertices_final - batch.vertices).norm(dim=-1).mean() < 0.5  # mm
    assert (geometry.maps.albedo_final - batch.albedo).abs().mean() < 0.02


def test_mean_face_is_the_bank_s(model, bank):
    batch = bank.read(torch.arange(96))
    geometry = model.decode(Latents(torch.zeros(1, 24), torch.zeros(1, 24)))
    torch.testing.assert_close(geometry.vertices_final[0], batch.vertices.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(geometry.maps.albedo_final[0], batch.albedo.mean(0), atol=1e-4, rtol=0)


def test_colours_outside_the_range_are_clipped_and_stay_finite(model):
    latents = Latents(100 * torch.randn(2, 24), 100 * torch.randn(2, 24))
    latents.albedo_latent.requires_grad_(True)
    geometry = model.decode(latents)
    assert 0 <= geometry.maps.albedo_final.min() < 1e-3
    assert 1 >= geometry.maps.albedo_final.max() > 0.999
    assert geometry.maps.shape_final.abs().max() <= 60
    geometry.maps.albedo_final.sum().backward()
    assert latents.albedo_latent.grad.isfinite().all()


def test_proxy_and_final_are_one_and_gradients_reach_the_latents(model):
    latents = Latents(torch.randn(2, 24, requires_grad=True), torch.randn(2, 24, requires_grad=True))
    geometry = model.decode(latents)
    assert geometry.maps.shape_final is geometry.maps.shape_proxy
    assert geometry.vertices_final is geometry.vertices_proxy
    (geometry.vertices_final.square().mean() + geometry.maps.albedo_final.mean()).backward()
    assert latents.shape_latent.grad.abs().min() > 0
    assert latents.albedo_latent.grad.abs().max() > 0
    model.zero_grad()


def test_state_carries_the_basis(config, small_template, model):
    other = FaceModel(config, small_template).eval()
    latents = Latents(torch.randn(2, 24), torch.randn(2, 24))
    assert other.decode(latents).vertices_final.isnan().all()
    other.load_state_dict(model.state_dict())
    assert other.decode(latents).vertices_final.equal(model.decode(latents).vertices_final)


def test_nonlinear_models_are_left_alone(small_model_config, small_template, bank):
    model = FaceModel(small_model_config, small_template)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fit_linear_model(model, bank) is None
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"model.decoder: got no linear part; expected kind=linear or linear_base"):
        model.fit_linear(lambda: [], lambda: [])


@pytest.mark.parametrize("proxy", [True, False])
def test_a_nonlinear_model_with_a_linear_base_starts_as_the_linear_model(config, small_template, model, bank, proxy):
    decoder = DecoderConfig(width=4, up_samplings=4, proxy=proxy, linear_base=True)
    nonlinear = FaceModel(replace(config, decoder=decoder), small_template).eval()
    assert fit_linear_model(nonlinear, bank) is not None
    latents = Latents(torch.randn(3, 24), torch.randn(3, 24))
    expected, maps = model.decode(latents).maps, nonlinear.decode(latents).maps
    for name in ("shape_proxy", "shape_final", "albedo_proxy", "albedo_final"):
        torch.testing.assert_close(getattr(maps, name), getattr(expected, name), atol=1e-4, rtol=0)


def test_the_convolutions_of_a_linear_base_learn_and_the_base_does_not(config, small_template, bank):
    decoder = DecoderConfig(width=4, up_samplings=4, linear_base=True)
    nonlinear = FaceModel(replace(config, decoder=decoder), small_template)
    fit_linear_model(nonlinear, bank)
    geometry = nonlinear.decode(Latents(torch.randn(3, 24), torch.randn(3, 24)))
    geometry.maps.shape_final.square().mean().backward()
    assert nonlinear.shape_decoder.proxy_end[-1].weight.grad.abs().max() > 0
    assert not list(nonlinear.shape_decoder.base.parameters())


def test_a_filled_base_is_kept(config, small_template, model, bank):
    """``encoder_from`` brings one along, whose latents the encoder knows."""
    before = model.shape_decoder.basis.clone()
    assert fit_linear_model(model, bank, samples=40) is None
    assert model.shape_decoder.basis.equal(before)
