"""What the command line chooses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    quick: bool = False
    threads: tuple[int, ...] = (1, 2)
