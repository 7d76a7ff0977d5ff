"""The config of a run as a command line names it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nl3dmm.assets.locations import asset_folder
from nl3dmm.config import fill_placeholders, load_config
from nl3dmm.settings import RunConfig

DEFAULT_CONFIG = "quickstart.yaml"


def run_config(overrides: Sequence[str], file: str | Path | None = None) -> RunConfig:
    """A config file, ``base=FILE`` or else the default config, changed by ``key=value``.

    ``{seed}`` in ``output`` and ``encoder_from`` becomes the seed.

    Raises:
        ConfigError: see ``load_config``; or other braces there.
    """
    files = [] if file is None else [file]
    config = load_config(RunConfig, files, overrides, asset_folder("configs") / DEFAULT_CONFIG)
    texts = {key: getattr(config, key) for key in ("output", "encoder_from")}
    filled = {key: fill_placeholders(key, text, {"seed": config.seed}) for key, text in texts.items() if text}
    return replace(config, **filled)
