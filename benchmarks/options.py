"""What the command line chooses."""

from dataclasses import dataclass, field
from pathlib import Path

from nl3dmm.assets.locations import asset_folder


def default_configs() -> tuple[Path, ...]:
    """The small model and the paper's size."""
    return tuple(asset_folder("configs") / f"{name}.yaml" for name in ("quickstart", "highfidelity"))


@dataclass(frozen=True)
class Options:
    quick: bool = False
    threads: tuple[int, ...] = (1, 2)
    configs: tuple[Path, ...] = field(default_factory=default_configs)  # of training
    batches: tuple[int, ...] = ()  # of training; none: what suits the machine
