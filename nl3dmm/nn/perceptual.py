"""Frozen feature networks: pixels in, features out."""

import importlib.util
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.errors import BackendError, CheckpointError, ConfigError

# VGG-16 (Simonyan and Zisserman 2015): convolutions per block and their channels.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# The layers that each distance was made for.
LAYERS = {
    "vgg16": ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"),
    "lpips": ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"),
}
_TORCHVISION_FILE = "vgg16-397923af.pth"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PerceptualConfig:
    """Which features of VGG-16, and from which weights.

    ``network``: ``vgg16`` takes convolutions before their ReLU, as the paper's code does, and weighs them relative to
    the target's; ``lpips`` is the learned metric of Zhang et al. (CVPR18), calibrated by the weights of the lpips
    package. Both want the same ``weights``: ``auto`` takes torchvision's ImageNet file from the local torch hub cache
    and falls back to random features with a warning; ``random`` asks for those without the warning; anything else is
    the path of a file with torchvision's VGG-16 state (``features.N.weight``). Nothing is ever downloaded.
    """

    network: str = "vgg16"  # vgg16 | lpips
    layers: tuple[str, ...] = ()  # none: the network's own five
    layer_weights: tuple[float, ...] = ()  # one per layer; none: 1 each
    weights: str = "auto"
    size: int = 224  # images are resized to this many px

    def __post_init__(self) -> None:
        if self.network not in LAYERS:
            raise ConfigError(f"perceptual.network: got {self.network!r}; expected one of {[*LAYERS]}. Choose one.")
        check_range("perceptual.size", self.size, 32, 4096)
        known = LAYERS["lpips"] if self.network == "lpips" else layer_names()
        unknown = sorted(set(self.layers) - set(known))
        if unknown or len(set(self.layers)) < len(self.layers):
            raise ConfigError(
                f"perceptual.layers: got {list(self.layers)}; expected some of {list(known)} for network="
                f"{self.network}, each once. {f'Remove {unknown}' if unknown else 'Name each once'}."
            )
        if self.layer_weights and len(self.layer_weights) != len(self.chosen_layers):
            raise ConfigError(
                f"perceptual.layer_weights: got {len(self.layer_weights)}; expected one for each of "
                f"{list(self.chosen_layers)}. Give as many, or none for equal ones."
            )
        for weight in self.layer_weights:
            check_range("perceptual.layer_weights", weight, 0, 1e9)

    @property
    def chosen_layers(self) -> tuple[str, ...]:
        """``layers``, or the network's own."""
        return self.layers or LAYERS[self.network]

    def weight_of(self) -> dict[str, float]:
        """Weight of each chosen layer."""
        return dict(zip(self.chosen_layers, self.layer_weights or [1.0] * len(self.chosen_layers), strict=True))


def layer_names() -> tuple[str, ...]:
    """Names of all convolutions, first to last."""
    return tuple(f"conv{block}_{i}" for block, (count, _) in enumerate(_BLOCKS, 1) for i in range(1, count + 1))


class FeatureNetwork(nn.Module):
    """VGG-16 up to the last layer asked for, frozen.

    Random features are a real, if weaker, perceptual distance: He-initialised convolutions of a fixed seed.
    """

    mean: Tensor
    std: Tensor
    relative: bool  # whether features have no scale of their own: layers are to be weighed relative to the target's
    layer_weights: tuple[float, ...]  # in the order of the features

    def __init__(self, config: PerceptualConfig):
        super().__init__()
        self.size = config.size
        self.relative = config.network == "vgg16"
        weights = config.weight_of()
        last = max(layer_names().index(name) for name in weights)
        convolutions: dict[str, nn.Conv2d] = {}
        channels = 3
        for name in layer_names()[: last + 1]:
            out_channels = _BLOCKS[int(name[4]) - 1][1]
            convolutions[name] = nn.Conv2d(channels, out_channels, 3, padding=1)
            channels = out_channels
        self.names = tuple(convolutions)
        self.wanted = frozenset(weights)
        self.layer_weights = tuple(weights[name] for name in self.names if name in weights)
        self.convolutions = nn.ModuleList(convolutions.values())
        self.calibration = nn.ParameterDict({} if self.relative else _lpips_calibration(weights))
        self.weights_source = self._load(config.weights)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def _load(self, weights: str) -> str:
        path = Path(weights)
        if weights == "auto":
            path = Path(torch.hub.get_dir()) / "checkpoints" / _TORCHVISION_FILE
            if not path.exists():
                warnings.warn(
                    f"perceptual loss: no VGG-16 weights at {path.name} in the torch hub cache; using random features. "
                    "Set perceptual.weights to a file of torchvision's VGG-16 weights for ImageNet features.",
                    stacklevel=4,
                )
        if weights == "random" or (weights == "auto" and not path.exists()):
            generator = torch.Generator().manual_seed(0)
            for name, parameter in self.convolutions.named_parameters():
                if name.endswith("weight"):
                    nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
                else:
                    nn.init.zeros_(parameter)
            return "random"
        self._load_file(path)
        return os.fspath(path)

    def _load_file(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"perceptual.weights: got {path}; expected 'auto', 'random' or a file. Check the path."
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for convolution, index in zip(self.convolutions, _torchvision_indices(), strict=False):
                own = {name: state[f"features.{index}.{name}"] for name in ("weight", "bias")}
                convolution.load_state_dict(own)
        except Exception as error:
            raise CheckpointError(
                f"perceptual.weights: got {path} ({type(error).__name__}: {error}); expected torchvision's VGG-16 "
                "state with keys like features.0.weight. Download it again or use 'random'."
            ) from error

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Features of RGB images in [0, 1], one tensor per layer asked for, first to last.

        ``feature_distance`` of two such lists, with ``layer_weights`` and ``relative``, is the perceptual distance.
        """
        if image.shape[-1] != self.size or image.shape[-2] != self.size:
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        value = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features, block = [], "1"
        for position, (name, convolution) in enumerate(zip(self.names, self.convolutions, strict=True)):
            if position:
                value = F.relu(value)
            if name[4] != block:
                value, block = F.max_pool2d(value, 2), name[4]
            value = convolution(value)
            if name in self.wanted:
                feature = value.float() if value.dtype == torch.bfloat16 else value  # under autocast
                features.append(feature if self.relative else self._calibrated(feature, name))
        return features

    def _calibrated(self, value: Tensor, name: str) -> Tensor:
        """Unit vectors after the ReLU, scaled so that the mean squared difference of two is LPIPS' layer distance."""
        return F.normalize(F.relu(value), dim=1, eps=1e-10) * self.calibration[name]


def _lpips_calibration(layers: Iterable[str]) -> dict[str, nn.Parameter]:
    """Root of LPIPS' channel weights, which ship with its package, for means instead of sums over channels."""
    package = importlib.util.find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise BackendError(
            "perceptual.network: got 'lpips', whose package is not installed; expected it for the layers' weights. "
            "Run: pip install lpips, or choose vgg16."
        )
    path = Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / "vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name: state[f"lin{LAYERS['lpips'].index(name)}.model.1.weight"] for name in layers}
    return {name: nn.Parameter((weight * weight.numel()).sqrt()) for name, weight in weights.items()}


def _torchvision_indices() -> list[int]:
    """Positions of the convolutions in torchvision's ``features``: conv and ReLU alternate, a pool ends each block."""
    indices, position = [], 0
    for count, _ in _BLOCKS:
        for _ in range(count):
            indices.append(position)
            position += 2
        position += 1
    return indices
