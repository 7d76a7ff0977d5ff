"""Averaged weights: what they are after each step, where they are used, and that raw ones go on."""

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from nl3dmm.training.averaging import WeightAverage, averaged_weights

DECAY, WARMUP, STEPS = 0.3, 2, 5
DECAYS = (0.0, 0.0, 2 / 11, 3 / 12, 0.3)  # (1 + n) / (10 + n) grows beyond 0.3 at n = 3


class Line(LightningModule):
    """Two weights and a batch norm."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))

    def training_step(self, batch, batch_idx):
        return (self.net(batch) - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Record(Callback):
    """Parameters after each step: raw, and those the module has while the average is in use."""

    def __init__(self):
        self.raw: list[dict[str, torch.Tensor]] = []
        self.averaged: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.raw.append(copy(pl_module))
        with averaged_weights(trainer, pl_module):
            self.averaged.append(copy(pl_module))
        assert same(self.raw[-1], copy(pl_module))


def copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def fit(folder, *callbacks: Callback) -> Trainer:
    torch.manual_seed(1)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks],
    )
    trainer.fit(Line(), DataLoader(torch.randn(4 * STEPS, 1), batch_size=4, num_workers=0))
    return trainer


@pytest.fixture(autouse=True)
def _quiet():
    """What Lightning says about a loader without workers and a trainer on one device."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available.*")
        yield


def test_average_is_the_one_computed_by_hand(tmp_path):
    record = Record()
    fit(tmp_path, WeightAverage(DECAY, WARMUP), record)
    assert [WeightAverage(DECAY, WARMUP).decay_at(step + 1) for step in range(STEPS)] == pytest.approx(DECAYS)
    expected = record.raw[0]
    for raw, averaged, decay in zip(record.raw, record.averaged, DECAYS, strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * raw[name] for name in raw}
        for name, value in expected.items():
            torch.testing.assert_close(averaged[name], value)
    assert same(record.averaged[WARMUP - 1], record.raw[WARMUP - 1])
    assert not same(record.averaged[-1], record.raw[-1])


def test_averaging_does_not_change_the_training(tmp_path):
    with_average, without = Record(), Record()
    fit(tmp_path, WeightAverage(DECAY, WARMUP), with_average)
    fit(tmp_path, without)
    assert all(same(*pair) for pair in zip(with_average.raw, without.raw, strict=True))
    assert same(without.averaged[-1], without.raw[-1])  # no average asked for: the weights themselves


def test_checkpoint_holds_both_and_the_latest_statistics(tmp_path):
    record, average = Record(), WeightAverage(DECAY, WARMUP)
    trainer = fit(tmp_path, average, record)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    parameters = record.raw[-1].keys()
    assert same({name: state["state_dict"][name] for name in parameters}, record.averaged[-1])
    assert same(state["raw_weights"], record.raw[-1])
    statistics = dict(trainer.lightning_module.named_buffers())
    assert {"net.1.running_mean", "net.1.running_var"} < statistics.keys()
    assert same({name: state["state_dict"][name] for name in statistics}, statistics)


def test_exception_while_in_use_gives_the_raw_weights_back(tmp_path):
    average = WeightAverage(DECAY, WARMUP)
    trainer = fit(tmp_path, average)
    module = trainer.lightning_module
    before = copy(module)

    def fail() -> None:
        with average.in_use(module):
            assert not same(copy(module), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert same(copy(module), before)
