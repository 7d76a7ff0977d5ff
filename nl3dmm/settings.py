"""The config of a run: everything ``python -m nl3dmm.train --print-config`` shows."""

from dataclasses import dataclass, field

from nl3dmm.config import check_range
from nl3dmm.data.augment import NONE, PHOTOS, AugmentConfig
from nl3dmm.data.labels import SAMPLES as LABEL_SAMPLES
from nl3dmm.data.labels import LabelConfig
from nl3dmm.errors import ConfigError
from nl3dmm.model import ModelConfig
from nl3dmm.synthetic.world import WorldConfig
from nl3dmm.systems.highfidelity import HighFidelityConfig, LossConfig

WANDB_MODES = ("auto", "online", "offline", "disabled")
_MAY_DIFFER = ("output", "resume", "logging")  # between a run and its continuation
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class DataConfig:
    """Where faces come from: a bank of the synthetic world's first ``samples`` faces, and prepared photos."""

    samples: int = 8192
    cache: str | None = None  # folder of the bank; default $NL3DMM_CACHE or the user's cache folder
    workers: int = 0  # loader processes
    photos: str | None = None  # folder that nl3dmm.prep wrote: photos join in fine-tuning
    photo_share: float = 0.5  # of the fine-tuning steps, whose batches are photos

    def __post_init__(self) -> None:
        check_range("data.samples", self.samples, 1, 1e9)
        check_range("data.workers", self.workers, 0, 1024)
        check_range("data.photo_share", self.photo_share, 0, 1)


@dataclass(frozen=True)
class AugmentSettings:
    """How faces change each time a run sees them; their landmarks, masks, cameras and light change along.

    Colours do not: labels of albedo and light stay what they were, so synthetic faces are left as they are by default.
    """

    photos: AugmentConfig = PHOTOS
    synthetic: AugmentConfig = NONE


@dataclass(frozen=True)
class TrainingConfig:
    """A run is as long as the images it sees; Adam with warm-up and cosine decay."""

    images: int = 37_000
    batch_size: int = 16
    linear_fraction: float = 0.2  # of the images: the encoder with linear decoders, on labels alone
    pretrain_fraction: float = 0.2  # of the images: the nonlinear decoders, on labels alone; the rest is fine-tuning
    learning_rate: float = 1e-3
    encoder_rate: float = 1.0  # the encoder's share of the learning rate after the linear stage, which has trained it
    beta1: float = 0.5
    beta2: float = 0.999
    warmup_steps: int = 50
    decay_start: float = 0.5  # fraction of the steps after which the rate falls
    final_learning_rate: float = 0.03  # fraction that the cosine ends at
    gradient_clip: float = 50.0
    ema: float = 0.0  # decay per step of the averaged weights that checkpoints are used with, such as 0.999; 0: none
    encoder_step: bool = False  # two steps per batch: the encoder with landmarks, then all without (released code)
    precision: str = "auto"  # of the networks, the rest is float32; auto: bfloat16 where the hardware has it
    threads: int | None = None  # CPU threads; default: all cores
    checkpoint_every: int = 500  # steps
    panel_every: int = 500  # steps

    def __post_init__(self) -> None:
        check_range("training.batch_size", self.batch_size, 2, 1e6)
        check_range("training.images", self.images, self.batch_size, 1e12)
        check_range("training.decay_start", self.decay_start, 0, 1)
        check_range("training.linear_fraction", self.linear_fraction, 0, 1)
        check_range("training.pretrain_fraction", self.pretrain_fraction, 0, 1)
        both = round(self.linear_fraction + self.pretrain_fraction, 9)  # 0.8 + 0.2 is a little more than 1
        check_range("training.linear_fraction + training.pretrain_fraction", both, 0, 1)
        check_range("training.learning_rate", self.learning_rate, 0, 10)
        check_range("training.encoder_rate", self.encoder_rate, 0, 100)
        check_range("training.beta1", self.beta1, 0, 0.9999)
        check_range("training.beta2", self.beta2, 0, 0.999999)
        check_range("training.warmup_steps", self.warmup_steps, 0, 1e9)
        check_range("training.final_learning_rate", self.final_learning_rate, 0, 1)
        check_range("training.ema", self.ema, 0, 0.999999)
        check_range("training.gradient_clip", self.gradient_clip, 1e-6, 1e9)
        check_range("training.checkpoint_every", self.checkpoint_every, 1, 1e9)
        check_range("training.panel_every", self.panel_every, 1, 1e9)
        if self.threads is not None:
            check_range("training.threads", self.threads, 1, 1024)
        if self.precision not in PRECISIONS:
            raise ConfigError(f"training.precision: got {self.precision!r}; expected one of {PRECISIONS}. Choose one.")

    @property
    def steps(self) -> int:
        """Optimiser steps per rank; the last incomplete batch is dropped."""
        return self.images // self.batch_size

    def stage(self, step: int) -> str:
        """``linear``, ``pretrain`` or ``finetune``."""
        if step < round(self.steps * self.linear_fraction):
            return "linear"
        return "pretrain" if step < self.finetune_start else "finetune"

    @property
    def finetune_start(self) -> int:
        """The first step of fine-tuning."""
        return round(self.steps * (self.linear_fraction + self.pretrain_fraction))

    def finetune_progress(self, step: int) -> float:
        """Fraction of the fine-tuning that is done before this step; 0 in the stages before it."""
        first = self.finetune_start
        return max(0, step - first) / max(1, self.steps - first)


