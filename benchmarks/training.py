"""Steps of training: speed by stage and precision, where the time goes, parameters."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import Case, Facts, Section, Stopwatch
from benchmarks.options import Options
from benchmarks.parts import Part, PartClock
from benchmarks.sizes import parameters
from nl3dmm.assets.load import load_template
from nl3dmm.config import load_config
from nl3dmm.data.bank import FaceBank
from nl3dmm.data.labels import CoarseLabels
from nl3dmm.data.module import batch_indices
from nl3dmm.errors import BackendError
from nl3dmm.render import default_device
from nl3dmm.settings import RunConfig
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.training.module import TrainingModule, network_dtype
from nl3dmm.types import FaceBatch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STAGES = {"linear": (1.0, 0.0), "pretrain": (0.0, 1.0), "finetune": (0.0, 0.0)}  # their fractions of the images
_COARSE = {"losses forward": "forward", "losses backward": "backward"}
_CPU_PIXELS = 16 * 112**2  # of a batch, so that a step at the paper's size takes a second or two
_GPU_BATCH = 128
_QUICK_PX = 32  # of the perceptual network
_FACES = 32  # of the bank; larger batches show them again
Phase = Callable[[str], AbstractContextManager[None]]


def sections(options: Options) -> Iterator[Section | Facts]:
    """Whole steps as ``TrainingModule`` takes them; Lightning and its callbacks are not around it."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainees = {path.stem: Trainee(_config(path, options.quick), Path(folder), options) for path in options.configs}
        yield _steps(trainees, options)
        yield _profile(trainees, options)
        yield parameters({name: (trainee.config, trainee.module.system) for name, trainee in trainees.items()})


class Trainee:
    """A system in training, with a small bank of faces."""

    def __init__(self, config: RunConfig, folder: Path, options: Options):
        self.config = config
        self.device = torch.device(default_device())
        template = load_template(config.template, config.template_path, config.uv_size)
        model = config.model
        world = SyntheticWorld(template, config.world, model.image_size, config.seed, model.shading_space)
        self.bank = FaceBank(world, 2 if options.quick else _FACES, folder)
        self.labels = CoarseLabels(config.labels, self.bank)
        self.module = TrainingModule(config, template).to(self.device).train()
        self.module.log = lambda *_, **__: None  # there is no trainer to log to
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.batches = options.batches or (_batch(config, self.device, options.quick),)

    def read(self, size: int) -> FaceBatch:
        rows = batch_indices(self.config.seed, 0, size, len(self.bank))
        return self.labels(self.bank.read(rows)).to(self.device)

    def set(self, stage: str, dtype: str) -> None:
        """What the next steps are."""
        fractions = dict(zip(("linear_fraction", "pretrain_fraction"), _STAGES[stage], strict=True))
        self.module.config = replace(self.config, training=replace(self.config.training, **fractions))
        self.module.system.model.network_dtype = _DTYPES[dtype]
        if dtype == "bfloat16" and network_dtype(replace(self.config.training, precision="auto")) != torch.bfloat16:
            raise BackendError("this machine does not multiply bfloat16 natively")

    def step(self, batch: FaceBatch, phase: Phase) -> None:
        self.optimizer.zero_grad()
        with phase("losses forward"):
            loss = self.module.training_step(batch, 0)["loss"]
        with phase("losses backward"):
            loss.backward()
        with phase("gradient clip"):
            self.module.configure_gradient_clipping(self.optimizer)
        with phase("optimiser"):
            self.optimizer.step()

    def parts(self) -> list[Part]:
        """What the fine-tuning consists of besides the losses."""
        system = self.module.system
        model = system.model
        parts = [
            Part("encoder", model.encoder),
            Part("shape decoder", model.shape_decoder),
            Part("albedo decoder", model.albedo_decoder),
            Part("meshes", model, "decode"),
            Part("renderer", model, "render_four"),
        ]
        perceptual = self.config.loss.finetune.perceptual > 0
        return [*parts, Part("perceptual network", system.feature_network())] if perceptual else parts


def _steps(trainees: dict[str, Trainee], options: Options) -> Section:
    """Steps on a batch that is there."""

    def step(watch: Stopwatch, trainee: Trainee, batch: FaceBatch, stage: str, dtype: str) -> None:
        trainee.set(stage, dtype)
        with _peak_memory(watch, trainee.device):
            trainee.step(batch, lambda name: watch.phase(_COARSE.get(name, "update")))

    cases = []
    for name, trainee in trainees.items():
        for size in trainee.batches:
            batch = trainee.read(size)
            for threads, stage, dtype in product(_threads(trainee, options), _STAGES, _DTYPES):
                labels = {"config": name, "batch": size, "threads": threads, "stage": stage, "dtype": dtype}
                cases.append(Case(labels, partial(step, trainee=trainee, batch=batch, stage=stage, dtype=dtype), size))
    return Section("step", "training steps, ms per image", cases, "dtype")


def _profile(trainees: dict[str, Trainee], options: Options) -> Section:
    """Fine-tuning steps that read their batch: as a whole, and part by part."""

    def whole(watch: Stopwatch, trainee: Trainee, dtype: str, size: int) -> None:
        trainee.set("finetune", dtype)
        with watch.phase("step"):
            trainee.step(trainee.read(size), lambda _: nullcontext())

    def parts(watch: Stopwatch, trainee: Trainee, dtype: str, size: int) -> None:
        trainee.set("finetune", dtype)
        clock = PartClock(watch)
        with clock.watching(trainee.parts()):
            with clock.part("data"):
                batch = trainee.read(size)
            trainee.step(batch, clock.part)

    cases = []
    for name, trainee in trainees.items():
        size = trainee.batches[0]
        for threads, dtype in product(_threads(trainee, options), _DTYPES):
            labels = {"config": name, "batch": size, "threads": threads, "dtype": dtype}
            for timing, task in (("whole", whole), ("parts", parts)):
                case = partial(task, trainee=trainee, dtype=dtype, size=size)
                cases.append(Case({**labels, "timing": timing}, case, size))
    return Section("profile", "a fine-tuning step, ms per image", cases, "timing", "wall")


@contextmanager
def _peak_memory(watch: Stopwatch, device: torch.device) -> Iterator[None]:
    """Of tensors, on CUDA alone."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if device.type == "cuda":
        watch.facts["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20


def _threads(trainee: Trainee, options: Options) -> tuple[int, ...]:
    return options.threads if trainee.device.type == "cpu" else (max(options.threads),)


def _batch(config: RunConfig, device: torch.device, quick: bool) -> int:
    if quick:
        return 2
    if device.type == "cuda":
        return max(_GPU_BATCH, config.training.batch_size)
    return min(config.training.batch_size, max(2, _CPU_PIXELS // config.model.image_size**2))


def _config(path: Path, quick: bool) -> RunConfig:
    """All terms are on, from the start of the fine-tuning; random perceptual features cost what others cost."""
    config = load_config(RunConfig, [path])
    size = config.loss.perceptual.size
    perceptual = replace(config.loss.perceptual, weights="random", size=min(size, _QUICK_PX) if quick else size)
    return replace(config, loss=replace(config.loss, perceptual=perceptual, perceptual_start=0.0))
