"""The fitting CNN: image -> camera, light, shape latent, albedo latent."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from nl3dmm.config import check_range
from nl3dmm.geometry.camera import CAMERA_LOGITS
from nl3dmm.nn.blocks import BN_MOMENTUM, conv_bn_elu, initialise

SH_LOGITS = 27
# Output channels of the paper's trunk in units of its width 32; each row starts with a stride of 2.
_TRUNK = ((1, 2), (2, 2, 4), (4, 3, 6), (6, 4, 8), (8, 5))


@dataclass(frozen=True)
class EncoderConfig:
    """Paper: width 32, stages 5 for 224 px (7 x 7 features). Fewer stages suit smaller images: 4 for 112 px.

    ``pooled_heads``: the paper's heads, which average over the image; otherwise features keep their place.
    """

    width: int = 32
    stages: int = 5
    pooled_heads: bool = True

    def __post_init__(self) -> None:
        check_range("model.encoder.width", self.width, 1, 1024)
        check_range("model.encoder.stages", self.stages, 1, len(_TRUNK))


@dataclass(frozen=True)
class EncoderOutput:
    """Raw heads; ``geometry.camera`` and the model turn them into a camera and a light."""

    camera_logits: Float[Tensor, "batch camera"]
    sh_logits: Float[Tensor, "batch 3 9"]
    shape_latent: Float[Tensor, "batch shape_latent"]
    albedo_latent: Float[Tensor, "batch albedo_latent"]


def _pooled_head(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution with bias, batch norm, no activation, global average pool: the pooled vector is the latent."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _SpatialHead(nn.Module):
    """Convolution with bias, batch norm, ELU, then a linear layer on all cells: features keep their place.

    The paper averages over cells first, which loses where things are: after 300 steps of the quick start the flat
    head's rotations were twice as good. The features are divided by the root of their number, otherwise their
    gradients drown those of all other heads.
    """

    def __init__(self, in_channels: int, hidden: int, out_features: int, cells: int):
        super().__init__()
        norm = nn.BatchNorm2d(hidden, momentum=BN_MOMENTUM)
        self.features = nn.Sequential(nn.Conv2d(in_channels, hidden, 3, padding=1), norm, nn.ELU(), nn.Flatten())
        self.linear = nn.Linear(hidden * cells, out_features)

    def forward(self, trunk: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch features"]:
        return self.linear(self.features(trunk) / self.linear.in_features**0.5)


class Encoder(nn.Module):
    """The paper's trunk (``spec`` table of 13 convolutions at 5 stages) with four heads."""

    def __init__(
        self,
        config: EncoderConfig,
        image_size: int,
        shape_latent: int,
        albedo_latent: int,
        camera_logits: int = CAMERA_LOGITS,
    ):
        super().__init__()
        rows = _TRUNK[: config.stages]
        layers, channels = [], 3
        for row in rows:
            for position, factor in enumerate(row):
                kernel = 7 if channels == 3 else 3
                layers.append(conv_bn_elu(channels, factor * config.width, 2 if position == 0 else 1, kernel))
                channels = factor * config.width
        self.trunk = nn.Sequential(*layers)
        if config.pooled_heads:
            hidden = 4 * config.width
            self.camera_head = nn.Sequential(*_pooled_head(channels, hidden), nn.Linear(hidden, camera_logits))
            self.light_head = nn.Sequential(*_pooled_head(channels, hidden), nn.Linear(hidden, SH_LOGITS))
            self.shape_head = _pooled_head(channels, shape_latent)
            self.albedo_head = _pooled_head(channels, albedo_latent)
        else:
            cells = (-(-image_size // 2**config.stages)) ** 2

            def head(features: int) -> _SpatialHead:
                return _SpatialHead(channels, 2 * config.width, features, cells)

            self.camera_head, self.light_head = head(camera_logits), head(SH_LOGITS)
            self.shape_head, self.albedo_head = head(shape_latent), head(albedo_latent)
        initialise(self)
        for module in (self.shape_head, self.albedo_head):
            if isinstance(module, _SpatialHead):
                nn.init.normal_(module.linear.weight, std=0.5)  # latents of about the pooled heads' size

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> EncoderOutput:
        """Args: image: RGB in [0, 1]; the network works in [-1, 1]."""
        features = self.trunk(2 * image - 1)
        return EncoderOutput(
            camera_logits=self.camera_head(features).float(),
            sh_logits=self.light_head(features).float().unflatten(1, (3, 9)),
            shape_latent=self.shape_head(features).float(),
            albedo_latent=self.albedo_head(features).float(),
        )


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
