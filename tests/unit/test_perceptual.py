"""The frozen feature network: where its weights come from, what it returns."""

import warnings

import pytest
import torch

from nl3dmm.errors import CheckpointError, ConfigError
from nl3dmm.nn.perceptual import FeatureNetwork, PerceptualConfig, layer_names

LAYERS = ("conv1_1", "conv2_2")
RANDOM = PerceptualConfig(layers=LAYERS, weights="random", size=32)
# Positions of the first four convolutions in torchvision's VGG-16 (0, 2 | pool 4 | 5, 7).
TORCHVISION = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork(RANDOM)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache."""
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


def torchvision_state() -> dict[str, torch.Tensor]:
    state = {}
    for index, (outputs, inputs) in TORCHVISION.items():
        state[f"features.{index}.weight"] = torch.randn(outputs, inputs, 3, 3)
        state[f"features.{index}.bias"] = torch.randn(outputs)
    return state | {"classifier.0.weight": torch.zeros(1)}


def test_vgg16_has_13_convolutions():
    assert len(layer_names()) == 13
    assert (layer_names()[0], layer_names()[-1]) == ("conv1_1", "conv5_3")


def test_features_come_at_the_layers_sizes(network):
    features = network(torch.rand(2, 3, 32, 32))
    assert [tuple(feature.shape) for feature in features] == [(2, 64, 32, 32), (2, 128, 16, 16)]
    assert len(network.convolutions) == 4  # nothing after the last layer asked for


def test_features_are_those_before_the_relu(network):
    assert all(feature.amin() < 0 for feature in network(torch.rand(1, 3, 32, 32)))


def test_images_of_any_size_are_resized(network):
    assert network(torch.rand(1, 3, 50, 40))[0].shape == (1, 64, 32, 32)


def test_images_are_normalised_as_imagenet(network):
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(network(image)[0], torch.zeros(1, 64, 32, 32))  # zero bias, zero input


def test_random_weights_are_the_same_every_time(network):
    torch.manual_seed(123)
    other = FeatureNetwork(RANDOM)
    for name, value in network.state_dict().items():
        assert other.state_dict()[name].equal(value)
    assert network.weights_source == "random"


def test_it_is_frozen_but_lets_gradients_through(network):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    network(image)[1].square().mean().backward()
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_torchvision_file_is_loaded(tmp_path):
    state = torchvision_state()
    torch.save(state, tmp_path / "vgg.pth")
    network = FeatureNetwork(PerceptualConfig(layers=LAYERS, weights=str(tmp_path / "vgg.pth"), size=32))
    for convolution, index in zip(network.convolutions, TORCHVISION, strict=True):
        assert convolution.weight.equal(state[f"features.{index}.weight"])
        assert convolution.bias.equal(state[f"features.{index}.bias"])
    assert network.weights_source.endswith("vgg.pth")


def test_auto_takes_the_file_of_the_hub_cache_silently(hub):
    torch.save(torchvision_state(), hub / "checkpoints" / "vgg16-397923af.pth")
    network = FeatureNetwork(PerceptualConfig(layers=LAYERS))
    assert network.weights_source.endswith("vgg16-397923af.pth")


def test_auto_without_file_warns_once_and_is_random(hub, network):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fallback = FeatureNetwork(PerceptualConfig(layers=LAYERS))
    assert len(caught) == 1
    assert "no VGG-16 weights at vgg16-397923af.pth" in str(caught[0].message)
    assert fallback.weights_source == "random"
    assert fallback.convolutions[0].weight.equal(network.convolutions[0].weight)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"weights: got .*none.pth; expected 'auto', 'random' or a file"):
        FeatureNetwork(PerceptualConfig(weights=str(tmp_path / "none.pth")))


@pytest.mark.parametrize("content", ["keys", "shapes", "list", "noise", "pickle"])
def test_wrong_files_are_errors(tmp_path, content):
    path = tmp_path / "vgg.pth"
    state = torchvision_state()
    if content == "keys":
        torch.save({key.replace("features", "layers"): value for key, value in state.items()}, path)
    elif content == "shapes":
        torch.save(state | {"features.0.weight": torch.zeros(32, 3, 3, 3)}, path)
    elif content == "list":
        torch.save([1, 2, 3], path)
    elif content == "pickle":
        torch.save({"features.0.weight": pytest.raises}, path)
    else:
        path.write_bytes(b"not a state file")
    with pytest.raises(CheckpointError, match="expected torchvision's VGG-16 state"):
        FeatureNetwork(PerceptualConfig(layers=LAYERS, weights=str(path)))


@pytest.mark.parametrize("layers", [("conv1_1", "conv9_1"), ()])
def test_unknown_or_no_layers_are_errors(layers):
    with pytest.raises(ConfigError, match=r"perceptual.layers: got .*; expected some of \['conv1_1'"):
        FeatureNetwork(PerceptualConfig(layers=layers, weights="random"))
