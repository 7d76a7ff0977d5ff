"""A bank of synthetic faces on disk: the first N samples of a world, drawn once and read many times."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from torch import Tensor

from nl3dmm.errors import OutputError, ShapeError
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.types import Camera, FaceBatch

_CHUNK = 32
_PARTIAL = ".partial"
# Bump when the same config draws other faces than before: old banks must not be read.
WORLD_VERSION = 4
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
        _remove_abandoned(cache)
        self._complete(progress)
        self._arrays = self._open()

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays: a spawned worker opens the files instead of getting a copy of them."""
        return {name: value for name, value in vars(self).items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._arrays = self._open()

    def __len__(self) -> int:
        return self.size

    def read(self, indices: Int[Tensor, " batch"], visits: Int[Tensor, " batch"] | None = None) -> FaceBatch:
        """Samples with all truth; the same values for any batch split and at every visit."""
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

    def _open(self) -> dict[str, np.ndarray]:
        return {name: _open(self.folder / f"{name}.npy") for name in _layout(self.world, 1)}

    def _complete(self, progress: Callable[[int, int], None]) -> None:
        """Draw the files, unless they are there or another process draws them: then wait for it."""
        try:
            if self._is_complete():
                return
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(
                self.folder.with_suffix(".lock")
            ):  # the system frees it when its holder dies, however that was
                if not self._is_complete():
                    self._draw(progress)
        except OSError as error:
            raise OutputError(
                f"data.cache: cannot write {self.folder} ({error.strerror}); expected a writable folder with room for "
                f"{_bytes(self.world, self.size) / 1e6:.0f} MB. Set data.cache to another folder."
            ) from error

    def _is_complete(self) -> bool:
        return (self.folder / "card.json").exists()

    def _draw(self, progress: Callable[[int, int], None]) -> None:
        """Draw into a sibling folder and rename it when complete, so that a killed run leaves no half bank."""
        if shutil.disk_usage(self.folder.parent).free < _bytes(self.world, self.size):
            # Maps are files with holes: without this a full disk is a bus error in the middle of the work.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partial = self.folder.with_suffix(_PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process: the lock is ours
        try:
            partial.mkdir()
            self._fill(partial, progress)
            card = {"size": self.size, "seed": self.world.seed, "world": asdict(self.world.config)}
            (partial / "card.json").write_text(json.dumps(card, indent=1))
            try:
                partial.rename(self.folder)
            except OSError:
                if not self._is_complete():  # else a machine that sees other locks drew the same faces
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fill(self, partial: Path, progress: Callable[[int, int], None]) -> None:
        arrays = {
            name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, (self.size, *shape))
            for name, (dtype, shape) in _layout(self.world, self.size).items()
        }
        try:
            for indices in torch.arange(self.size).split(_CHUNK):
                _store(arrays, self.world.sample(indices))
                progress(int(indices[-1]) + 1, self.size)
            for name in arrays:
                arrays[name].flush()
        finally:
            arrays.clear()  # Windows neither renames nor removes a folder with open maps


def _remove_abandoned(cache: Path) -> None:
    """Partial folders that killed processes left behind: nobody holds their locks."""
    for partial in cache.glob(f"bank-*{_PARTIAL}"):
        with suppress(Timeout, OSError), FileLock(partial.with_suffix(".lock"), timeout=0):
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
