"""Train the face and landmark detector on the synthetic world alone."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nl3dmm.config import check_range
from nl3dmm.data.landmark_pictures import LandmarkPictures, TemptingPlaces, TrainingBatch, finder_batch, regressor_batch
from nl3dmm.errors import CheckpointError
from nl3dmm.nn.landmark_network import CROP_SIZE, FacePlace, LandmarkNetwork, finder_loss, place_of, regressor_loss
from nl3dmm.outputs import atomic_path
from nl3dmm.training.landmark_mining import tempting_places

CHECKPOINT = "last.pt"
_WARM_UP = 0.04  # share of the steps


@dataclass(frozen=True)
class LandmarkTraining:
    """Hyper-parameters; a run is a function of them and of its pictures."""

    steps: int = 2900
    batch_size: int = 96  # crops; the finder sees a third as many pictures
    learning_rate: float = 2e-3  # at the end of the warm-up; falls to 0 along a cosine
    weight_decay: float = 1e-4
    seed: int = 0
    save_every: int = 200  # steps
    mine_after: float = 0.75  # share of the steps after which places that tempt the network are searched for
    mine_pictures: int = 9000  # in so many pictures
    workers: int = 0  # processes that prepare batches; 0: this one

    def __post_init__(self) -> None:
        check_range("landmarks.steps", self.steps, 1, 10_000_000)
        check_range("landmarks.batch_size", self.batch_size, 6, 4096)
        check_range("landmarks.learning_rate", self.learning_rate, 0, 1)
        check_range("landmarks.weight_decay", self.weight_decay, 0, 1)
        check_range("landmarks.mine_after", self.mine_after, 0, 1)
        check_range("landmarks.mine_pictures", self.mine_pictures, 1, 10_000_000)
        check_range("landmarks.save_every", self.save_every, 1, 10_000_000)


def train_landmarks(
    pictures: LandmarkPictures,
    config: LandmarkTraining,
    folder: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> LandmarkNetwork:
    """Train, or go on where the folder's checkpoint stands; what a resumed run does equals one without a stop.

    Args:
        folder: where the checkpoint is kept; no checkpoints without it.

    Raises:
        CheckpointError: the folder's checkpoint is damaged or belongs to other settings.
    """
    torch.manual_seed(config.seed)
    network = LandmarkNetwork()
    network.regressor.mean_points.copy_(_mean_crop_points(pictures))
    network = network.to(memory_format=torch.channels_last)
    state = _State(network, torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay))
    facts = _decisive(config, pictures)
    _resume(folder, facts, state)
    mining = round(config.mine_after * config.steps)
    while state.step < config.steps:
        if state.step >= mining and state.tempting is None:
            state.tempting = tempting_places(
                network.eval(),
                pictures,
                config.seed,
                config.mine_pictures,
                lambda done, total: progress(state.step, {"searched for tempting places": done / total}),
            )
        stop = config.steps if state.step >= mining else mining
        batches = _StepBatches(pictures, config, state.tempting)
        network.train()
        for small, crops in DataLoader(batches, None, sampler=range(state.step, stop), num_workers=config.workers):
            losses = _step(state, config, small, crops)
            progress(state.step, losses)
            if folder is not None and (state.step % config.save_every == 0 or state.step == config.steps):
                _save(folder, facts, state)
    return network.eval()


@dataclass
class _State:
    """What changes in a run."""

    network: LandmarkNetwork
    optimizer: torch.optim.Optimizer
    step: int = 0
    tempting: TemptingPlaces | None = None


def _step(state: _State, config: LandmarkTraining, small: TrainingBatch, crops: TrainingBatch) -> dict[str, float]:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    losses = _losses(state.network, small, crops)
    state.optimizer.zero_grad()
    torch.stack([value for name, value in losses.items() if name != "distance"]).sum().backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 10.0)
    state.optimizer.step()
    state.step += 1
    return {name: value.item() for name, value in losses.items()}


def learning_rate(config: LandmarkTraining, step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm_up = min(1.0, (step + 1) / (_WARM_UP * config.steps))
    cosine = torch.tensor(torch.pi * step / config.steps).cos().item()
    return config.learning_rate * warm_up * 0.5 * (1 + cosine)


class _StepBatches(Dataset[tuple[TrainingBatch, TrainingBatch]]):
    """Item k is what the finder and the regressor see at step k."""

    def __init__(self, pictures: LandmarkPictures, config: LandmarkTraining, tempting: TemptingPlaces | None):
        self.pictures, self.config, self.tempting = pictures, config, tempting

    def __getitem__(self, step: int) -> tuple[TrainingBatch, TrainingBatch]:
        seed, crops = self.config.seed, self.config.batch_size
        small = crops // 3
        return (
            finder_batch(self.pictures, seed, torch.arange(step * small, (step + 1) * small)),
            regressor_batch(self.pictures, seed, torch.arange(step * crops, (step + 1) * crops), self.tempting),
        )


def _losses(network: LandmarkNetwork, small: TrainingBatch, crops: TrainingBatch) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.finder(small.image.contiguous(memory_format=torch.channels_last))
        output = network.regressor(crops.image.contiguous(memory_format=torch.channels_last))
    losses = finder_loss(maps, place_of(small.landmarks), small.has_face)
    return losses | regressor_loss(output, crops.landmarks, crops.has_face)


def _mean_crop_points(pictures: LandmarkPictures) -> Tensor:
    place = place_of(pictures.landmarks)
    return place.to_crop().points(pictures.landmarks).mean(0) / CROP_SIZE - 0.5


def _decisive(config: LandmarkTraining, pictures: LandmarkPictures) -> dict[str, Any]:
    """What a run's result depends on."""
    digest = hashlib.sha256()
    for values in (pictures.image, pictures.landmarks, pictures.kind):
        digest.update(values.contiguous().numpy().tobytes())
    facts = {name: value for name, value in asdict(config).items() if name not in ("workers", "save_every")}
    return facts | {"pictures": digest.hexdigest()}


def _save(folder: Path, facts: dict[str, Any], state: _State) -> None:
    tempting = state.tempting
    values = {
        "step": state.step,
        "config": facts,
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "tempting": None if tempting is None else [tempting.picture, *vars(tempting.place).values()],
    }
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(values, temporary)


def _resume(folder: Path | None, facts: dict[str, Any], state: _State) -> None:
    """Bring the state to where the folder's checkpoint stands, if there is one."""
    if folder is None or not (folder / CHECKPOINT).is_file():
        return
    values = _read(folder / CHECKPOINT)
    if values["config"] != facts:
        raise CheckpointError(
            f"output: got {folder}, which holds a run of other settings or pictures {values['config']}; expected an "
            "empty folder or the same ones. Choose another output or delete that folder."
        )
    state.network.load_state_dict(values["network"])
    state.optimizer.load_state_dict(values["optimizer"])
    state.step = values["step"]
    if values["tempting"] is not None:
        picture, *place = values["tempting"]
        state.tempting = TemptingPlaces(picture, FacePlace(*place))


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: got a damaged checkpoint ({error}); expected one that this command wrote. Delete it."
        ) from error
