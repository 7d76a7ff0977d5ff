"""Convolution blocks shared by the encoder and the decoders.

Padding is symmetric. TensorFlow's ``SAME``, which the released code uses, is not where the stride is 2: it pads 0
before and 1 after (3 x 3), 2 before and 3 after (7 x 7), so that each halving and each doubling puts its features one
pixel of the finer grid further right and down than ours, which lie as far on the other side of the cells' centres.
Training from scratch does not notice: sizes and parameter counts are equal, all cells shift alike, the weights are
learnt on the grid they see, and what the maps mean is fixed by the losses. Only loading the released weights would need
their padding.
"""

from torch import Tensor, nn
from torch.nn import functional as F

BN_MOMENTUM = 0.1  # the paper's code: decay 0.9
INIT_STD = 0.02


def conv_bn_elu(in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Encoder block: convolution without bias, batch norm, ELU; size is divided by ``stride``, rounded up."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, momentum=BN_MOMENTUM), nn.ELU(inplace=True))


class _Deconv(nn.ConvTranspose2d):
    """With stride 1 it is the convolution with the mirrored kernel, which oneDNN does faster in bfloat16."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.stride != (1, 1):
            return super().forward(input, output_size)
        return F.conv2d(input, self.weight.flip(2, 3).transpose(0, 1), self.bias, padding=1)


def deconv(in_channels: int, out_channels: int, stride: int = 1) -> nn.ConvTranspose2d:
    """3 x 3 transposed convolution with bias; ``stride`` 2 doubles the size exactly."""
    return _Deconv(in_channels, out_channels, stride)


def deconv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Decoder block."""
    norm = nn.BatchNorm2d(out_channels, momentum=BN_MOMENTUM)
    return nn.Sequential(deconv(in_channels, out_channels, stride), norm, nn.ReLU(inplace=True))


def initialise(module: nn.Module) -> None:
    """The paper's initialisation: normal weights of deviation 0.02 (convolutions truncated), zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
        elif isinstance(layer, (nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=INIT_STD)
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
