"""One training run from config to last line: data, trainer, pictures, summary."""

import logging
import os
import signal
import time
import warnings
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.progress import Progress

from nl3dmm.assets.load import load_template
from nl3dmm.assets.storage import save_template
from nl3dmm.checkpoint import TEMPLATE_FILE, TrainedSystem, find_checkpoint, load_encoder, load_system
from nl3dmm.config import config_to_yaml
from nl3dmm.data.augment import NONE
from nl3dmm.data.bank import FaceBank, default_cache
from nl3dmm.data.images import write_png
from nl3dmm.data.labels import CoarseLabels
from nl3dmm.data.module import AugmentedFaces, BankDataModule, FaceSource, Turns
from nl3dmm.data.photos import PhotoSet
from nl3dmm.data.shards import ShardSet
from nl3dmm.errors import CheckpointError, ConfigError
from nl3dmm.evaluation.accuracy import Protocol, evaluate, sample_faces, table
from nl3dmm.outputs import atomic_path, prepare_output_folder
from nl3dmm.panels import model_panel
from nl3dmm.render import default_device
from nl3dmm.settings import RunConfig
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.training.averaging import averaged_weights
from nl3dmm.training.health import HealthMonitor
from nl3dmm.training.linear_basis import fit_linear_model
from nl3dmm.training.module import TrainingModule, build_trainer
from nl3dmm.types import FaceBatch

_CONFIG_FILE = "config.yaml"


def run_training(config: RunConfig) -> Path:
    """Train, or go on where the output folder's last checkpoint stands; returns the last checkpoint."""
    console = Console()
    _quieten()
    output = prepare_output_folder(config.output)
    threads = config.training.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    resume_from, first_step = _resume_point(config, output)
    template = load_template(config.template, config.template_path, config.uv_size)
    if resume_from is None:
        save_template(template, output / TEMPLATE_FILE)
    with atomic_path(output / _CONFIG_FILE) as temporary:
        temporary.write_text(config_to_yaml(config))
    console.print(
        f"nl3dmm: {config.system} on template {template.name}, {threads} threads, output {output}", soft_wrap=True
    )
    model = config.model
    seed_everything(config.seed, workers=True, verbose=False)
    module = TrainingModule(config, template)  # before the faces are drawn: its config errors cost no waiting
    if resume_from is None and config.encoder_from is not None:
        load_encoder(config.encoder_from, module.system.model, config.labels)
    turns = _photo_turns(config, output)
    world = SyntheticWorld(template, config.world, model.image_size, config.seed, model.shading_space)
    bank = _open_bank(world, config, console)
    labels = CoarseLabels(config.labels, bank)
    if resume_from is None:
        fit_linear_model(module.system.model, bank, labels)
    training = config.training
    faces = _augmented(bank, config)
    data = BankDataModule(faces, config.seed, training.batch_size, training.steps, config.data.workers, labels, turns)
    panels = _Panels(world, output, config.training.panel_every)
    trainer = build_trainer(config, [HealthMonitor(config, template.uv_mask), panels], first_step)
    started = time.perf_counter()
    _fit(trainer, module, data, resume_from)
    if trainer.global_step > first_step:  # the callback saves every n-th step only; the last is what the run was for
        trainer.save_checkpoint(output / "checkpoints" / "last.ckpt")
    checkpoint = find_checkpoint(output)
    _summarise(console, load_system(checkpoint, device=default_device()), output, time.perf_counter() - started)
    return checkpoint


def _fit(trainer: Trainer, module: TrainingModule, data: BankDataModule, resume_from: Path | None) -> None:
    """Train; Ctrl-C stays a KeyboardInterrupt, which Lightning turns into exit code 1 and a process deaf to it."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume_from)
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


def _resume_point(config: RunConfig, output: Path) -> tuple[Path | None, int]:
    """The last checkpoint and its step if the run goes on; an error if the folder holds a different run."""
    try:
        last = find_checkpoint(output)
    except CheckpointError:
        return None, 0
    if not config.resume:
        raise ConfigError(
            f"output: got {output}, which holds a run; expected an empty folder with resume=false. "
            "Choose another output or delete that folder."
        )
    trained = load_system(last)
    config.check_continues(trained.config, output)
    return last, trained.step


def _open_bank(world: SyntheticWorld, config: RunConfig, console: Console) -> FaceBank:
    cache = Path(config.data.cache) if config.data.cache else default_cache()
    with Progress(console=console) as bar:
        task = bar.add_task("drawing synthetic faces", total=config.data.samples)
        bank = FaceBank(world, config.data.samples, cache, lambda done, total: bar.update(task, completed=done))
        bar.update(task, completed=len(bank))  # a bank that was there already draws nothing
        return bank


def _augmented(bank: FaceBank, config: RunConfig) -> FaceSource:
    change, mirror = config.augment.synthetic, bank.world.template.mirror
    return bank if change == NONE else AugmentedFaces(bank, change, config.seed, mirror)


def _photo_turns(config: RunConfig, output: Path) -> Turns | None:
    """Prepared photos, which take their share of the fine-tuning steps."""
    if config.data.photos is None:
        return None
    shards = ShardSet(Path(config.data.photos), output / "bad_samples.jsonl")
    photos = PhotoSet(shards, config.model.image_size, config.augment.photos, config.seed)
    return Turns(photos, config.training.finetune_start, config.data.photo_share)


def _summarise(console: Console, trained: TrainedSystem, output: Path, seconds: float) -> None:
    """Feed-forward figures on unseen faces, and what to type next."""
    results = evaluate(trained, Protocol(latent_steps=0))
    console.print(f"\n128 unseen, unoccluded faces, encoder alone (ratio to the mean face), {seconds / 60:.1f} min:")
    console.print(table(results), highlight=False, soft_wrap=True)
    last = os.path.relpath(output)
    console.print(
        f"\nDone. Checkpoint, config, metrics.csv and pictures are in {output}\n"
        f"Next: python -m nl3dmm.evaluate {last}   or   python -m nl3dmm.fit PHOTO --model {last} -o OUT",
        highlight=False,
        soft_wrap=True,
    )


class _Panels(Callback):
    """Writes a picture of fixed test faces now and then, and at the end; to W&B too when it is on."""

    def __init__(self, world: SyntheticWorld, output: Path, every: int, faces: int = 8):
        self.world, self.output, self.every, self.faces = world, output, every, faces
        self._batch: FaceBatch | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        if not isinstance(pl_module, TrainingModule):
            return
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._draw(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: Trainer, module: TrainingModule) -> None:
        if not trainer.is_global_zero:
            return
        model = module.system.model
        if self._batch is None:
            world = self.world
            other = SyntheticWorld(world.template, world.config, world.image_size, world.seed + 1, world.encoding)
            self._batch = sample_faces(other, self.faces)
        batch = self._batch.to(module.device)
        model.eval()
        with averaged_weights(trainer, module):
            picture = model_panel(model, batch, model.encode(batch.image)).cpu()
        model.train()
        folder = prepare_output_folder(self.output / "panels")
        write_png(picture, folder / f"step-{trainer.global_step:06d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("panel", [picture], step=trainer.global_step)


def _quieten() -> None:
    """Lightning's adverts and hints about things this run decides on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message="Experiment logs directory.*")
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
