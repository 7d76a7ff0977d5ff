"""A bank of synthetic faces on disk: the first N samples of a world, drawn once and read many times."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from nl3dmm.errors import OutputError, ShapeError
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.types import Camera, FaceBatch

_CHUNK = 32
# Bump when the same config draws other faces than before: old banks must not be read.
WORLD_VERSION = 3
_FLOATS = {"landmarks": (68, 2), "rotation": (3, 3), "translation": (2,), "scale": (), "inverse_distance": ()}
_FLOATS |= {"principal_point": (2,), "sh_coefficients": (3, 9)}


def default_cache() -> Path:
    """``$NL3DMM_CACHE``, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("NL3DMM_CACHE", Path(base) / "nl3dmm"))


class FaceBank:
    """Random access to samples ``0 .. size - 1`` of a world, at 8 bits per colour value.

    Vertices are cheap and drawn again at each read; images and albedo maps come from memory-mapped files.
    """

    def __init__(
        self,
        world: SyntheticWorld,
        size: int,
        cache: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.world = world
        self.size = size
        self.folder = cache / f"bank-{_key(world, size)}"
        if not (self.folder / "card.json").exists():
            self._build(progress)
        self._arrays = {name: _open(self.folder / f"{name}.npy") for name in _layout(world, 1)}

    def __len__(self) -> int:
        return self.size

    def read(self, indices: Int[Tensor, " batch"]) -> FaceBatch:
        """Samples with all truth; the same values for any batch split."""
        rows = indices.numpy()
        values = {name: torch.from_numpy(np.ascontiguousarray(array[rows])) for name, array in self._arrays.items()}
        size = self.world.image_size
        mask = np.unpackbits(values["mask"].numpy(), axis=1, count=size * size)
        camera = Camera(
            *(values[name] for name in ("rotation", "translation", "scale", "inverse_distance", "principal_point"))
        )
        return FaceBatch(
            image=values["image"].float() / 255,
            index=indices,
            landmarks=values["landmarks"],
            mask=torch.from_numpy(mask).bool().view(-1, size, size),
            camera=camera,
            sh_coefficients=values["sh_coefficients"],
            vertices=self.world.vertices(indices),
            albedo=values["albedo"].float() / 255,
        )

    def _build(self, progress: Callable[[int, int], None]) -> None:
        """Draw into a sibling folder and rename it when complete, so that a killed run leaves no half bank."""
        partial = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            arrays = {
                name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, (self.size, *shape))
                for name, (dtype, shape) in _layout(self.world, self.size).items()
            }
            for indices in torch.arange(self.size).split(_CHUNK):
                _store(arrays, self.world.sample(indices))
                progress(int(indices[-1]) + 1, self.size)
            for array in arrays.values():
                array.flush()
            card = {"size": self.size, "seed": self.world.seed, "world": asdict(self.world.config)}
            (partial / "card.json").write_text(json.dumps(card, indent=1))
            try:
                partial.rename(self.folder)
            except OSError:
                if not (self.folder / "card.json").exists():  # else another process was faster with the same faces
                    raise
        except OSError as error:
            raise OutputError(
                f"data.cache: cannot write {self.folder} ({error.strerror}); expected a writable folder with room for "
                f"{_bytes(self.world, self.size) / 1e6:.0f} MB. Set data.cache to another folder."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _bytes(world: SyntheticWorld, size: int) -> int:
    return sum(np.dtype(dtype).itemsize * math.prod((size, *shape)) for dtype, shape in _layout(world, size).values())


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise OutputError(
            f"data.cache: got a damaged bank file {path} ({error}); expected what this bank once wrote. "
            "Delete its folder, it will be drawn again."
        ) from error


def _key(world: SyntheticWorld, size: int) -> str:
    facts = [
        WORLD_VERSION,
        asdict(world.config),
        world.template.hash,
        world.image_size,
        world.seed,
        world.encoding,
        size,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _layout(world: SyntheticWorld, size: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    pixels = world.image_size
    packed = (pixels * pixels + 7) // 8
    layout: dict[str, tuple[type, tuple[int, ...]]] = {name: (np.float32, shape) for name, shape in _FLOATS.items()}
    layout |= {"image": (np.uint8, (3, pixels, pixels)), "mask": (np.uint8, (packed,))}
    return layout | {"albedo": (np.uint8, (3, *world.template.uv_size))}


def _store(arrays: Mapping[str, np.ndarray], batch: FaceBatch) -> None:
    if batch.albedo is None or batch.mask is None:
        raise ShapeError("batch: got no albedo or mask; expected a synthetic world's sample. Use SyntheticWorld.")
    rows = slice(int(batch.index[0]), int(batch.index[-1]) + 1)
    for name in _FLOATS:
        source = batch if hasattr(batch, name) else batch.camera
        arrays[name][rows] = getattr(source, name).numpy()
    arrays["image"][rows] = (batch.image * 255).round().to(torch.uint8).numpy()
    arrays["albedo"][rows] = (batch.albedo * 255).round().to(torch.uint8).numpy()
    arrays["mask"][rows] = np.packbits(batch.mask.flatten(1).numpy(), axis=1)