@dataclass(frozen=True)
class LoggingConfig:
    """CSV always; W&B ``auto`` means online with an account on this machine, else offline."""

    wandb: str = "auto"
    project: str = "nl3dmm"
    every: int = 20  # steps

    def __post_init__(self) -> None:
        check_range("logging.every", self.every, 1, 1e9)
        if self.wandb not in WANDB_MODES:
            raise ConfigError(f"logging.wandb: got {self.wandb!r}; expected one of {WANDB_MODES}. Choose one.")


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    system: str = "highfidelity"
    output: str = "runs/quickstart"
    seed: int = 0
    resume: bool = True  # go on from the output folder's last checkpoint when there is one
    encoder_from: str | None = None  # checkpoint or run folder whose encoder this run starts with
    template: str = "embedded"  # embedded | ict | a template file
    template_path: str | None = None  # the file that an imported template comes from
    uv_size: tuple[int, int] = (192, 224)  # rows, columns
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    labels: LabelConfig = field(default_factory=LabelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 1_000_000)  # larger seeds belong to test faces
        if self.system != "highfidelity":
            raise ConfigError(f"system: got {self.system!r}; expected 'highfidelity'. Other systems come later.")
        most = min(LABEL_SAMPLES, self.data.samples) // 2  # with more, shapes are as good as exact
        if self.labels.shape_coefficients > most:
            got = f"{self.labels.shape_coefficients} with data.samples={self.data.samples}"
            raise ConfigError(
                f"labels.shape_coefficients: got {got}; expected at most {most}, one for two faces. Change one of them."
            )
        if self.training.encoder_step and self.loss.landmark_reaches != "encoder":
            raise ConfigError(
                f"training.encoder_step: got true with loss.landmark_reaches={self.loss.landmark_reaches}; expected "
                "encoder, or its first step would move the camera alone. Change one of them."
            )

    def check_continues(self, stored: "RunConfig", folder: object) -> None:
        """Raises: ConfigError: ``folder`` holds a run whose config differs in more than output, resume and logging."""
        keys = [key for key in vars(self) if key not in _MAY_DIFFER]
        differing = [key for key in keys if getattr(self, key) != getattr(stored, key)]
        if differing:
            raise ConfigError(
                f"output: got {folder}, which holds a run with other values of {', '.join(differing)}; expected the "
                "same config to go on with it. Choose another folder or delete that one."
            )

    @property
    def highfidelity(self) -> HighFidelityConfig:
        return HighFidelityConfig(self.model, self.loss)
