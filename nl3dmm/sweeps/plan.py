"""From a W&B sweep file to the training runs of its grid, all checked before the first one starts."""

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nl3dmm.config import config_from_dict, fill_placeholders, read_yaml
from nl3dmm.errors import ConfigError, Nl3dmmError
from nl3dmm.run_config import run_config
from nl3dmm.settings import RunConfig

_PROGRAM = "nl3dmm.train"
_ARGUMENTS = "${args_no_hyphens}"
_COMMAND = f'["${{env}}", "${{interpreter}}", "-m", "{_PROGRAM}", "{_ARGUMENTS}"]'
_KEYS = ("method", "parameters", "command", "name", "description", "project", "entity", "program", "metric", "run_cap")
_OWN_KEYS = ("output", "resume")  # of the config: decided by the sweep
_UNSAFE = re.compile(r"[^\w.=+-]+")
_PLAIN = re.compile(r"[\w./\\:=+-]+")  # as a path in YAML; others are quoted

Values = dict[str, list[Any]]


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file asks for."""

    path: Path
    command: tuple[str, ...]  # what follows the program: key=value and the place of the parameters
    parameters: Values  # in order
    constants: frozenset[str]  # parameters with ``value`` instead of ``values``
    run_cap: int | None


@dataclass(frozen=True)
class SweepRun:
    """One point of the grid."""

    name: str  # of its folder and log
    setting: str  # its row of the comparison: everything but the seed
    parameters: Mapping[str, Any]
    arguments: tuple[str, ...]  # key=value of ``python -m nl3dmm.train``
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output)


def read_sweep(path: str | Path) -> SweepFile:
    """Read a sweep file of ``wandb sweep`` as far as it can be run here: a grid over the config of a training run.

    Raises:
        ConfigError: unreadable, another method than ``grid``, unknown keys, no or empty parameters, another program.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{path}: got no keys; expected a W&B sweep file with method and parameters. Write them.")
    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            action = f"Did you mean {near[0]!r}?" if near else "Remove it, or run the file with wandb agent."
            raise ConfigError(f"{path}: {key}: got a key that is not run here; expected {', '.join(_KEYS)}. {action}")
    if values.get("method") != "grid":
        raise ConfigError(
            f"{path}: method: got {values.get('method')!r}; expected 'grid', which is what runs here. "
            f"Run other methods with: wandb sweep {path}, then wandb agent ID."
        )
    cap = values.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise ConfigError(f"{path}: run_cap: got {cap!r}; expected a number of runs. Change it.")
    parameters, constants = _parameters(path, values.get("parameters"))
    return SweepFile(Path(path), _command(path, values.get("command")), parameters, constants, cap)


def plan_sweep(file: SweepFile, output: Path, extra: Sequence[str] = ()) -> list[SweepRun]:
    """The runs of the grid, the last parameter changing fastest; every config is loaded and thereby checked.

    Args:
        output: the runs' folders are made in it.
        extra: ``key=value`` for all runs, which win over the file's constants.

    Raises:
        ConfigError: a config that does not load, a value for all runs of what the grid varies, two equal runs.
    """
    fill_placeholders("output folder", str(output.absolute()), {})  # each run would take them for its own
    fixed = [text.partition("=")[0] for text in extra]
    for key in fixed:
        if key in _OWN_KEYS or (key in file.parameters and key not in file.constants):
            action = "Choose the folder with -o" if key in _OWN_KEYS else f"Take it out of {file.path}"
            raise ConfigError(f"{key}: got a value for all runs; expected none, as each has its own. {action}.")
    parameters = {key: values for key, values in file.parameters.items() if key not in fixed}
    points = [dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())]
    runs = [_planned(file, point, output, extra) for point in points[: file.run_cap]]
    if len(runs) > len({run.name for run in runs}):
        raise ConfigError(f"{file.path}: parameters: got runs that are equal or only differ in signs; expected others.")
    return runs


