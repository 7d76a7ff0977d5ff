"""Batches for training: order is a function of ``(seed, step)``, so a resumed run sees what it would have seen."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nl3dmm.data.augment import AugmentConfig, augment
from nl3dmm.synthetic.draws import Draws
from nl3dmm.types import FaceBatch

_SALT = 22  # ``PhotoSet`` has the one before
Labels = Callable[[FaceBatch], FaceBatch]


@runtime_checkable
class FaceSource(Protocol):
    """Numbered faces."""

    def __len__(self) -> int: ...

    def read(self, indices: Int[Tensor, " batch"], visits: Int[Tensor, " batch"] | None = None) -> FaceBatch:
        """``visits`` number everything that a run reads, for sources that show a face differently each time."""
        ...


def exact_labels(truth: FaceBatch) -> FaceBatch:
    """The truth itself."""
    return truth


def batch_indices(
    seed: int, step: int, batch_size: int, samples: int, rank: int = 0, ranks: int = 1
) -> Int[Tensor, " batch"]:
    """Which samples rank ``rank`` sees at ``step``: a walk through fresh permutations of all samples."""
    first = (step * ranks + rank) * batch_size
    positions = torch.arange(first, first + batch_size)
    chosen = torch.empty(batch_size, dtype=torch.long)
    for epoch in (positions // samples).unique().tolist():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        here = positions // samples == epoch
        chosen[here] = torch.randperm(samples, generator=generator)[positions[here] % samples]
    return chosen


@dataclass(frozen=True)
class Turns:
    """Steps whose whole batches come from another source, as they are: ``share`` of all from ``first`` on, evenly."""

    source: FaceSource
    first: int
    share: float

    def number(self, step: int) -> int | None:
        """Which of its own batches a step takes; None where it is not its turn."""
        before, after = (math.floor((step - self.first + more) * self.share) for more in (0, 1))
        return before if step >= self.first and after > before else None


class AugmentedFaces:
    """Another source, whose faces look different each time a run sees them: a function of the seed and the visit."""

    def __init__(self, source: FaceSource, config: AugmentConfig, seed: int, vertex_mirror: Int[Tensor, " vertices"]):
        self.source, self.config, self.seed, self.vertex_mirror = source, config, seed, vertex_mirror

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Int[Tensor, " batch"], visits: Int[Tensor, " batch"] | None = None) -> FaceBatch:
        batch = self.source.read(indices, visits)
        if visits is None:
            return batch
        return augment(batch, self.config, Draws(self.seed, visits, _SALT), self.vertex_mirror)


class StepBatches(Dataset[FaceBatch]):
    """Item k is the whole batch of step k: a function of ``(seed, k)`` alone, in every process."""

    def __init__(self, source: FaceSource, seed: int, batch_size: int, rank: int = 0, ranks: int = 1):
        self.source, self.seed, self.batch_size, self.rank, self.ranks = source, seed, batch_size, rank, ranks

    def __getitem__(self, step: int) -> FaceBatch:
        rows = batch_indices(self.seed, step, self.batch_size, len(self.source), self.rank, self.ranks)
        first = (step * self.ranks + self.rank) * self.batch_size
        return self.source.read(rows, torch.arange(first, first + self.batch_size))


class _RunBatches(Dataset[FaceBatch]):
    """Labelled batches of the bank, and those of the other source when it is its turn."""

    def __init__(self, data: "BankDataModule", rank: int, ranks: int):
        self.labels, self.turns, split = data.labels, data.turns, (data.seed, data.batch_size, rank, ranks)
        self.bank = StepBatches(data.bank, *split)
        self.others = None if data.turns is None else StepBatches(data.turns.source, *split)

    def __getitem__(self, step: int) -> FaceBatch:
        turn = None if self.turns is None else self.turns.number(step)
        if self.others is None or turn is None:
            return self.labels(self.bank[step])
        return self.others[turn]


class _StepSampler(Sampler[int]):
    """Steps still to do; its length stays that of the whole run, which Lightning counts in."""

    def __init__(self, start: int, steps: int):
        self.start, self.steps = start, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.steps))

    def __len__(self) -> int:
        return self.steps


class BankDataModule(LightningDataModule):
    """Feeds a run of ``steps`` batches from a bank, with labels made of the truth; one epoch is the run.

    ``turns``: another source, such as photos without truth, that takes some of the steps.
    """

    def __init__(
        self,
        bank: FaceSource,
        seed: int,
        batch_size: int,
        steps: int,
        workers: int = 0,
        labels: Labels = exact_labels,
        turns: Turns | None = None,
    ):
        super().__init__()
        self.bank, self.seed, self.batch_size, self.steps, self.workers = bank, seed, batch_size, steps, workers
        self.labels, self.turns = labels, turns
        self._start = 0

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = _RunBatches(self, rank, ranks)
        sampler = _StepSampler(self._start, self.steps)
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=self.workers)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.trainer.global_step if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = int(state_dict["step"])
