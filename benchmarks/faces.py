"""Samples of the synthetic world."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.measure import Case, Section, Stopwatch
from benchmarks.options import Options
from nl3dmm.assets.load import load_template
from nl3dmm.config import load_config
from nl3dmm.settings import RunConfig
from nl3dmm.synthetic.world import SyntheticWorld


def world(options: Options) -> Iterator[Section]:
    """Complete samples: shape, albedo, light, picture; at the sizes of every config."""
    size = 2 if options.quick else 16

    def draw(watch: Stopwatch, world: SyntheticWorld) -> None:
        with watch.phase("sample"):
            world.sample(torch.arange(size))

    cases = []
    for name, smooth in ((path.stem, _world(path)) for path in options.configs):
        plain = SyntheticWorld(smooth.template, replace(smooth.config, super_sampling=1), smooth.image_size)
        for threads, each in product(options.threads, (smooth, plain)):
            facts = {"config": name, "threads": threads, "super_sampling": each.config.super_sampling}
            cases.append(Case(facts, partial(draw, world=each), size))
    yield Section("sample", "synthetic face, ms", cases, "super_sampling")


def _world(path: Path) -> SyntheticWorld:
    config = load_config(RunConfig, [path])
    return SyntheticWorld(load_template("embedded", None, config.uv_size), config.world, config.model.image_size)
