"""Trained systems on disk: what a checkpoint says about itself, and loading with every claim verified."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nl3dmm.assets.load import load_template
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.checkpoint_io import load_checkpoint
from nl3dmm.config import config_from_dict, config_to_dict
from nl3dmm.data.labels import LabelConfig
from nl3dmm.errors import AssetError, CheckpointError, ConfigError
from nl3dmm.model import FaceModel
from nl3dmm.settings import RunConfig
from nl3dmm.systems.highfidelity import HighFidelity

FORMAT = 1
_CARD = {"format", "config", "template_name", "template_hash"}
TEMPLATE_FILE = "template.safetensors"  # beside the checkpoint's folder: the run's own copy


@dataclass(frozen=True)
class TrainedSystem:
    """A system in evaluation mode with the config and template that it was trained with."""

    system: HighFidelity
    config: RunConfig
    template: FaceTemplate
    step: int
    path: Path

    @cached_property
    def cpu_model(self) -> FaceModel:
        """The model, or one copy of it on the CPU."""
        model = self.system.model
        return model if model.device.type == "cpu" else copy.deepcopy(model).cpu()


def describe(config: RunConfig, template: FaceTemplate) -> dict[str, Any]:
    """What a checkpoint carries next to the weights; plain values only."""
    return {
        "format": FORMAT,
        "config": config_to_dict(config),
        "template_name": template.name,
        "template_hash": template.hash,
    }


def check_template(card: dict[str, Any], template: FaceTemplate, path: Path) -> None:
    """Raises: CheckpointError: the weights were trained on another template."""
    if card["template_hash"] != template.hash:
        raise CheckpointError(
            f"{path}: got a checkpoint of template {card['template_name']!r} ({card['template_hash'][:12]}); expected "
            f"{template.name!r} ({template.hash[:12]}). Use the template it was trained with, or train again."
        )


def read_card(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The description inside a checkpoint's state."""
    card = state.get("nl3dmm")
    if not isinstance(card, dict) or card.get("format") != FORMAT or not set(card) >= _CARD:
        raise CheckpointError(
            f"{path}: got a file without nl3dmm's description of format {FORMAT}; expected a checkpoint written by "
            "python -m nl3dmm.train. Choose another file."
        )
    return card


def find_checkpoint(path: str | Path, argument: str = "model") -> Path:
    """A checkpoint file, or the last one of a run folder."""
    path = Path(path)
    candidates = [path] if path.is_file() else [path / "checkpoints" / "last.ckpt", path / "last.ckpt"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    what, action = "a .ckpt file or a run folder", "Train that run first."
    if argument == "model":
        what += ", or for fits 'default' or a released .safetensors file"
        action = "Train one with: python -m nl3dmm.train"
    raise CheckpointError(f"{argument}: got {path}, where no checkpoint is; expected {what}. {action}")


def load_system(path: str | Path, template: FaceTemplate | None = None, device: str = "cpu") -> TrainedSystem:
    """Load a checkpoint for use: verified file, strict weights, matching template, evaluation mode.

    Args:
        path: checkpoint file or run folder.
        template: used instead of the run's own copy; must be the one that the checkpoint was trained with.

    Raises:
        CheckpointError: missing, damaged, of another template, or with weights that do not fit its own config.
    """
    file = find_checkpoint(path)
    state = load_checkpoint(file)
    card = read_card(state, file)
    try:
        config = config_from_dict(RunConfig, card["config"])
    except ConfigError as error:
        raise CheckpointError(f"{file}: its config is not one of this version ({error}). Train again.") from error
    template = template or _run_template(file, config)
    check_template(card, template, file)
    system = HighFidelity(config.highfidelity, template)
    weights = {key.removeprefix("system."): value for key, value in state["state_dict"].items()}
    try:
        system.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: weights do not fit the model of its config ({error}). Train again.") from error
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{file}: got non-finite weights in {broken[:3]}; expected finite ones. Use an older one."
        )
    return TrainedSystem(system.eval().to(device), config, template.to(device), int(state["global_step"]), file)


def load_encoder(path: str | Path, model: FaceModel, labels: LabelConfig) -> None:
    """Give a new model the encoder of a trained system, and its linear bases where they come from the same labels.

    All else of the decoders stays as it is.

    Raises:
        CheckpointError: there is none, or it belongs to another template, image size, camera, light or network.
    """
    other = load_system(find_checkpoint(path, "encoder_from"))
    found, wanted = _encoder_facts(other.system.model), _encoder_facts(model)
    for name, value in wanted.items():
        if found[name] != value:
            raise CheckpointError(
                f"encoder_from: got {path}, whose {name} is {found[name]}; expected this run's, {value}. "
                "Choose another run, or change this one's config."
            )
    model.encoder.load_state_dict(other.system.model.encoder.state_dict())
    bases, own = other.system.model.linear_decoders, model.linear_decoders
    if bases and own and other.config.labels == labels:
        for base, target in zip(bases, own, strict=True):
            target.load_state_dict(base.state_dict())


def _encoder_facts(model: FaceModel) -> dict[str, Any]:
    """What an encoder's outputs depend on beside its weights."""
    config = model.config
    names = ("image_size", "shape_latent", "albedo_latent", "encoder", "camera", "encoding")
    return {"template": model.template.hash[:12]} | {name: getattr(config, name) for name in names}


def _run_template(file: Path, config: RunConfig) -> FaceTemplate:
    for folder in (file.parent.parent, file.parent):
        if (folder / TEMPLATE_FILE).is_file():
            return load_template(str(folder / TEMPLATE_FILE))
    try:
        return load_template(config.template, config.template_path, config.uv_size)
    except AssetError as error:
        raise CheckpointError(f"{file}: its template cannot be loaded ({error})") from error
