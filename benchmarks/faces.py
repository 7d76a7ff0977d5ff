"""Samples of the synthetic world."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from benchmarks.measure import Case, Section, Stopwatch
from benchmarks.options import Options
from nl3dmm.assets.load import load_template
from nl3dmm.assets.locations import asset_folder
from nl3dmm.config import load_config
from nl3dmm.settings import RunConfig
from nl3dmm.synthetic.world import SyntheticWorld


def world(options: Options) -> Iterator[Section]:
    """Complete samples: shape, albedo, light, picture."""
    config, size = _config(), _batch(options)
    smooth = _world(config)
    plain = SyntheticWorld(smooth.template, replace(config.world, super_sampling=1), smooth.image_size)

    def draw(watch: Stopwatch, world: SyntheticWorld) -> None:
        with watch.phase("sample"):
            world.sample(torch.arange(size))

    cases = [
        Case({"threads": threads, "super_sampling": each.config.super_sampling}, partial(draw, world=each), size)
        for threads, each in product(options.threads, (smooth, plain))
    ]
    yield Section("sample", f"synthetic face of {smooth.image_size} px, ms", cases, "super_sampling")


def _batch(options: Options) -> int:
    return 2 if options.quick else 16


def _config() -> RunConfig:
    return load_config(RunConfig, [asset_folder("configs") / "quickstart.yaml"])


def _world(config: RunConfig) -> SyntheticWorld:
    return SyntheticWorld(load_template("embedded", None, config.uv_size), config.world, config.model.image_size)
