"""The fitting CNN: sizes of the paper, shapes, start values."""

import pytest
import torch
from torch import nn

from nl3dmm.nn.encoder import Encoder, EncoderConfig, count_parameters

SMALL = EncoderConfig(width=4, stages=4)


def test_paper_size_has_the_papers_parameters():
    """3.70 million with latents of 320."""
    assert count_parameters(Encoder(EncoderConfig(), 224, 320, 320)) == pytest.approx(3.70e6, rel=0.05)


def test_paper_trunk_has_13_convolutions_and_7_by_7_features():
    encoder = Encoder(EncoderConfig(width=2), 224, 4, 4).eval()
    assert sum(isinstance(layer, nn.Conv2d) for layer in encoder.trunk.modules()) == 13
    assert encoder.trunk(torch.zeros(1, 3, 224, 224)).shape[2:] == (7, 7)


@pytest.mark.parametrize("image_size", [48, 56, 112])
def test_shapes(image_size):
    output = Encoder(SMALL, image_size, 8, 5).eval()(torch.rand(2, 3, image_size, image_size))
    assert output.camera_logits.shape == (2, 9)
    assert output.sh_logits.shape == (2, 3, 9)
    assert output.shape_latent.shape == (2, 8)
    assert output.albedo_latent.shape == (2, 5)


def test_camera_head_has_the_size_asked_for():
    for pooled in (True, False):
        config = EncoderConfig(width=4, stages=4, pooled_heads=pooled)
        encoder = Encoder(config, 48, 8, 8, camera_logits=8).eval()
        assert encoder(torch.rand(2, 3, 48, 48)).camera_logits.shape == (2, 8)


def test_first_camera_and_light_are_close_to_the_average():
    output = Encoder(SMALL, 48, 8, 8)(torch.rand(8, 3, 48, 48))
    assert output.camera_logits.abs().max() < 0.5
    assert output.sh_logits.abs().max() < 0.5


def test_heads_are_float32_under_autocast():
    encoder = Encoder(SMALL, 48, 8, 8).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(torch.rand(2, 3, 48, 48))
    assert {value.dtype for value in vars(output).values()} == {torch.float32}


def test_evaluation_is_independent_of_the_batch():
    encoder = Encoder(SMALL, 48, 8, 8)
    image = torch.rand(4, 3, 48, 48)
    encoder(image)
    encoder.eval()
    torch.testing.assert_close(encoder(image[:1]).shape_latent, encoder(image).shape_latent[:1], atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient():
    encoder = Encoder(SMALL, 48, 8, 8)
    output = encoder(torch.rand(4, 3, 48, 48))
    sum((value * torch.randn_like(value)).sum() for value in vars(output).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_count_parameters_counts_what_is_trained():
    layer = nn.Linear(3, 4)
    assert count_parameters(layer) == 16
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 12
