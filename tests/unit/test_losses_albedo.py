"""Albedo regularisers: known values, minima, weights that matter, pairs that are reproducible, gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nl3dmm.losses.albedo import albedo_constancy, albedo_symmetry, chroma, pair_constancy, random_pairs

FULL = torch.ones(4, 6, dtype=torch.bool)


def some_map(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 4, 6, dtype=torch.float64)


def two_halves(step: float) -> torch.Tensor:
    """Grey of .5 on the left, .5 + step on the right."""
    uv_map = torch.full((1, 3, 4, 6), 0.5)
    uv_map[..., 3:] += step
    return uv_map


def test_symmetry_is_the_l1_distance_to_the_mirror():
    assert albedo_symmetry(two_halves(0.25), FULL).tolist() == [0.25]
    symmetric = some_map() + some_map().flip(-1)
    assert albedo_symmetry(symmetric + symmetric.flip(-1), FULL).tolist() == [0, 0]


def test_symmetry_forgives_the_dead_zone():
    torch.testing.assert_close(albedo_symmetry(two_halves(0.25), FULL, 0.05), torch.tensor([0.2]))
    assert albedo_symmetry(two_halves(0.25), FULL, 0.3).tolist() == [0]


def test_symmetry_needs_both_sides_in_the_mask():
    uv_map, mask = two_halves(0.0), FULL.clone()
    uv_map[..., 0], mask[:, 5] = 1.0, False
    assert albedo_symmetry(uv_map, mask).tolist() == [0]


def test_chroma_ignores_brightness_and_survives_black():
    colour = torch.rand(2, 3, 4, 4) + 0.1
    torch.testing.assert_close(chroma(3 * colour), chroma(colour))
    torch.testing.assert_close(chroma(colour).sum(1), torch.ones(2, 4, 4))
    assert chroma(torch.zeros(1, 3, 2, 2)).eq(0).all()


def test_constancy_is_zero_for_a_constant_map_and_known_for_a_step():
    reference, visible = torch.full((1, 3, 4, 6), 1 / 3), FULL[None]
    assert albedo_constancy(torch.full((1, 3, 4, 6), 0.7), reference, visible).abs() < 1e-6
    # 4 of 4 * 5 + 3 * 6 = 38 pairs cross the step; each has |difference| = 0.2 * sqrt(3).
    expected = torch.tensor([4 / 38 * (0.2 * math.sqrt(3)) ** 0.8])
    torch.testing.assert_close(albedo_constancy(two_halves(0.2), reference, visible), expected, atol=1e-3, rtol=0)


def test_constancy_weights_let_the_albedo_change_where_the_image_does():
    visible, albedo = FULL[None], two_halves(0.2)
    grey, coloured = torch.full((1, 3, 4, 6), 1 / 3), torch.full((1, 3, 4, 6), 1 / 3)
    coloured[:, 0, :, 3:] += 0.3
    strict, free = albedo_constancy(albedo, grey, visible), albedo_constancy(albedo, coloured, visible)
    # The crossing pairs lose the factor exp(-15 * 0.3) both in the sum and in the weights.
    factor = math.exp(-4.5)
    torch.testing.assert_close(free, strict * factor * 38 / (34 + 4 * factor), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(albedo_constancy(albedo, coloured, visible, sharpness=0.0), strict)


def test_constancy_counts_visible_pairs_only():
    visible = FULL[None].clone()
    visible[..., 3] = False  # no pair crosses the step any more
    value = albedo_constancy(two_halves(0.2), torch.full((1, 3, 4, 6), 1 / 3), visible)
    assert value.abs() < 1e-6
    assert albedo_constancy(two_halves(0.2), two_halves(0.2), torch.zeros_like(visible)).tolist() == [0]


def test_constancy_gives_the_reference_no_gradient():
    albedo, reference = some_map().requires_grad_(), some_map().requires_grad_()
    albedo_constancy(albedo, reference, FULL.expand(2, -1, -1)).sum().backward()
    assert reference.grad is None
    assert albedo.grad.abs().sum() > 0


TEXELS = torch.tensor([0, 3, 5, 11, 17, 20, 23])


def test_pairs_are_a_function_of_sample_and_step():
    index = torch.tensor([0, 7, 123_456_789, 7])
    pairs = random_pairs(TEXELS, index, step=4)
    assert pairs.shape == (4, 2, 20)
    assert torch.isin(pairs, TEXELS).all()
    assert pairs[1].equal(pairs[3])
    assert pairs[1].equal(random_pairs(TEXELS, torch.tensor([7]), step=4)[0])  # whatever the batch
    assert not pairs[1].equal(pairs[0])
    assert not pairs.equal(random_pairs(TEXELS, index, step=5))


def test_pairs_are_those_of_plain_integers():
    def scramble(value: int) -> int:
        value %= 2**32
        for _ in range(2):
            value = (value ^ value // 2**16) * 0x45D9F3B % 2**32
        return value ^ value // 2**16

    for index, step in ((1, 3), (2**33 + 5, 10**7)):
        states = [scramble(scramble(scramble(index) + step) + draw) for draw in range(8)]
        expected = torch.tensor([TEXELS[state % 7] for state in states]).view(1, 2, 4)
        assert random_pairs(TEXELS, torch.tensor([index]), step, pairs=4).equal(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pairs_are_the_same_on_cuda():
    index = torch.arange(64)
    assert random_pairs(TEXELS.cuda(), index.cuda(), 3).cpu().equal(random_pairs(TEXELS, index, 3))


def test_pairs_visit_all_texels_alike_and_are_not_correlated():
    texels = torch.arange(16)
    pairs = random_pairs(texels, torch.arange(500), step=1)
    counts = torch.bincount(pairs.flatten(), minlength=16) / pairs.numel()
    assert (counts - 1 / 16).abs().max() < 0.006
    joint = torch.bincount((16 * pairs[:, 0] + pairs[:, 1]).flatten(), minlength=256) / (pairs.numel() / 2)
    assert (joint - 1 / 256).abs().max() < 0.003


def test_pair_constancy_is_the_l1_distance_beyond_the_dead_zone():
    pairs = torch.tensor([[[0, 1, 6], [5, 2, 11]]])  # two of three cross the middle, 6 texels a row
    torch.testing.assert_close(pair_constancy(two_halves(0.25), pairs, 0.0), torch.tensor([0.25 * 2 / 3]))
    torch.testing.assert_close(pair_constancy(two_halves(0.25), pairs), torch.tensor([0.24 * 2 / 3]))
    assert pair_constancy(two_halves(0.009), pairs).tolist() == [0]
    one_channel = two_halves(0.0)
    one_channel[:, 2, :, 3:] += 0.31
    torch.testing.assert_close(pair_constancy(one_channel, pairs), torch.tensor([0.3 / 3 * 2 / 3]))


def test_pair_constancy_makes_the_map_constant():
    albedo = torch.rand(1, 3, 4, 6).requires_grad_()
    optimizer = torch.optim.SGD([albedo], lr=0.05)
    for step in range(400):
        optimizer.zero_grad()
        pair_constancy(albedo, random_pairs(torch.arange(24), torch.zeros(1, dtype=torch.long), step)).sum().backward()
        optimizer.step()
    assert albedo.detach().flatten(2).std(2).max() < 0.02


def test_zero_input_has_finite_gradients():
    uv_map = torch.zeros(2, 3, 4, 6, requires_grad=True)
    total = albedo_symmetry(uv_map, FULL).sum() + pair_constancy(uv_map, torch.zeros(2, 2, 3, dtype=torch.long)).sum()
    total = total + albedo_constancy(uv_map, chroma(uv_map), FULL.expand(2, -1, -1)).sum() + chroma(uv_map).sum()
    total.backward()
    assert uv_map.grad.isfinite().all()


def test_gradcheck():
    albedo, reference = some_map().requires_grad_(), some_map()
    visible = torch.rand(2, 4, 6) > 0.2
    assert gradcheck(lambda a: albedo_symmetry(a, FULL, 0.02), albedo)
    assert gradcheck(lambda a: albedo_constancy(a, reference, visible), albedo)
    assert gradcheck(chroma, albedo)
    pairs = torch.randint(0, 24, (2, 2, 20))
    assert gradcheck(lambda a: pair_constancy(a, pairs), albedo)
