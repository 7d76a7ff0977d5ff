"""Convolution blocks shared by the encoder and the decoders."""

from torch import nn

BN_MOMENTUM = 0.1  # the paper's code: decay 0.9
INIT_STD = 0.02


def conv_bn_elu(in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Encoder block: convolution without bias, batch norm, ELU; size is divided by ``stride``, rounded up."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, momentum=BN_MOMENTUM), nn.ELU(inplace=True))


def deconv(in_channels: int, out_channels: int, stride: int = 1) -> nn.ConvTranspose2d:
    """3 x 3 transposed convolution with bias; ``stride`` 2 doubles the size exactly."""
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)


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
