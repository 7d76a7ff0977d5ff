"""Latent -> UV maps: global pathway, four local pathways, proxy and final ends (paper section 3.4)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError
from nl3dmm.nn.blocks import deconv, deconv_bn_relu, initialise
from nl3dmm.nn.principal import PrincipalUVDecoder

KINDS = ("nonlinear", "linear")
# Output channels of the paper's pathways in units of its width 16, from the largest step to the full-size map. Before
# the rows of the global pathway comes (first_layer, 8).
_GLOBAL = ((8, 4, 6), (6, 3, 4), (4, 2, 2), (2, 1))
_LOCAL = ((4, 6), (6, 3, 4), (4, 2, 2), (2, 1))
_LOCAL_STEPS = 3
_RIM = 8  # of a box's shorter side, one part fades at each side


@dataclass(frozen=True)
class DecoderConfig:
    """Paper: width 16, 5 up-samplings from 6 x 7 to 192 x 224, local pathways for eyes, nose and mouth.

    The single decoder of CVPR18 has width 32, first layer 5, neither local pathways nor a proxy; it uses ELU, and the
    end's hidden layer is not in it.
    """

    kind: str = "nonlinear"  # linear: a fixed basis of principal components; all other values are unused
    width: int = 16
    first_layer: int = 10  # output channels of the first up-sampling in widths; released albedo decoders have 5
    up_samplings: int = 5
    local_pathways: bool = True
    proxy: bool = True  # False: one end, final = proxy
    linear_base: bool = False  # True: proxies start as a linear model's maps and keep them as summand; not in the paper

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"model.decoder.kind: got {self.kind!r}; expected one of {KINDS}. Choose one.")
        check_range("model.decoder.first_layer", self.first_layer, 1, 1024)
        check_range("model.decoder.width", self.width, 1, 1024)
        check_range("model.decoder.up_samplings", self.up_samplings, 1, len(_GLOBAL) + 1)


class _Seed(nn.Sequential):
    """Latent -> small feature map: linear, batch norm, ReLU."""

    def __init__(self, latent: int, channels: int, height: int, width: int):
        features = channels * height * width
        super().__init__(
            nn.Linear(latent, features), nn.BatchNorm1d(features), nn.ReLU(), nn.Unflatten(1, (channels, height, width))
        )


def _pathway(in_channels: int, rows: tuple[tuple[int, ...], ...], width: int, first_stride: int) -> nn.Sequential:
    layers, channels = [], in_channels
    for row_id, row in enumerate(rows):
        for position, factor in enumerate(row):
            stride = (first_stride if row_id == 0 else 2) if position == 0 else 1
            layers.append(deconv_bn_relu(channels, factor * width, stride))
            channels = factor * width
    return nn.Sequential(*layers)


class _GlobalPathway(nn.Sequential):
    def __init__(self, latent: int, uv_size: tuple[int, int], config: DecoderConfig):
        factor = 2**config.up_samplings
        if uv_size[0] % factor or uv_size[1] % factor:
            raise ConfigError(
                f"template.uv_size: got {uv_size}; expected multiples of {factor} for "
                f"decoder.up_samplings={config.up_samplings}. Change one of them."
            )
        seed = _Seed(latent, 10 * config.width, uv_size[0] // factor, uv_size[1] // factor)
        rows = ((config.first_layer, 8), *_GLOBAL)[: config.up_samplings - 1] + _GLOBAL[-1:]
        super().__init__(seed, _pathway(10 * config.width, rows, config.width, first_stride=2))


class _LocalPathway(nn.Sequential):
    """One facial part; receives the whole latent (paper figure 3)."""

    def __init__(self, latent: int, height: int, width: int, channels: int):
        factor = 2**_LOCAL_STEPS
        seed = _Seed(latent, 8 * channels, height // factor, width // factor)
        super().__init__(seed, _pathway(8 * channels, _LOCAL, channels, first_stride=1), _FadingRim(height, width))


class _FadingRim(nn.Module):
    """Lets features go to 0 at the sides of their box; the paper's end abruptly there, and S shows it as a seam."""

    fade: Tensor

    def __init__(self, height: int, width: int):
        super().__init__()
        depth = max(1, min(height, width) // _RIM)
        rows, columns = (_ramp(length, depth) for length in (height, width))
        self.register_buffer("fade", rows[:, None] * columns, persistent=False)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        return features * self.fade.to(features.dtype)


def _ramp(length: int, depth: int) -> Float[Tensor, " {length}"]:
    """1 in the middle, down to 0 just beyond both ends, as half a cosine over ``depth`` texels."""
    position = torch.arange(length)
    inwards = (torch.minimum(position, length - 1 - position) + 0.5) / depth
    return (1 - (math.pi * inwards.clamp_max(1)).cos()) / 2


class _PlacedMaximum(torch.autograd.Function):
    """Element-wise maximum of 0 and of features at their boxes of the map.

    Works inside the boxes alone: 15 times faster than ``torch.maximum`` of zero-padded maps and its backward. What
    equals the maximum gets the whole gradient; at 0 it is the ReLU before that stops it.
    """

    @staticmethod
    def forward(
        ctx: Any, uv_size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]], *features: Tensor
    ) -> Tensor:
        first, areas = features[0], [_area(box) for box in boxes]
        placed = torch.empty(
            (*first.shape[:2], *uv_size), dtype=first.dtype, device=first.device, memory_format=torch.channels_last
        ).zero_()
        for area, feature in zip(areas, features, strict=True):
            placed[area] = torch.maximum(placed[area], feature)
        ctx.areas = areas
        ctx.save_for_backward(placed, *features)
        return placed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        placed, *features = ctx.saved_tensors
        pairs = zip(ctx.areas, features, strict=True)
        return None, None, *(gradient[area] * (feature == placed[area]) for area, feature in pairs)


