"""Random numbers that belong to one sample each: a function of (seed, index, salt) and of nothing else."""

import copy

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Draws:
    """One generator per sample of a batch; every call advances all of them alike, whatever the batch is.

    Numbers are drawn on the CPU, so that they are the same everywhere, and brought to the device.
    """

    def __init__(self, seed: int, indices: Int[Tensor, " batch"], salt: int, device: torch.device | str = "cpu"):
        self.device = device
        self._generators = [np.random.default_rng([seed, index, salt]) for index in indices.tolist()]

    def __getitem__(self, rows: Int[Tensor, " some"]) -> "Draws":
        """The generators of some samples, not copies of them: what they draw here is drawn."""
        some = copy.copy(self)
        some._generators = [self._generators[row] for row in rows.tolist()]
        return some

    def _stack(self, draw) -> Float[Tensor, "batch ..."]:
        drawn = [draw(generator) for generator in self._generators]
        values = drawn[0][None] if len(drawn) == 1 else np.stack(drawn)  # stacking one takes longer than drawing it
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    def uniform(self, low: float | int, high: float | int, *shape: int) -> Float[Tensor, "batch ..."]:
        return self._stack(lambda generator: generator.uniform(low, high, shape))

    def normal(self, deviation: float | int, limit: float | int, *shape: int) -> Float[Tensor, "batch ..."]:
        """Gaussian, clipped to +-limit."""
        return self._stack(lambda generator: generator.normal(0, deviation, shape)).clamp(-limit, limit)

    def chance(self, probability: float | int, *shape: int) -> Float[Tensor, "batch ..."]:
        """1 with the given probability, else 0."""
        return (self.uniform(0, 1, *shape) < probability).float()