def settle(run: SweepRun, threads: int) -> tuple[SweepRun, bool]:
    """The run with its threads, which are the stored ones where it goes on, and whether it is finished already.

    Raises:
        ConfigError: its folder holds a run of another config, or it starts with an encoder that is not there.
    """
    stored = _stored(run.folder)
    wanted = run.config.training.threads
    own = wanted if wanted is not None else stored[0].training.threads if stored else threads
    config = replace(run.config, training=replace(run.config.training, threads=own))
    run = replace(run, arguments=(*run.arguments, f"training.threads={own}"), config=config)
    if stored is None:
        encoder = config.encoder_from
        if encoder is not None and not Path(encoder).exists():
            raise ConfigError(
                f"encoder_from: got {encoder}, which does not exist; expected a trained run. Train it first."
            )
        return run, False
    run.config.check_continues(stored[0], run.folder)
    return run, stored[1] >= run.config.training.steps


def _stored(folder: Path) -> tuple[RunConfig, int] | None:
    """Config and step of a run folder's last checkpoint; None where training will say what is wrong with it."""
    if not (folder / "checkpoints").is_dir():
        return None
    from nl3dmm.checkpoint import find_checkpoint, read_card
    from nl3dmm.checkpoint_io import load_checkpoint

    try:
        file = find_checkpoint(folder)
        state = load_checkpoint(file)
        return config_from_dict(RunConfig, read_card(state, file)["config"]), int(state["global_step"])
    except Nl3dmmError:
        return None


def _planned(file: SweepFile, point: dict[str, Any], output: Path, extra: Sequence[str]) -> SweepRun:
    """Arguments as the agent of W&B writes them, then those of this sweep."""
    hidden = (*file.constants, *_OWN_KEYS, "seed")
    given = [f"{key}={value}" for key, value in point.items() if key not in _OWN_KEYS]
    arguments = [part for text in file.command for part in (given if text == _ARGUMENTS else [text])] + list(extra)
    parts = [_label(file, key, value) for key, value in point.items() if key not in hidden]
    setting = ", ".join(parts) or file.path.stem
    try:
        config = run_config(arguments)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: run with {', '.join(given)}: {error}") from error
    name = _UNSAFE.sub("_", "-".join([*parts, f"seed{config.seed}"]))
    folder = str(output.absolute() / name)
    arguments += [f"output={folder if _PLAIN.fullmatch(folder) else json.dumps(folder)}", "resume=true"]
    config = replace(config, output=folder, resume=True)
    return SweepRun(name, setting, point | {"seed": config.seed}, tuple(arguments), config)


def _label(file: SweepFile, key: str, value: Any) -> str:
    """A base is known by its stem where that tells it from the others; other values need their key."""
    if key != "base":
        return f"{key}={value}"
    stems = [Path(str(other)).stem for other in file.parameters[key]]
    stem = Path(str(value)).stem
    return stem if stems.count(stem) == 1 else str(Path(str(value)).with_suffix(""))


def _parameters(path: str | Path, raw: Any) -> tuple[Values, frozenset[str]]:
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{path}: parameters: got {raw!r}; expected key: {{values: [...]}}. Name what to vary.")
    found: Values = {}
    for key, entry in raw.items():
        kinds = set(entry) - {"distribution"} if isinstance(entry, dict) else set()
        values = [entry["value"]] if kinds == {"value"} else entry.get("values") if kinds == {"values"} else None
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{path}: parameters.{key}: got {entry!r}; expected values: [...] with at least one, or value: ONE. "
                "Write nested keys with dots."
            )
        found[str(key)] = values
    return found, frozenset(str(key) for key, entry in raw.items() if "value" in entry)


def _command(path: str | Path, raw: Any) -> tuple[str, ...]:
    words = [str(word) for word in raw] if isinstance(raw, list) else []
    rest = words[words.index(_PROGRAM) + 1 :] if _PROGRAM in words else []
    wrong = [word for word in rest if word != _ARGUMENTS and ("=" not in word or word.startswith("-"))]
    if _ARGUMENTS not in rest or wrong:
        raise ConfigError(
            f"{path}: command: got {wrong[0] if wrong else raw!r}; expected {_COMMAND}, with key=value after the "
            "program where all runs share it (base=FILE instead of -c FILE). Write that."
        )
    return tuple(rest)
