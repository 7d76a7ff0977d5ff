"""UV decoder: sizes of the paper, final = proxy + residual, local pathways stay in their boxes."""

import pytest
import torch
from torch import nn

from nl3dmm.errors import ConfigError
from nl3dmm.nn.encoder import count_parameters
from nl3dmm.nn.uv_decoder import DecoderConfig, UVDecoder, _FadingRim

SMALL = DecoderConfig(width=4, up_samplings=3)
BOXES = {"left_eye": (0, 8, 8, 8), "mouth": (16, 16, 8, 16)}  # row, column, height, width


def small_decoder(config: DecoderConfig = SMALL) -> UVDecoder:
    return UVDecoder(config, 6, (32, 48), BOXES)


def randomise_residual(decoder: UVDecoder) -> None:
    nn.init.normal_(decoder.residual_end[-1].weight, std=0.1)


def test_paper_size_has_the_papers_parameters():
    """12.68 million with the nose's pathway, at 192 x 224."""
    from nl3dmm.assets.embedded import embedded_template

    template = embedded_template((192, 224))
    decoder = UVDecoder(DecoderConfig(), 320, template.uv_size, template.boxes)
    assert count_parameters(decoder) == pytest.approx(12.68e6, rel=0.05)


def test_shapes_and_float32_under_autocast():
    decoder = small_decoder().eval()
    with torch.autocast("cpu", torch.bfloat16):
        maps = decoder(torch.randn(2, 6))
    assert [(value.shape, value.dtype) for value in maps] == [((2, 3, 32, 48), torch.float32)] * 2
    assert UVDecoder(SMALL, 6, (32, 48), BOXES, channels=1)(torch.randn(2, 6))[0].shape == (2, 1, 32, 48)


def test_a_new_decoders_final_equals_its_proxy():
    proxy, final = small_decoder()(torch.randn(3, 6))
    assert final.equal(proxy)
    assert proxy.std() > 0


def test_final_is_proxy_plus_residual():
    decoder = small_decoder()
    randomise_residual(decoder)
    residuals = []
    decoder.residual_end.register_forward_hook(lambda module, inputs, output: residuals.append(output))
    proxy, final = decoder(torch.randn(3, 6))
    assert residuals[0].abs().max() > 0
    assert final.equal(proxy + residuals[0])


def test_local_pathways_act_in_their_boxes_only():
    decoder = small_decoder()
    features = decoder._local_features(torch.randn(3, 6))
    assert features.shape == (3, 4, 32, 48)
    outside = torch.ones(32, 48, dtype=torch.bool)
    for row, column, height, width in BOXES.values():
        box = features[..., row : row + height, column : column + width]
        assert box.amax() > 0
        outside[row : row + height, column : column + width] = False
    assert features[..., outside].eq(0).all()
    assert (features >= 0).all()


def test_local_features_fade_towards_the_rim_of_their_box():
    """No seam: next to the rim they are small, in the middle they are what the pathway gives."""
    rim = _FadingRim(16, 24)
    faded = rim(torch.ones(1, 1, 16, 24))[0, 0]
    assert faded[2:-2, 2:-2].eq(1).all()
    torch.testing.assert_close(faded[0, 2:-2], torch.full((20,), 0.5 - 0.125**0.5), atol=1e-6, rtol=0)
    assert faded.equal(faded.flip(0))
    assert faded.equal(faded.flip(1))
    assert rim(torch.ones(1, 1, 16, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not rim.state_dict()


def test_without_local_pathways_there_is_one_global_decoder():
    alone = small_decoder(DecoderConfig(width=4, up_samplings=3, local_pathways=False))
    assert alone(torch.randn(2, 6))[0].shape == (2, 3, 32, 48)
    assert len(alone.local_pathways) == 0
    assert count_parameters(alone) < count_parameters(small_decoder())


def test_without_a_proxy_there_is_one_end():
    decoder = small_decoder(DecoderConfig(width=4, up_samplings=3, proxy=False))
    assert decoder.residual_end is None
    assert not [name for name in decoder.state_dict() if name.startswith("residual_end")]
    proxy, final = decoder(torch.randn(3, 6))
    assert final is proxy
    difference = count_parameters(small_decoder()) - count_parameters(decoder)
    assert difference == count_parameters(small_decoder().residual_end)


def test_a_single_end_learns_what_the_two_ends_together_would():
    """The same weights give the same proxies, and both losses reach the one end."""
    two, one = small_decoder(), small_decoder(DecoderConfig(width=4, up_samplings=3, proxy=False))
    missing = one.load_state_dict(two.state_dict(), strict=False)
    assert not missing.missing_keys
    assert all(name.startswith("residual_end") for name in missing.unexpected_keys)
    latent = torch.randn(3, 6)
    assert one(latent)[1].equal(two(latent)[0])


def test_first_layer_sets_the_channels_of_the_first_up_sampling():
    decoder = small_decoder(DecoderConfig(width=4, up_samplings=3, first_layer=5))
    assert decoder.global_pathway[1][0][0].weight.shape == (40, 20, 3, 3)
    assert decoder(torch.randn(2, 6))[0].shape == (2, 3, 32, 48)
    once = DecoderConfig(width=4, up_samplings=1)
    assert UVDecoder(once, 6, (32, 48), {})(torch.randn(2, 6))[0].shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pca"}, r"model.decoder.kind: got 'pca'; expected one of \('nonlinear', 'linear'\)"),
        ({"up_samplings": 6}, "model.decoder.up_samplings: got 6; expected 1 to 5"),
        ({"first_layer": 0}, "model.decoder.first_layer: got 0; expected 1 to 1024"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**change)


def test_every_parameter_gets_a_gradient():
    decoder = small_decoder()
    randomise_residual(decoder)
    proxy, final = decoder(torch.randn(4, 6))
    (proxy * torch.randn_like(proxy) + final * torch.randn_like(final)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("size", [(30, 48), (32, 44)])
def test_sizes_that_cannot_be_doubled_are_refused(size):
    with pytest.raises(ConfigError, match=r"uv_size: got .*; expected multiples of 8 for decoder.up_samplings=3"):
        UVDecoder(SMALL, 6, size, {})
