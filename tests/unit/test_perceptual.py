"""The frozen feature network: where its weights come from, what it returns."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from nl3dmm.errors import BackendError, CheckpointError, ConfigError
from nl3dmm.losses.pixels import feature_distance
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


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        ("vgg16", ("conv1_1", "conv9_1"), r"expected some of \['conv1_1', .* each once. Remove \['conv9_1'\]"),
        ("vgg16", ("conv1_1", "conv1_1"), ".*, each once. Name each once"),
        ("lpips", ("conv1_1", "conv2_2"), r"expected some of \['conv1_2', 'conv2_2', .*Remove \['conv1_1'\]"),
    ],
)
def test_unknown_and_repeated_layers_are_errors(network, layers, message):
    with pytest.raises(ConfigError, match=rf"perceptual.layers: got .*; {message}"):
        PerceptualConfig(network=network, layers=layers, weights="random")


def test_no_layers_are_the_networks_own_five():
    assert PerceptualConfig().chosen_layers == ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
    assert PerceptualConfig(network="lpips").chosen_layers == ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")


def test_unknown_networks_are_errors():
    with pytest.raises(ConfigError, match=r"network: got 'alex'; expected one of \['vgg16', 'lpips'\]"):
        PerceptualConfig(network="alex")


def test_layer_weights_are_one_per_layer_in_the_order_of_the_features():
    swapped = PerceptualConfig(layers=("conv2_2", "conv1_1"), layer_weights=(3.0, 0.5), weights="random", size=32)
    assert FeatureNetwork(swapped).layer_weights == (0.5, 3.0)
    assert FeatureNetwork(RANDOM).layer_weights == (1.0, 1.0)
    with pytest.raises(ConfigError, match=r"layer_weights: got 1; expected one for each of \['conv1_1', 'conv2_2'\]"):
        PerceptualConfig(layers=LAYERS, layer_weights=(1.0,))
    with pytest.raises(ConfigError, match=r"perceptual.layer_weights: got -1.0; expected 0 to"):
        PerceptualConfig(layers=LAYERS, layer_weights=(1.0, -1.0))


def lpips_distance(network: FeatureNetwork, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return feature_distance(network(image), network(target), network.layer_weights, network.relative)


def lpips_reference(network: FeatureNetwork, image: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    """Per layer, of the package itself: its linear layers, its formulas, on this network's convolutions.

    Its own trunk comes from torchvision at construction, with 138 million numbers and deprecated arguments.
    """
    import lpips

    metric = object.__new__(lpips.LPIPS)
    torch.nn.Module.__init__(metric)
    metric.version, metric.lpips, metric.spatial, metric.L = "0.1", True, False, 5
    metric.scaling_layer = lpips.ScalingLayer()
    metric.lins = torch.nn.ModuleList(lpips.NetLinLayer(n, use_dropout=True) for n in (64, 128, 256, 512, 512))
    for position, layer in enumerate(metric.lins):
        setattr(metric, f"lin{position}", layer)
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
    metric.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=False)
    metric.net = Trunk(network)
    return metric.eval()(image, target, retPerLayer=True, normalize=True)[1]


class Trunk(torch.nn.Module):
    """The plain VGG-16 of the same convolutions: outputs after the ReLUs that LPIPS looks at."""

    def __init__(self, network: FeatureNetwork):
        super().__init__()
        self.convolutions, self.names, self.wanted = network.convolutions, network.names, network.wanted

    def forward(self, value: torch.Tensor) -> list[torch.Tensor]:
        outputs, block = [], "1"
        for name, convolution in zip(self.names, self.convolutions, strict=True):
            if name[4] != block:
                value, block = torch.nn.functional.max_pool2d(value, 2), name[4]
            value = convolution(value).relu()
            if name in self.wanted:
                outputs.append(value)
        return outputs


def test_lpips_is_that_of_its_package():
    network = FeatureNetwork(PerceptualConfig(network="lpips", weights="random", size=32))
    image, target = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    layers = lpips_reference(network, image, target)
    torch.testing.assert_close(lpips_distance(network, image, target), sum(layers)[:, 0, 0, 0], rtol=1e-4, atol=1e-6)
    weighted = PerceptualConfig(
        network="lpips", layers=("conv4_3", "conv2_2"), layer_weights=(0.5, 2.0), weights="random", size=32
    )
    expected = (2 * layers[1] + 0.5 * layers[3])[:, 0, 0, 0]
    torch.testing.assert_close(lpips_distance(FeatureNetwork(weighted), image, target), expected, rtol=1e-4, atol=1e-6)


def test_lpips_is_zero_for_equal_images_and_has_finite_gradients():
    network = FeatureNetwork(
        PerceptualConfig(network="lpips", layers=("conv1_2", "conv2_2"), weights="random", size=32)
    )
    for image in (torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)):
        image.requires_grad_()
        distance = lpips_distance(network, image, image.detach())
        assert distance.tolist() == [0]
        distance.sum().backward()
        assert image.grad.isfinite().all()
    moved = torch.rand(1, 3, 32, 32, requires_grad=True)
    lpips_distance(network, moved, torch.rand(1, 3, 32, 32)).sum().backward()
    assert moved.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_lpips_takes_the_same_weights(hub, tmp_path):
    config = PerceptualConfig(network="lpips", layers=("conv1_2", "conv2_2"), size=32)
    with pytest.warns(UserWarning, match="no VGG-16 weights at vgg16-397923af.pth"):
        assert FeatureNetwork(config).weights_source == "random"
    state = torchvision_state()
    torch.save(state, hub / "checkpoints" / "vgg16-397923af.pth")
    network = FeatureNetwork(config)
    assert network.weights_source.endswith("vgg16-397923af.pth")
    assert network.convolutions[3].weight.equal(state["features.7.weight"])


def test_lpips_without_its_package_is_an_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="network: got 'lpips', whose package is not installed"):
        FeatureNetwork(PerceptualConfig(network="lpips", weights="random"))


def test_lpips_imports_no_torchvision():
    code = (
        "import sys; from nl3dmm.nn.perceptual import FeatureNetwork as N, PerceptualConfig as C;"
        "N(C(network='lpips', layers=('conv1_2',), weights='random')); sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
