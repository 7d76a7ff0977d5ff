"""Faster ways to compute what the plain operations compute."""

import pytest
import torch
from torch.nn import functional as F

from nl3dmm.nn.blocks import deconv
from nl3dmm.nn.uv_decoder import UVDecoder, _PlacedMaximum

BOXES = [(1, 2, 4, 5), (3, 4, 4, 4), (0, 0, 2, 3)]  # the first two overlap
UV_SIZE = (8, 9)


def features() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, *box[2:], dtype=torch.float64, requires_grad=True) for box in BOXES]


def padded_maximum(*parts: torch.Tensor) -> torch.Tensor:
    fused = parts[0].new_zeros(2, 3, *UV_SIZE)
    for (row, column, height, width), part in zip(BOXES, parts, strict=True):
        fused = torch.maximum(fused, F.pad(part, (column, UV_SIZE[1] - column - width, row, UV_SIZE[0] - row - height)))
    return fused


def test_placed_maximum_is_that_of_padded_maps():
    parts = features()
    fused, expected = _PlacedMaximum.apply(UV_SIZE, BOXES, *parts), padded_maximum(*parts)
    assert torch.equal(fused, expected)
    towards = torch.randn_like(expected)
    for found, wanted in zip(
        torch.autograd.grad(fused, parts, towards), torch.autograd.grad(expected, parts, towards), strict=True
    ):
        assert torch.equal(found, wanted)
    assert torch.autograd.gradcheck(lambda *each: _PlacedMaximum.apply(UV_SIZE, BOXES, *each), parts)


@pytest.mark.parametrize("stride", [1, 2])
def test_deconvolution_is_the_transposed_convolution(stride):
    torch.manual_seed(0)
    layer = deconv(3, 5, stride).double()
    image = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = F.conv_transpose2d(image, layer.weight, layer.bias, stride, 1, stride - 1)
    torch.testing.assert_close(layer(image), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_placed_maximum_in_bfloat16_of_either_layout(layout):
    parts = [part.detach().bfloat16().contiguous(memory_format=layout).requires_grad_() for part in features()]
    fused, expected = _PlacedMaximum.apply(UV_SIZE, BOXES, *parts), padded_maximum(*parts)
    assert fused.dtype == torch.bfloat16
    assert torch.equal(fused, expected)
    for found, wanted in zip(*(torch.autograd.grad(map_.sum(), parts) for map_ in (fused, expected)), strict=True):
        assert torch.equal(found, wanted)


def test_a_decoder_with_local_pathways_can_be_exported(small_template, small_model_config):
    decoder = UVDecoder(small_model_config.decoder, 8, small_template.uv_size, small_template.boxes).eval()
    latent = torch.randn(2, 8)
    exported = torch.export.export(decoder, (latent,)).module()
    for found, wanted in zip(exported(latent), decoder(latent), strict=True):
        torch.testing.assert_close(found, wanted)