def _area(box: tuple[int, int, int, int]) -> tuple[slice, slice, slice, slice]:
    row, column, height, width = box
    return slice(None), slice(None), slice(row, row + height), slice(column, column + width)


class UVDecoder(nn.Module):
    """Dual-pathway decoder with two ends; both see the fused features.

    Local features are zero-padded to the whole map and fused by an element-wise maximum (they are >= 0, so the
    padding never wins), then concatenated with the global ones. Without boxes it is the single global decoder of
    CVPR18. The ends give *raw* maps: raw final = raw proxy + raw residual, and the residual end starts at zero, so
    that a new model's final maps equal its proxies. Without a proxy there is no residual end and both are one tensor.
    With a ``base`` raw proxy = base + what the convolutions give, which starts at zero too: the model begins as good as
    the linear one, whose latents it shares, and learns what that cannot express.
    """

    def __init__(
        self,
        config: DecoderConfig,
        latent: int,
        uv_size: tuple[int, int],
        boxes: Mapping[str, tuple[int, int, int, int]],
        channels: int = 3,
        base: PrincipalUVDecoder | None = None,
    ):
        super().__init__()
        self.uv_size = uv_size
        self.base = base
        self.boxes = dict(boxes) if config.local_pathways else {}
        self.global_pathway = _GlobalPathway(latent, uv_size, config)
        self.local_pathways = nn.ModuleDict(
            {name: _LocalPathway(latent, box[2], box[3], config.width) for name, box in self.boxes.items()}
        )
        fused = config.width * (2 if self.boxes else 1)
        ends = [deconv(2 * config.width, channels) for _ in range(1 + config.proxy)]
        self.proxy_end, *others = (nn.Sequential(deconv_bn_relu(fused, 2 * config.width), last) for last in ends)
        self.residual_end = others[0] if others else None
        initialise(self)
        for last in ends if base is not None else ends[1:]:
            nn.init.zeros_(last.weight)

    def _local_features(self, latent: Tensor) -> Tensor:
        boxes = [self.boxes[name] for name in self.local_pathways]
        return _PlacedMaximum.apply(self.uv_size, boxes, *(pathway(latent) for pathway in self.local_pathways.values()))

    def forward(
        self, latent: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch channels uv_height uv_width"], Float[Tensor, "batch channels uv_height uv_width"]]:
        """Raw proxy and raw final map, unbounded."""
        features = self.global_pathway(latent)
        if self.boxes:
            features = torch.cat([self._local_features(latent), features], 1)
        proxy = self.proxy_end(features).float().contiguous()
        if self.base is not None:
            proxy = self.base(latent)[0] + proxy
        if self.residual_end is None:
            return proxy, proxy
        return proxy, (proxy + self.residual_end(features).float()).contiguous()


class LinearUVDecoder(nn.Module):
    """A linear 3DMM in UV space (paper equations 1 and 2, learned basis): coarse maps, smoothly enlarged.

    It is quick to learn, so it shows the encoder early what its latents are for.
    """

    _COARSER = 4

    def __init__(self, latent: int, uv_size: tuple[int, int], channels: int = 3):
        super().__init__()
        self.uv_size = uv_size
        self.coarse = (channels, -(-uv_size[0] // self._COARSER), -(-uv_size[1] // self._COARSER))
        self.basis = nn.Linear(latent, math.prod(self.coarse))
        initialise(self)

    def forward(
        self, latent: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch channels uv_height uv_width"], Float[Tensor, "batch channels uv_height uv_width"]]:
        """Raw map, as proxy and as final."""
        coarse = self.basis(latent).float().unflatten(1, self.coarse)
        raw = F.interpolate(coarse, self.uv_size, mode="bilinear", align_corners=False)
        return raw, raw
