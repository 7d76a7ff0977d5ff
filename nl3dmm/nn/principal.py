"""A linear 3DMM in UV space (paper equations 1 and 2): principal components of label maps, and their decoder."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The same chunks at each call: they are read several times, so that memory does not grow with the number of maps.
MapChunks = Callable[[], Iterable[Float[Tensor, "chunk channels uv_height uv_width"]]]
_OVERSAMPLING = 16  # directions beyond those asked for
_ITERATIONS = 3


@dataclass(frozen=True)
class PrincipalComponents:
    """``mean + coefficients @ basis``; over the maps they come from the coefficients have mean 0 and variance 1."""

    mean: Float[Tensor, "channels uv_height uv_width"]
    basis: Float[Tensor, "components channels uv_height uv_width"]  # orthogonal, one standard deviation long
    explained: float  # fraction of the maps' variance


def principal_components(maps: MapChunks, count: int) -> PrincipalComponents:
    """The ``count`` directions of most variance, by subspace iteration on streamed maps.

    Memory is that of about five bases, however many maps there are; a matrix of all maps would take 1 GB for 2,000 of
    192 x 224 x 3. Exact where the maps span fewer directions than asked for; those that nothing spans are zero.
    """
    mean, subspace, samples, size = _sketch(maps, count + _OVERSAMPLING)
    spread = 0.0
    for _ in range(_ITERATIONS):
        image = torch.zeros_like(subspace)
        for rows in _centred(maps, mean):
            image.addmm_(rows.T, rows @ subspace)
        subspace = torch.linalg.qr(image).Q
    covariance = mean.new_zeros(subspace.shape[1], subspace.shape[1], dtype=torch.float64)
    for rows in _centred(maps, mean):
        coordinates = (rows @ subspace).double()
        covariance += coordinates.T @ coordinates
        spread += float(rows.double().square().sum())
    energies, turn = torch.linalg.eigh(covariance / max(samples - 1, 1))
    kept = min(count, len(energies))
    energies, turn = energies.flip(0)[:kept].clamp_min(0), turn.flip(1)[:, :kept]
    basis = mean.new_zeros(count, mean.numel())
    basis[:kept] = ((subspace @ turn.to(subspace)) * energies.sqrt().to(subspace)).T
    explained = float(energies.sum()) * max(samples - 1, 1) / max(spread, 1e-30)
    return PrincipalComponents(mean.view(size), basis.view(count, *size), min(explained, 1.0))


def _sketch(maps: MapChunks, directions: int) -> tuple[Tensor, Tensor, int, torch.Size]:
    """Mean, orthonormal columns of random mixtures of the centred maps, number and size of the maps: one reading."""
    generator, samples, size = torch.Generator().manual_seed(0), 0, torch.Size()
    total, mixed, weights = torch.zeros(3).unbind()
    for chunk in maps():
        rows, samples, size = chunk.flatten(1).float(), samples + len(chunk), chunk.shape[1:]
        random = torch.randn(len(rows), directions, generator=generator).to(rows)
        total, mixed, weights = total + rows.sum(0), mixed + rows.T @ random, weights + random.sum(0)
    mean = total / samples
    subspace = mixed - mean[:, None] * weights
    return mean, torch.linalg.qr(subspace[:, : min(samples, len(mean))]).Q, samples, size


def _centred(maps: MapChunks, mean: Float[Tensor, " features"]) -> Iterable[Float[Tensor, "chunk features"]]:
    return (chunk.flatten(1).float() - mean for chunk in maps())


class PrincipalUVDecoder(nn.Module):
    """The linear model as a decoder: fixed, at full resolution, one end.

    ``raw_from_map`` undoes the bound that the model puts on raw maps, so that what comes out of ``FaceModel.decode`` is
    linear in the latent, in mm and in albedo. Not a number until ``fill`` is called or weights are loaded.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, latent: int, uv_size: tuple[int, int], raw_from_map: Callable[[Tensor], Tensor]):
        super().__init__()
        self.size = (3, *uv_size)
        self.raw_from_map = raw_from_map
        self.register_buffer("mean", torch.full((math.prod(self.size),), math.nan))
        self.register_buffer("basis", torch.full((latent, math.prod(self.size)), math.nan))

    @property
    def is_filled(self) -> bool:
        return not bool(self.mean.isnan().any())

    def fill(self, components: PrincipalComponents) -> None:
        """Take over components of this decoder's latent and map size."""
        self.mean.copy_(components.mean.flatten())
        self.basis.copy_(components.basis.flatten(1))

    def forward(
        self, latent: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch 3 uv_height uv_width"], Float[Tensor, "batch 3 uv_height uv_width"]]:
        """Raw map, as proxy and as final."""
        with torch.autocast(latent.device.type, enabled=False):
            maps = torch.addmm(self.mean, latent.float(), self.basis)
            raw = self.raw_from_map(maps.unflatten(1, self.size))
        return raw, raw
