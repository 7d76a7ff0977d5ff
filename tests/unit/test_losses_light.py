"""Light regularisers: known values, minima, what they leave free, gradients."""

import torch
from torch.autograd import gradcheck

from nl3dmm.geometry.lighting import white_light
from nl3dmm.losses.light import light_tint, over_exposure, white_shading, white_shading_of_batch

FULL = torch.ones(4, 6, dtype=torch.bool)


def tinted(*colour: float) -> torch.Tensor:
    """Ambient light of one colour, and a lamp that tints no mean."""
    light = white_light(1) * torch.tensor(colour).view(1, 3, 1)
    light[:, 0, 3] = 5.0
    return light


def test_white_shading_is_zero_for_grey_light_and_known_for_a_tint():
    shading = torch.rand(2, 9, 1).expand(-1, -1, 3).contiguous()
    torch.testing.assert_close(white_shading(shading), torch.zeros(2))
    tint = torch.tensor([[[1.3, 1.0, 0.7]]]).expand(2, 9, 3)
    torch.testing.assert_close(white_shading(tint), torch.full((2,), 0.06))


def test_white_shading_of_batch_asks_for_white_of_one_brightness_on_average():
    shading = torch.full((2, 9, 3), 0.99)
    torch.testing.assert_close(white_shading_of_batch(shading), torch.tensor(0.0))
    tint = torch.tensor([0.3, 0.0, -0.3])
    opposite = torch.stack([shading[0] + tint, shading[1] - tint])  # each tinted, white together
    torch.testing.assert_close(white_shading_of_batch(opposite), torch.tensor(0.0))
    assert (white_shading(opposite) > 0.05).all()
    torch.testing.assert_close(white_shading_of_batch(shading + tint), torch.tensor(0.06))
    torch.testing.assert_close(white_shading_of_batch(shading - 0.49), torch.tensor(0.49**2))  # white, but dim


def test_over_exposure_is_the_shading_beyond_1_where_the_texture_is():
    shading, texture = torch.ones(2, 3, 4, 6), torch.full((2, 3, 4, 6), 0.9)
    shading[0] = 1.5  # on a dark albedo: nothing is over-exposed
    shading[1, :, :, 3:], texture[1, :2, :, 3:] = 1.5, 1.2  # two of three channels of one half
    torch.testing.assert_close(over_exposure(shading, texture, FULL), torch.tensor([0.0, 0.5 * 0.5 * 2 / 3]))
    right = FULL.clone()
    right[:, :3] = False
    torch.testing.assert_close(over_exposure(shading, texture, right), torch.tensor([0.0, 0.5 * 2 / 3]))
    assert over_exposure(shading, texture, ~FULL).tolist() == [0, 0]


def test_over_exposure_lowers_the_shading_until_the_texture_fits():
    shading, albedo = torch.full((1, 3, 4, 6), 1.8, requires_grad=True), 0.8
    for _ in range(60):
        term = over_exposure(shading, albedo * shading, FULL)
        (gradient,) = torch.autograd.grad(term.sum(), shading)
        shading = (shading - gradient).detach().requires_grad_()
    assert term.tolist() == [0]
    assert (albedo * shading <= 1).all()
    assert (albedo * shading > 0.9).all()


def test_light_tint_is_zero_for_grey_light_of_any_brightness():
    lights = torch.cat([tinted(b, b, b) for b in (0.2, 0.8, 3.0)])
    torch.testing.assert_close(light_tint(lights), torch.zeros(3))


def test_light_tint_is_known_and_does_not_change_with_the_brightness():
    lights = torch.cat([tinted(1.3 * b, b, 0.7 * b) for b in (0.2, 1.0, 3.0)])
    torch.testing.assert_close(light_tint(lights), torch.full((3,), 0.06))
    lights.requires_grad_()
    light_tint(lights).sum().backward()
    assert lights.grad[:, :, 1:].eq(0).all()  # bands 1 and 2 are free
    dimming = (lights.grad[:, :, 0] * lights.detach()[:, :, 0]).sum(1)
    torch.testing.assert_close(dimming, torch.zeros(3), atol=1e-6, rtol=0)
    assert (lights.grad[:, 0, 0] > 0).all()  # less red
    assert (lights.grad[:, 2, 0] < 0).all()  # more blue


def test_light_tint_puts_the_hue_into_the_albedo():
    """albedo * light = skin has many solutions; from a grey start both take half of the hue, unless a prior chooses."""
    skin = torch.tensor([0.8, 0.5, 0.35])
    hues = {}
    for weight in (0.0, 1.0):
        albedo, light = torch.full((3,), 0.7, requires_grad=True), torch.full((3,), 0.8, requires_grad=True)
        for _ in range(800):
            coefficients = torch.nn.functional.pad(light[None, :, None] / 0.28209479, (0, 8))
            total = ((albedo * light - skin) ** 2).sum() + weight * light_tint(coefficients).sum()
            gradients = torch.autograd.grad(total, (albedo, light))
            albedo, light = (albedo - 0.05 * gradients[0]).detach(), (light - 0.05 * gradients[1]).detach()
            albedo.requires_grad_(), light.requires_grad_()
        torch.testing.assert_close((albedo * light).detach(), skin, atol=5e-3, rtol=0)
        hues[weight] = float((light / light.mean() - 1).abs().max().detach())
    assert hues[0.0] > 0.15
    assert hues[1.0] < 0.02


def test_darkness_has_finite_gradients():
    light, shading = torch.zeros(2, 3, 9, requires_grad=True), torch.zeros(2, 5, 3, requires_grad=True)
    (light_tint(light).sum() + white_shading(shading).sum() + white_shading_of_batch(shading)).backward()
    assert light.grad.isfinite().all()
    assert (light.grad[:, :, 0] < 0).all()  # towards more light
    assert shading.grad.isfinite().all()


def test_gradcheck():
    shading = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(white_shading, shading)
    assert gradcheck(white_shading_of_batch, shading)
    assert gradcheck(light_tint, torch.rand(2, 3, 9, dtype=torch.float64, requires_grad=True))
    maps = (1 + torch.rand(2, 3, 4, 6, dtype=torch.float64)).requires_grad_()
    texture = 2 * torch.rand(2, 3, 4, 6, dtype=torch.float64)
    assert gradcheck(lambda s: over_exposure(s, texture, FULL), maps)
