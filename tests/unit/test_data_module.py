"""Order of training samples: a function of (seed, step), disjoint over ranks, resumable."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from nl3dmm.data.augment import AugmentConfig
from nl3dmm.data.bank import FaceBank
from nl3dmm.data.module import AugmentedFaces, BankDataModule, StepBatches, Turns, batch_indices
from nl3dmm.geometry.camera import project


@pytest.fixture(scope="module")
def bank(small_world, tmp_path_factory) -> FaceBank:
    return FaceBank(small_world, 10, tmp_path_factory.mktemp("cache"))


def walk(seed: int, steps: int, batch_size: int, samples: int, ranks: int = 1) -> list[int]:
    """All indices in the order in which the ranks see them together."""
    return [
        index
        for step in range(steps)
        for rank in range(ranks)
        for index in batch_indices(seed, step, batch_size, samples, rank, ranks).tolist()
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 20), st.integers(1, 3))
def test_every_epoch_is_a_permutation(seed, batch_size, samples, ranks):
    steps = -(-3 * samples // (batch_size * ranks))
    seen = walk(seed, steps, batch_size, samples, ranks)
    for epoch in range(3):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_epochs_and_seeds_have_different_orders():
    orders = [walk(seed, 100, 1, 100) for seed in (0, 1)] + [walk(0, 200, 1, 100)[100:]]
    assert len({tuple(order) for order in orders}) == 3


def test_order_is_a_function_of_seed_and_step():
    expected = batch_indices(3, 17, 4, 50)
    torch.manual_seed(1)
    batch_indices(3, 16, 4, 50)
    assert batch_indices(3, 17, 4, 50).equal(expected)
    assert expected.dtype == torch.int64


def test_ranks_share_each_step_without_overlap():
    parts = [batch_indices(0, 5, 8, 1000, rank, 4) for rank in range(4)]
    assert len(torch.cat(parts).unique()) == 32
    assert torch.cat(parts).equal(batch_indices(0, 5, 32, 1000))


def test_batches_may_be_larger_than_the_bank():
    assert sorted(batch_indices(0, 0, 6, 3).tolist()) == [0, 0, 1, 1, 2, 2]


def test_loader_gives_the_steps_batches(bank):
    data = BankDataModule(bank, seed=2, batch_size=3, steps=4)
    batches = list(data.train_dataloader())
    assert [batch.index.tolist() for batch in batches] == [batch_indices(2, step, 3, 10).tolist() for step in range(4)]
    assert batches[0].image.shape == (3, 3, 48, 48)


def test_a_spawned_worker_gives_the_same_batches(bank):
    data = BankDataModule(bank, seed=2, batch_size=3, steps=2)
    here = data.train_dataloader()
    there = DataLoader(
        here.dataset, batch_size=None, sampler=here.sampler, num_workers=1, multiprocessing_context="spawn"
    )
    for batch, expected in zip(there, here, strict=True):
        assert batch.index.equal(expected.index)
        for name in ("image", "albedo", "mask", "landmarks"):
            assert getattr(batch, name).equal(getattr(expected, name)), name
        torch.testing.assert_close(batch.vertices, expected.vertices, atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")  # more than there are cores
def test_one_worker_and_four_give_the_same_bytes(bank, small_template):
    changing = AugmentedFaces(bank, AugmentConfig(), 5, small_template.mirror)
    for source in (bank, changing, PlainWorld(bank.world)):
        first, second = (
            list(DataLoader(StepBatches(source, 2, 3), batch_size=None, sampler=range(5), num_workers=count))
            for count in (1, 4)
        )
        for one, four in zip(first, second, strict=True):
            assert one.camera.rotation.equal(four.camera.rotation)
            for name in ("index", "image", "albedo", "mask", "landmarks", "vertices", "sh_coefficients"):
                assert getattr(one, name).equal(getattr(four, name)), name


class PlainWorld:
    """Faces drawn in the loader's processes, without a bank."""

    def __init__(self, world):
        self.world = world

    def __len__(self) -> int:
        return 10

    def read(self, indices, visits=None):
        return self.world.sample(indices)


def test_faces_look_different_at_every_visit(bank, small_template):
    faces = AugmentedFaces(bank, AugmentConfig(), 5, small_template.mirror)
    rows = torch.tensor([4, 4])
    twice = faces.read(rows, torch.tensor([7, 8]))
    assert twice.index.tolist() == [4, 4]
    assert not twice.image[0].equal(twice.image[1])
    assert not twice.landmarks[0].equal(twice.landmarks[1])
    pixels, _ = project(twice.camera, small_template.landmarks(twice.vertices))
    torch.testing.assert_close(pixels, twice.landmarks, atol=0.3, rtol=0)  # the template's sides differ by less
    assert faces.read(rows, torch.tensor([7, 8])).image.equal(twice.image)
    assert faces.read(rows[:1]).image.equal(bank.read(rows[:1]).image)  # not a visit of a run


def test_resumed_loader_goes_on_where_it_stopped(bank):
    data = BankDataModule(bank, seed=2, batch_size=3, steps=4)
    data.load_state_dict({"step": 3})
    loader = data.train_dataloader()
    assert [batch.index.tolist() for batch in loader] == [batch_indices(2, 3, 3, 10).tolist()]
    assert len(loader) == 4  # of the whole run, which Lightning counts in


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_another_source_takes_its_share_of_the_steps_evenly(bank, share):
    turns = Turns(bank, 6, share)
    numbers = [turns.number(step) for step in range(46)]
    assert numbers[:6] == [None] * 6
    taken = [number for number in numbers if number is not None]
    assert taken == list(range(round(40 * share)))
    for first in range(6, 38):
        assert abs(8 * share - sum(number is not None for number in numbers[first : first + 8])) < 1


def test_state_without_a_trainer_is_the_beginning(bank):
    assert BankDataModule(bank, seed=0, batch_size=2, steps=3).state_dict() == {"step": 0}
