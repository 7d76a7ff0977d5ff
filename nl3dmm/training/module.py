"""Lightning glue: optimisers, stages, finite guards. No maths."""

import csv
import functools
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.checkpoint import check_template, describe, read_card
from nl3dmm.checkpoint_io import VerifiedCheckpointIO
from nl3dmm.errors import Nl3dmmError
from nl3dmm.losses.objective import Objective
from nl3dmm.render import default_device
from nl3dmm.settings import LoggingConfig, RunConfig, TrainingConfig
from nl3dmm.systems.highfidelity import HighFidelity
from nl3dmm.systems.weights import LABEL_TERMS
from nl3dmm.training.averaging import WeightAverage
from nl3dmm.types import FaceBatch

_ENCODER_STATE = "encoder_optimizer_state"


class TrainingModule(LightningModule):
    """Optimises a system; the stage, and with it the loss weights, is a function of the step."""

    def __init__(self, config: RunConfig, template: FaceTemplate):
        super().__init__()
        self.config = config
        self.template = template
        self.system = HighFidelity(config.highfidelity, template)
        self.system.model.network_dtype = network_dtype(config.training)
        if config.loss.pretrain.perceptual > 0 or config.loss.finetune.perceptual > 0:
            self.system.feature_network()  # now, so that a missing file is not found out hours later
        self.encoder_optimizer: torch.optim.Adam | None = None  # made with the other one
        self._encoder_state: dict[str, Any] | None = None

    def training_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """One optimiser step, which Lightning counts; before it the encoder's own, if asked for, which it does not."""
        encoder_optimizer = self.encoder_optimizer if self._stage() != "linear" else None
        if encoder_optimizer is not None:
            self._step_encoder(batch, encoder_optimizer)
        objective = self._objective(batch, with_landmarks=encoder_optimizer is None)
        self.log("loss", objective.total, prog_bar=True)
        # NaN where photos have no labels: Lightning would repeat the last value
        terms = dict.fromkeys(LABEL_TERMS, torch.tensor(math.nan)) | objective.terms
        self.log_dict({f"terms/{name}": term for name, term in terms.items()})
        for name in ("photo_proxy_final", "landmark"):
            if name in objective.terms:
                self.log(name.removesuffix("_proxy_final"), objective.terms[name], prog_bar=True, logger=False)
        return {"loss": objective.total, "estimate": objective.estimate}

    def _stage(self) -> str:
        return self.config.training.stage(self.global_step)

    def _objective(self, batch: FaceBatch, with_landmarks: bool = True) -> Objective:
        """Weighted loss of this step's stage; an error if it is not finite."""
        training, loss, step = self.config.training, self.config.loss, self.global_step
        fine = self._stage() == "finetune"
        weights = loss.finetune_at(training.finetune_progress(step)) if fine else loss.pretrain
        if not with_landmarks:
            weights = replace(weights, landmark=0.0)
        if self._stage() == "linear":
            objective = self.system.linear_objective(batch, weights)
        else:
            objective = self.system.objective(batch, weights, step)
        if not torch.isfinite(objective.total):
            terms = {name: float(term) for name, term in objective.terms.items() if not torch.isfinite(term)}
            raise Nl3dmmError(
                f"loss at step {step}: got {terms or 'a non-finite total'} for samples {batch.index.tolist()}; "
                "expected finite terms. Lower training.learning_rate or check these samples."
            )
        return objective

    def _step_encoder(self, batch: FaceBatch, optimizer: torch.optim.Adam) -> None:
        """First of the released code's two steps: all terms, the encoder's parameters alone, an Adam of its own."""
        config, (group,) = self.config.training, optimizer.param_groups
        objective = self._objective(batch)
        optimizer.zero_grad()  # Lightning clears what this step leaves, but only before its own backward pass
        objective.total.backward(inputs=group["params"])
        self.log("encoder_gradient_norm", self._clip(group["params"]))
        group["lr"] = config.learning_rate * encoder_rate_factor(self.global_step, config)
        optimizer.step()
        self.log("encoder_loss", objective.total)

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config.training
        betas = (config.beta1, config.beta2)
        if config.encoder_step:
            self.encoder_optimizer = torch.optim.Adam(self.system.model.encoder.parameters(), betas=betas, fused=True)
            if self._encoder_state is not None:
                self.encoder_optimizer.load_state_dict(self._encoder_state)
        encoder = list(self.system.model.encoder.parameters())
        known = set(encoder)
        others = [parameter for parameter in self.system.parameters() if parameter not in known]
        groups = [{"params": encoder}, {"params": others}]
        optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=betas, fused=True)
        factors = [functools.partial(factor, config=config) for factor in (encoder_rate_factor, learning_rate_factor)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.log("gradient_norm", self._clip(self.system.parameters()))

    def _clip(self, parameters: Iterable[Tensor]) -> Tensor:
        """Gradient norm before the clipping; an error if it is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.gradient_clip)
        if not torch.isfinite(norm):
            raise Nl3dmmError(
                f"gradient at step {self.global_step}: got norm {float(norm)}; expected a finite one. "
                "Lower training.learning_rate."
            )
        return norm

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nl3dmm"] = describe(self.config, self.template)
        if self.encoder_optimizer is not None:
            checkpoint[_ENCODER_STATE] = self.encoder_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path = Path(self.config.output)
        check_template(read_card(checkpoint, path), self.template, path)
        self._encoder_state = checkpoint[_ENCODER_STATE] if self.config.training.encoder_step else None


def network_dtype(config: TrainingConfig) -> torch.dtype:
    """bfloat16 where the config asks for it, or with ``auto`` where the hardware multiplies it natively."""
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if native else torch.float32


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, constant until ``decay_start``, then a cosine from 1 to ``final_learning_rate``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = max(config.warmup_steps, round(config.decay_start * config.steps))
    progress = (step - start) / max(1, config.steps - start)
    low = config.final_learning_rate
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0), 1)))


def encoder_rate_factor(step: int, config: TrainingConfig) -> float:
    """The encoder's own: ``encoder_rate`` times as much as soon as the decoders join."""
    share = 1.0 if config.stage(step) == "linear" else config.encoder_rate
    return share * learning_rate_factor(step, config)


def build_loggers(config: LoggingConfig, output: Path, first_step: int = 0) -> list[Logger]:
    """CSV always; W&B online only with an account on this machine."""
    loggers: list[Logger] = [_csv_logger(output, first_step)]
    if config.wandb == "disabled":
        return loggers
    import wandb

    online = config.wandb == "online" or (config.wandb == "auto" and wandb.login(prompt=False))
    settings = wandb.Settings(silent=True, console="off", mode="online" if online else "offline")
    logger = WandbLogger(project=config.project, save_dir=output, offline=not online, settings=settings)
    logger._wandb_init.pop("anonymous", None)  # Lightning sets it to None, and wandb warns whoever sets it
    loggers.append(logger)
    return loggers


def _csv_logger(output: Path, first_step: int) -> CSVLogger:
    """Lightning deletes the metrics.csv it finds, so the rows of a continued run's earlier steps are written again."""
    file, rows = output / "metrics.csv", []
    if first_step and file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("step") and int(row["step"]) < first_step]
    logger = CSVLogger(output, name="", version="")
    for row in rows:
        values = {name: value for name, value in row.items() if name != "step" and value}
        logger.log_metrics(values, int(row["step"]))  # type: ignore[arg-type]  # the text as it was, to the last digit
    logger.save()
    return logger


def build_trainer(config: RunConfig, callbacks: list[Callback], first_step: int = 0) -> Trainer:
    """A trainer for the whole run; checkpoints are verified and written atomically."""
    output = Path(config.output)
    checkpoints = ModelCheckpoint(
        dirpath=output / "checkpoints",
        filename="step-{step:06d}",
        auto_insert_metric_name=False,
        every_n_train_steps=config.training.checkpoint_every,
        save_top_k=2,
        monitor="step",
        mode="max",
        save_last=True,
    )
    average = WeightAverage(config.training.ema, config.training.warmup_steps)
    averages = [average] if config.training.ema > 0 else []
    return Trainer(
        max_steps=config.training.steps,
        max_epochs=1,
        logger=build_loggers(config.logging, output, first_step),
        callbacks=[checkpoints, RichProgressBar(leave=True), *averages, *callbacks],
        plugins=[VerifiedCheckpointIO()],
        log_every_n_steps=config.logging.every,
        accelerator="gpu" if default_device() == "cuda" else "cpu",
        devices=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
