"""Frozen feature networks: pixels in, features out."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.errors import CheckpointError, ConfigError

# VGG-16 (Simonyan and Zisserman 2015): convolutions per block and their channels.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
_TORCHVISION_FILE = "vgg16-397923af.pth"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PerceptualConfig:
    """Which VGG-16 features, from which weights.

    ``weights``: ``auto`` takes torchvision's ImageNet file from the local torch hub cache and falls back to random
    features with a warning; ``random`` asks for those without the warning; anything else is the path of a file with
    torchvision's VGG-16 state (``features.N.weight``).
    """

    layers: tuple[str, ...] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
    weights: str = "auto"
    size: int = 224  # images are resized to this many px

    def __post_init__(self) -> None:
        check_range("perceptual.size", self.size, 32, 4096)
        unknown = sorted(set(self.layers) - set(layer_names()))
        if unknown or not self.layers:
            raise ConfigError(
                f"perceptual.layers: got {list(self.layers)}; expected some of {list(layer_names())}. "
                f"{f'Remove {unknown}' if unknown else 'Name at least one'}."
            )


def layer_names() -> tuple[str, ...]:
    """Names of all convolutions, first to last."""
    return tuple(f"conv{block}_{i}" for block, (count, _) in enumerate(_BLOCKS, 1) for i in range(1, count + 1))


class FeatureNetwork(nn.Module):
    """VGG-16 up to the last layer asked for; returns features before the ReLU, as the paper's code does.

    Random features are a real, if weaker, perceptual distance: He-initialised convolutions of a fixed seed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PerceptualConfig):
        super().__init__()
        self.size = config.size
        self.wanted = frozenset(config.layers)
        last = max(layer_names().index(name) for name in config.layers)
        convolutions: dict[str, nn.Conv2d] = {}
        channels = 3
        for name in layer_names()[: last + 1]:
            out_channels = _BLOCKS[int(name[4]) - 1][1]
            convolutions[name] = nn.Conv2d(channels, out_channels, 3, padding=1)
            channels = out_channels
        self.names = tuple(convolutions)
        self.convolutions = nn.ModuleList(convolutions.values())
        self.weights_source = self._load(config.weights)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

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
        """Features of RGB images in [0, 1], one tensor per layer asked for."""
        if image.shape[-1] != self.size or image.shape[-2] != self.size:
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        value = (image - self.mean) / self.std
        features, block = [], "1"
        for position, (name, convolution) in enumerate(zip(self.names, self.convolutions, strict=True)):
            if position:
                value = F.relu(value)
            if name[4] != block:
                value, block = F.max_pool2d(value, 2), name[4]
            value = convolution(value)
            if name in self.wanted:
                features.append(value)
        return features


def _torchvision_indices() -> list[int]:
    """Positions of the convolutions in torchvision's ``features``: conv and ReLU alternate, a pool ends each block."""
    indices, position = [], 0
    for count, _ in _BLOCKS:
        for _ in range(count):
            indices.append(position)
            position += 2
        position += 1
    return indices
