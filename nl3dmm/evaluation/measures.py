"""What can be measured on a checkpoint besides its errors, by which protocol, and where the figures are stored."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

WORLD = "world"  # the synthetic faces; all other data are folders
MEASURES = {"texture": (64, 200), "shape": (64, 200), "disentangle": (32, 60)}  # default test faces and latent steps
_HASH_LENGTH = 6


@dataclass(frozen=True)
class Measurement:
    """One of ``MEASURES`` on some data: ``python -m nl3dmm.evaluate MEASURE CHECKPOINT``, followed by ``options``."""

    measure: str
    faces: int
    steps: int
    data: str = WORLD

    @property
    def name(self) -> str:
        """The measure, followed by the data where these are not the synthetic faces."""
        return self.measure if self.data == WORLD else f"{self.measure} {data_label(self.data)}"

    @property
    def options(self) -> tuple[str, ...]:
        data = () if self.data == WORLD else ("--data", self.data)
        return ("--faces", str(self.faces), "--steps", str(self.steps), *data)


def measurement_file(checkpoint: Path, measure: str, data: str = WORLD) -> Path:
    """Where the figures of a measurement are stored: beside the checkpoint."""
    return checkpoint.with_suffix(f".{measure}.{data_label(data)}.json")


def data_label(data: str) -> str:
    """``world``, or a folder's last name with a hash of where it is: two of one name are two, and none is the world."""
    if data == WORLD:
        return WORLD
    folder = Path(data).resolve()
    return f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:_HASH_LENGTH]}"
