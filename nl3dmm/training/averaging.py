"""The average of the weights over the last steps: checkpoints are used with it, training goes on with the raw."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

_RAW = "raw_weights"  # key of a checkpoint: parameters as the optimiser left them


class WeightAverage(Callback):
    """Exponential moving average (EMA) of the parameters; the statistics of batch norm stay the latest.

    Lightning's ``WeightAveraging`` does not fit: it copies the module with its template and feature network before they
    are on the device, knows no growing decay, and its last checkpoint has lost the raw weights.
    """

    def __init__(self, decay: float, warmup_steps: int):
        self.decay, self.warmup_steps = decay, warmup_steps
        self._averages: dict[str, Tensor] = {}

    def decay_at(self, step: int) -> float:
        """Share that the average keeps after ``step`` steps; 0, a plain copy, until the warm-up is over."""
        averaged = step - self.warmup_steps
        return min(self.decay, (1 + averaged) / (10 + averaged)) if averaged > 0 else 0.0

    @contextmanager
    def in_use(self, module: LightningModule) -> Iterator[None]:
        """Inside the block the module has the averaged weights."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = self._averages or {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}
        self._averages = {name: start[name].to(parameter) for name, parameter in pl_module.named_parameters()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        update = get_ema_multi_avg_fn(self.decay_at(trainer.global_step))
        update(list(self._averages.values()), [p.detach() for p in pl_module.parameters()], None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        raw = checkpoint["state_dict"]
        checkpoint[_RAW] = {name: raw[name] for name in self._averages}
        checkpoint["state_dict"] = {**raw, **self._averages}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The module has been given the averages by now."""
        raw = checkpoint[_RAW]
        self._averages = {name: checkpoint["state_dict"][name].clone() for name in raw}
        pl_module.load_state_dict(raw, strict=False)

    def _exchange(self, module: LightningModule) -> None:
        for name, parameter in module.named_parameters():
            average = self._averages[name]
            parameter.data, average.data = average.data, parameter.data


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside the block the module has the weights that a checkpoint of now would be used with."""
    average = next((callback for callback in trainer.callbacks if isinstance(callback, WeightAverage)), None)  # type: ignore[attr-defined]
    if average is None:
        yield
        return
    with average.in_use(module):
        yield
