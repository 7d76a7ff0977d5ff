"""Principal components of label maps, and the linear decoder."""

import pytest
import torch

from nl3dmm.nn.principal import PrincipalUVDecoder, principal_components

SIZE = (3, 16, 12)


def low_rank_maps(samples: int, rank: int, noise: float = 0.0) -> torch.Tensor:
    """Maps round a mean of 5 whose deviations fall from 4 to 1."""
    directions = torch.linalg.qr(torch.randn(576, rank)).Q.T * torch.linspace(4, 1, rank)[:, None]
    maps = 5 + torch.randn(samples, rank) @ directions + noise * torch.randn(samples, 576)
    return maps.view(samples, *SIZE)


def exact(maps: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean, basis and explained fraction by a singular value decomposition of all maps."""
    rows = maps.flatten(1).double()
    _, s, v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    basis = v[:count] * s[:count, None] / (len(maps) - 1) ** 0.5
    return rows.mean(0), basis, float(s[:count].square().sum() / s.square().sum())


@pytest.mark.parametrize(("count", "noise"), [(4, 0.0), (8, 0.0), (6, 0.05), (40, 0.05)])
def test_components_are_those_of_the_singular_value_decomposition(count, noise):
    maps = low_rank_maps(200, 8, noise)
    found = principal_components(lambda: maps.split(33), count)
    mean, basis, explained = exact(maps, count)
    torch.testing.assert_close(found.mean.flatten().double(), mean, atol=1e-4, rtol=0)
    assert found.basis.shape == (count, *SIZE)
    own = found.basis.flatten(1).double()
    torch.testing.assert_close(own.norm(dim=1), basis.norm(dim=1), atol=5e-3, rtol=2e-3)  # flat noise converges slowly
    torch.testing.assert_close(own.T @ own, basis.T @ basis, atol=5e-3 if noise else 1e-3, rtol=0)
    assert found.explained == pytest.approx(explained, abs=1e-3)


def test_coefficients_have_unit_variance_and_are_uncorrelated():
    maps = low_rank_maps(300, 6)
    found = principal_components(lambda: maps.split(64), 6)
    basis = found.basis.flatten(1)
    coefficients = (maps - found.mean).flatten(1) @ torch.linalg.pinv(basis)
    torch.testing.assert_close(coefficients.T.cov(), torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(coefficients.mean(0), torch.zeros(6), atol=1e-3, rtol=0)


def test_directions_that_no_map_takes_are_zero():
    maps = low_rank_maps(40, 3)
    found = principal_components(lambda: maps.split(8), 10)
    assert found.basis[:3].flatten(1).norm(dim=1).min() > 0.5
    assert found.basis[3:].abs().max() < 1e-3
    assert found.explained == pytest.approx(1, abs=1e-5)
    few = principal_components(lambda: maps[:2].split(1), 10)  # two maps span one direction
    assert few.basis.shape == (10, *SIZE)
    assert few.basis[1:].abs().max() < 1e-3


def test_components_do_not_depend_on_the_chunks_and_come_back_equal():
    maps = low_rank_maps(64, 5, 0.01)
    one, two = (principal_components(lambda size=size: maps.split(size), 5) for size in (64, 64))
    assert one.basis.equal(two.basis)
    other = principal_components(lambda: maps.split(7), 5)
    torch.testing.assert_close(one.basis.flatten(1).norm(dim=1), other.basis.flatten(1).norm(dim=1))


def test_maps_are_read_in_chunks_only():
    maps, largest = low_rank_maps(64, 5), 0

    def chunks():
        nonlocal largest
        for chunk in maps.split(8):
            largest = max(largest, len(chunk))
            yield chunk

    assert principal_components(chunks, 5).explained > 0.999
    assert largest == 8


def test_decoder_is_linear_fixed_and_has_one_end():
    maps = low_rank_maps(100, 6)
    decoder = PrincipalUVDecoder(6, SIZE[1:], lambda value: value)
    components = principal_components(lambda: maps.split(50), 6)
    decoder.fill(components)
    proxy, final = decoder(torch.zeros(2, 6))
    assert final is proxy
    assert proxy[0].equal(components.mean)
    first, second = torch.randn(2, 1, 6)
    mixed = decoder(0.25 * first + 0.75 * second)[0]
    torch.testing.assert_close(mixed, 0.25 * decoder(first)[0] + 0.75 * decoder(second)[0], atol=1e-4, rtol=0)
    assert not list(decoder.parameters())
    assert set(decoder.state_dict()) == {"mean", "basis"}


def test_decoder_stays_float32_under_autocast():
    decoder = PrincipalUVDecoder(4, SIZE[1:], lambda value: value)
    decoder.fill(principal_components(lambda: low_rank_maps(50, 4).split(50), 4))
    latent = torch.randn(3, 4)
    plain = decoder(latent)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(latent.bfloat16().float())[0].dtype == torch.float32
        assert decoder(latent)[0].equal(plain)


def test_an_unfilled_decoder_gives_no_numbers():
    assert PrincipalUVDecoder(4, SIZE[1:], lambda value: value)(torch.zeros(1, 4))[0].isnan().all()
