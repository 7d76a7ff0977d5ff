"""One training run of the landmark detector: banks of faces, dressed pictures, the network, its weights and card."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nl3dmm.assets.load import load_template
from nl3dmm.config import check_range
from nl3dmm.data.bank import WORLD_VERSION, FaceBank
from nl3dmm.data.landmark_pictures import LandmarkPictures, draw_pictures, regressor_batch
from nl3dmm.nn.encoder import count_parameters
from nl3dmm.nn.landmark_network import LandmarkNetwork, place_of
from nl3dmm.outputs import atomic_path
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig
from nl3dmm.training.landmarks import LandmarkTraining, train_landmarks
from nl3dmm.types import concatenate

WEIGHTS_FILE = "landmarks.safetensors"
_WORLD = WorldConfig(
    yaw=80.0, pitch=30.0, roll=20.0, expression=1.2, identity=1.1, occlusion=0.15, distance_mm=(350.0, 1500.0)
)
_UV_SIZE = (64, 80)
_TEST_PICTURES = 96
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class LandmarkRun:
    """What a run is made of."""

    templates: tuple[str, ...] = ("embedded",)  # names, or paths of template or ICT files
    faces: int = 12_000  # of all templates together
    pictures: int = 14_000  # dressed from them
    image_size: int = 112  # px of the pictures
    training: LandmarkTraining = field(default_factory=LandmarkTraining)

    def __post_init__(self) -> None:
        check_range("landmarks.faces", self.faces, len(self.templates), 10_000_000)
        check_range("landmarks.pictures", self.pictures, 16 * len(self.templates), 10_000_000)
        check_range("landmarks.image_size", self.image_size, 48, 512)


def run_landmark_training(run: LandmarkRun, output: Path, cache: Path, command: str, progress: Progress) -> Path:
    """Train and write the weights, in half precision, with their card; returns the weights' path."""
    seed = run.training.seed
    pictures = landmark_pictures(run, cache, seed, run.pictures, progress)
    steps = run.training.steps

    def show(step: int, losses: dict[str, float]) -> None:
        text = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        progress("training", step, steps, text)

    network = train_landmarks(pictures, run.training, output, show)
    metrics = synthetic_metrics(network, unseen_pictures(run, seed + 1))
    path = output / WEIGHTS_FILE
    facts = asdict(run) | {"templates": [Path(name).name for name in run.templates]}  # no folders of this machine
    write_weights(network, path, {"command": command, "run": facts, "synthetic": metrics})
    return path


def landmark_pictures(run: LandmarkRun, cache: Path, seed: int, count: int, progress: Progress) -> LandmarkPictures:
    """Dressed pictures of all templates in equal parts; the banks of faces are kept in the cache."""
    share, parts = run.faces // len(run.templates), []

    def dressing(done: int, total: int) -> None:
        progress("dressing faces", done, total, "")

    for number, name in enumerate(run.templates):
        world = _world(name, run, seed)
        bank = FaceBank(world, share, cache, lambda done, total: progress("drawing faces", done, total, ""))
        parts.append(draw_pictures(bank.read, share, count // len(run.templates), seed + number, dressing))
    return concatenate(parts)


def unseen_pictures(run: LandmarkRun, seed: int) -> LandmarkPictures:
    """A few pictures of other faces, to measure on."""
    count = _TEST_PICTURES // len(run.templates)
    return concatenate([draw_pictures(_world(name, run, seed).sample, count, count, seed) for name in run.templates])


def _world(name: str, run: LandmarkRun, seed: int) -> SyntheticWorld:
    return SyntheticWorld(load_template(name, uv_size=_UV_SIZE), _WORLD, run.image_size, seed)


@torch.no_grad()
def synthetic_metrics(network: LandmarkNetwork, pictures: LandmarkPictures) -> dict[str, float]:
    """Of crops as in training: error over the face's size, and face or not."""
    batch = regressor_batch(pictures, 0, torch.arange(4 * len(pictures.kind)))
    output = network.regressor(batch.image)
    distance = (output.points - batch.landmarks).norm(dim=-1)[:, 17:].mean(1) / place_of(batch.landmarks).size
    is_face = batch.has_face > 0
    return {
        "median_error_percent_of_face_size": round(100 * float(distance[is_face].median()), 3),
        "faces_recognised": round(float((output.face[is_face] > 0).float().mean()), 4),
        "others_refused": round(float((output.face[~is_face] < 0).float().mean()), 4),
    }


def write_weights(network: LandmarkNetwork, path: Path, facts: dict[str, Any]) -> None:
    """Half-precision weights, and a card with their SHA-256 beside them."""
    tensors = {
        name: value.detach().half().contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    card = {
        "name": "nl3dmm face finder and 68-point landmark regressor",
        "licence": "Apache-2.0",
        "data": f"synthetic faces only (nl3dmm.synthetic, version {WORLD_VERSION}); no photo of a person",
        "parameters": count_parameters(network),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **facts,
    }
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
