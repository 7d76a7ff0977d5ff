"""``python -m nl3dmm.release RUN -o NAME.safetensors``: a trained model in a form to be passed on.

Written are half-precision weights, the template without its linear bases, and a card (.json) that says what the model
was trained on, by which command, under which licence, and how good it is. ``nl3dmm.load`` reads it; ``default`` is the
one that comes with the package. Training state is left out: nothing can go on from a release, but fits need no more.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from nl3dmm.assets.storage import read_template, save_template
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.checkpoint import TrainedSystem, load_system
from nl3dmm.cli import Parser, report_errors
from nl3dmm.config import config_from_dict, config_to_dict
from nl3dmm.errors import AssetError, CheckpointError, ConfigError
from nl3dmm.outputs import atomic_path, prepare_output_folder
from nl3dmm.render import pick_device
from nl3dmm.settings import RunConfig
from nl3dmm.systems.highfidelity import HighFidelity

FORMAT = "nl3dmm.model/1"
DEFAULT = "default"
_SHIPPED = Path(__file__).parent / "weights"


def load(model: str | Path | TrainedSystem = DEFAULT, device: str = "auto") -> TrainedSystem:
    """A trained model, ready for use.

    Args:
        model: ``default``, the model that comes with the package; a released .safetensors file; a checkpoint or run
            folder; or an already loaded system, which is returned as it is, on its device.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        CheckpointError: missing or damaged.
        BackendError: no such device.
    """
    if isinstance(model, TrainedSystem):
        return model
    if str(model) == DEFAULT:  # a folder of that name is ./default
        model = _SHIPPED / f"{DEFAULT}.safetensors"
    name = pick_device(device)
    return read_release(model, name) if Path(model).suffix == ".safetensors" else load_system(model, device=name)


def write_release(trained: TrainedSystem, path: str | Path, facts: dict[str, Any]) -> None:
    """Write the model beside its template and card; matrices and kernels in half precision.

    Args:
        path: of the .safetensors file.
        facts: for the card: licence, data, command, metrics.
    """
    path = Path(path)
    prepare_output_folder(path.parent)
    template = bare(trained.template.to("cpu"))
    weights = {name: _narrow(value) for name, value in trained.cpu_model.state_dict().items()}
    _check_finite(weights, path)
    content = save(weights)
    card = {
        **facts,
        "format": FORMAT,
        "name": path.stem,
        "sha256": hashlib.sha256(content).hexdigest(),
        "template_hash": template.hash,
        "parameters": sum(value.numel() for value in trained.cpu_model.parameters()),
        "step": trained.step,
        "config": config_to_dict(_without_folders(trained.config)),
    }
    save_template(template, _template_file(path))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def read_release(path: str | Path, device: str = "cpu") -> TrainedSystem:
    """What ``write_release`` wrote, with every claim of the card verified.

    Raises:
        CheckpointError: missing, damaged, or of another version.
    """
    path = Path(path)
    card = read_card(path)
    try:
        content, template = path.read_bytes(), read_template(_template_file(path))
        if (hashlib.sha256(content).hexdigest(), template.hash) != (card["sha256"], card["template_hash"]):
            raise _damaged(path, "content that is not its card's")
        weights, step = load_tensors(content), int(card["step"])
        config = config_from_dict(RunConfig, card["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: its config is not one of this version ({error}). Get a newer file.") from error
    except (OSError, SafetensorError, AssetError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"a file that cannot be read ({error!r})") from error
    _check_finite(weights, path)
    system = HighFidelity(config.highfidelity, template)
    try:
        system.model.load_state_dict({name: _widen(value) for name, value in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: weights do not fit the model of its config ({error}).") from error
    return TrainedSystem(system.eval().to(device), config, template.to(device), step, path)


def read_card(path: str | Path) -> dict[str, Any]:
    """What a release says of itself.

    Raises:
        CheckpointError: there is none, or of another format.
    """
    path = Path(path)
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"no readable {path.with_suffix('.json').name} beside it ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise _damaged(path, f"a card of another format than {FORMAT}")
    return card


def bare(template: FaceTemplate) -> FaceTemplate:
    """A template without its linear bases, which a trained model does not need.

    What training took from them stays in the weights: a decoder with a linear base holds principal components of shapes
    that were drawn from them. Whether such weights may be passed on is for the licence of the template to say.
    """
    none = template.vertices.new_zeros(0, *template.vertices.shape)
    return replace(
        template,
        identity_basis=none,
        expression_basis=none,
        expression_names=(),
        albedo_mean=None,
        albedo_basis=None,
    )


def _without_folders(config: RunConfig) -> RunConfig:
    """Names of files and runs, not where they were on the machine that trained."""
    named = {key: getattr(config, key) for key in ("output", "encoder_from", "template_path")}
    data = replace(config.data, cache=None, photos=config.data.photos and Path(config.data.photos).name)
    features = config.loss.perceptual
    features = replace(features, weights=Path(features.weights).name)
    loss = replace(config.loss, perceptual=features)
    return replace(config, data=data, loss=loss, **{key: value and Path(value).name for key, value in named.items()})


def _template_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_template.safetensors")


def _narrow(value: Tensor) -> Tensor:
    """Half precision, but for vectors: the variances of batch norms need their range, and take no room."""
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float16 else value


def _check_finite(weights: dict[str, Tensor], path: Path) -> None:
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{path}: got non-finite weights, in half precision, in {broken[:3]}; expected finite ones. Train again."
        )


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"model: got {path} with {got}; expected a model written by python -m nl3dmm.release: NAME.safetensors, "
        "NAME.json, NAME_template.safetensors, NAME_template.json. Copy all of it again."
    )


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("python -m nl3dmm.release", __doc__)
    parser.add_argument("run", type=Path, help="checkpoint or run folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors file")
    parser.add_argument("--facts", type=Path, help="JSON file for the card: licence, data, command, metrics")
    options = parser.parse(arguments)
    if options.output.suffix != ".safetensors":
        raise CheckpointError(f"output: got {options.output}; expected a .safetensors file. Change the suffix.")
    try:
        facts = json.loads(options.facts.read_text(encoding="utf-8")) if options.facts else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"facts: got {options.facts}, not readable ({error}); expected a JSON file.") from error
    write_release(load_system(options.run), options.output, facts)
    size = sum(file.stat().st_size for file in (options.output, _template_file(options.output))) / 1e6
    print(f"{options.output}: {size:.1f} MB with its template")
    return 0


if __name__ == "__main__":
    sys.exit(main())
