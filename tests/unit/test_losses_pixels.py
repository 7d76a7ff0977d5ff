"""Image losses: known values, minima, per-sample shapes, gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.losses.pixels import feature_distance, gradient_difference, l21, masked_mean, pixel_distance


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 4, 5, dtype=torch.float64)


def test_masked_mean_is_per_sample_and_zero_for_an_empty_mask():
    values = torch.arange(12.0).view(3, 2, 2)
    mask = torch.tensor([[[1, 1], [1, 1]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]]).bool()
    assert masked_mean(values, mask).tolist() == [1.5, 5.0, 0.0]


def test_masked_mean_gives_masked_values_no_gradient():
    values = torch.ones(1, 2, 2, requires_grad=True)
    masked_mean(values, torch.tensor([[[True, False], [True, False]]])).sum().backward()
    assert values.grad.tolist() == [[[0.5, 0.0], [0.5, 0.0]]]


def test_l21_is_the_mean_colour_distance():
    image, target = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    image[0, :, 0, 0] = torch.tensor([0.6, 0.0, 0.8])
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(l21(image, target, mask), torch.tensor([0.25, 0.0]), atol=1e-5, rtol=0)
    mask[0, 1] = False
    torch.testing.assert_close(l21(image, target, mask), torch.tensor([0.5, 0.0]), atol=1e-5, rtol=0)


def test_l21_ignores_what_the_mask_hides():
    image, target, mask = images(), images(), torch.ones(2, 4, 5, dtype=torch.bool)
    mask[:, 2] = False
    changed = image.clone()
    changed[:, :, 2] = 77
    torch.testing.assert_close(l21(changed, target, mask), l21(image, target, mask))


def test_distance_is_zero_with_zero_gradient_at_equality():
    image = images().requires_grad_()
    distance = pixel_distance(image, image.detach())
    assert distance.eq(0).all()
    distance.sum().backward()
    assert image.grad.eq(0).all()


def test_zero_input_in_float32_has_finite_gradient():
    image = torch.zeros(2, 3, 4, 4, requires_grad=True)
    l21(image, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)).sum().backward()
    assert image.grad.isfinite().all()
    feature = torch.zeros(2, 3, 4, 4, requires_grad=True)
    feature_distance([feature], [torch.zeros(2, 3, 4, 4)]).sum().backward()
    assert feature.grad.isfinite().all()


def test_gradient_difference_compares_steps_along_both_axes():
    full, target = torch.ones(1, 4, 5, dtype=torch.bool), torch.rand(1, 3, 4, 5)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    for ramp in (0.2 * rows, 0.2 * columns, 0.1 * rows + 0.1 * columns):
        torch.testing.assert_close(gradient_difference(target + ramp, target, full), torch.tensor([0.2]))
    one_channel = torch.stack([0.3 * rows, 0 * rows, 0 * rows])
    torch.testing.assert_close(gradient_difference(target + one_channel, target, full), torch.tensor([0.1]))


def test_gradient_difference_is_zero_for_equal_images_and_forgives_brightness():
    image, full = images(), torch.ones(2, 4, 5, dtype=torch.bool)
    assert gradient_difference(image, image, full).eq(0).all()
    torch.testing.assert_close(gradient_difference(image + 0.3, image, full), torch.zeros(2).double())
    noisy = image + 0.01 * torch.randn_like(image)
    assert (gradient_difference(noisy, image, full) > 0).all()


def test_gradient_difference_needs_both_neighbours_in_the_mask():
    image, target, mask = images().requires_grad_(), images(), torch.ones(2, 4, 5, dtype=torch.bool)
    mask[:, 2], mask[1] = False, False
    value = gradient_difference(image, target, mask)
    changed = image.detach().clone()
    changed[:, :, 2] = 77
    torch.testing.assert_close(gradient_difference(changed, target, mask), value.detach())
    assert value[1] == 0
    value.sum().backward()
    assert image.grad[:, :, 2].eq(0).all()
    assert image.grad[0, :, 0].abs().sum() > 0


def test_gradient_difference_of_one_row_has_no_vertical_part():
    image, target = torch.tensor([0.0, 0.5]).expand(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    assert gradient_difference(image, target, torch.ones(1, 1, 2, dtype=torch.bool)).tolist() == [0.5]


def test_feature_distance_sums_layers_relative_to_their_scale():
    target = [torch.full((2, 4, 3, 3), 2.0), torch.full((2, 8, 2, 2), 100.0)]
    features = [target[0] + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), target[1] * 1.1]
    expected = torch.tensor([0.01, 0.01 + 1 / 4])
    torch.testing.assert_close(feature_distance(features, target), expected)
    assert feature_distance(target, target).eq(0).all()


def test_feature_distance_does_not_depend_on_the_scale_of_a_layer():
    features, target = [torch.randn(2, 4, 3, 3)], [torch.randn(2, 4, 3, 3)]
    scaled = feature_distance([50 * features[0]], [50 * target[0]])
    torch.testing.assert_close(scaled, feature_distance(features, target))


def test_feature_distance_weighs_layers():
    target = [torch.full((1, 4, 3, 3), 2.0), torch.full((1, 8, 2, 2), 10.0)]
    features = [target[0] + 1, target[1] + 1]
    torch.testing.assert_close(feature_distance(features, target, (2.0, 0.5)), torch.tensor([2 / 4 + 0.5 / 100]))
    torch.testing.assert_close(feature_distance(features, target, (0.0, 1.0)), torch.tensor([1 / 100]))
    torch.testing.assert_close(feature_distance(features, target, (2.0, 0.5), relative=False), torch.tensor([2.5]))


def test_feature_distance_needs_equally_many_layers():
    layer = torch.randn(1, 2, 3, 3)
    with pytest.raises(ValueError, match="shorter"):
        feature_distance([layer, layer], [layer])
    with pytest.raises(ValueError, match="shorter"):
        feature_distance([layer, layer], [layer, layer], [1.0])


def test_gradcheck():
    image, target = images().requires_grad_(), images().requires_grad_()
    mask = torch.rand(2, 4, 5) > 0.4
    assert gradcheck(lambda a, b: l21(a, b, mask), (image, target))
    assert gradcheck(pixel_distance, (image, target))
    assert gradcheck(lambda a, b: gradient_difference(a, b, mask), (image, target))
    fixed = images()  # the target's scale is a constant of the loss
    assert gradcheck(lambda a: feature_distance([a], [fixed]), image)
    assert gradcheck(lambda a: feature_distance([a], [fixed], [0.3], relative=False), image)
