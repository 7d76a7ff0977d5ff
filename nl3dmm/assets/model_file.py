"""Files of published face models: read without running anything, checked before use, refused with where to get them."""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Int64
from numpy import ndarray
from scipy.io import loadmat

from nl3dmm.errors import AssetError

Layout = Mapping[str, tuple[str | int, ...]]  # array -> shape; a name stands for one number, the same in all arrays
Counts = Mapping[str, int]  # name -> the number in the published file


@dataclass(frozen=True)
class ModelFile:
    """One file, and the sentence that tells where a whole one comes from."""

    path: Path
    source: str

    def refusal(self, got: str, expected: str) -> AssetError:
        return AssetError(f"{self.path}: got {got}; expected {expected}. {self.source}")

    def beside(self, name: str) -> "ModelFile":
        return ModelFile(self.path.with_name(name), self.source)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def read_mat(self, names: Sequence[str]) -> dict[str, object]:
        """Those of the variables that a MATLAB file (before version 7.3) has."""
        try:
            return loadmat(self.path, variable_names=list(names))
        except Exception as error:  # scipy raises many kinds on damaged data
            raise self.refusal(f"a file that cannot be read ({error})", "a MATLAB file") from error

    def read_npz(self, names: Sequence[str]) -> dict[str, object]:
        """Those of the arrays that the archive has."""
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                return {name: archive[name] for name in names if name in archive.files}
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise self.refusal(f"a file that cannot be read ({error})", "an .npz of plain arrays") from error

    def read_table(self, columns: int | None = None) -> ndarray:
        """Numbers of a text file, one row per line."""
        try:
            table = np.loadtxt(self.path, ndmin=2)
        except (OSError, ValueError) as error:
            raise self.refusal(f"a file that cannot be read ({error})", "a text file of numbers") from error
        if not table.size or columns not in (None, table.shape[1]) or not np.isfinite(table).all():
            raise self.refusal(f"a table of shape {table.shape}", f"finite numbers in {columns or 'some'} columns")
        return table

    def arrays(self, content: Mapping[str, object], layout: Layout, counts: Counts | None = None) -> dict[str, ndarray]:
        """The arrays of the layout: real, finite, of matching shapes, and as many as in the published file.

        Vectors may be stored as rows or columns. ``coordinates`` and ``whole`` count three per vertex.
        """
        missing = [name for name in layout if name not in content]
        if missing:
            raise self.refusal(f"no {', '.join(missing)}", f"{', '.join(layout)}")
        arrays = {name: self._real(name, content[name], len(layout[name])) for name in layout}
        sizes = dict(counts or {})
        for name, axes in layout.items():
            expected = tuple(sizes.get(axis) if isinstance(axis, str) else axis for axis in axes)
            shape = arrays[name].shape
            if len(shape) != len(axes) or any(e not in (None, s) for e, s in zip(expected, shape, strict=True)):
                wanted = tuple(axis if e is None else e for e, axis in zip(expected, axes, strict=True))
                raise self.refusal(f"{name} of shape {shape}", f"{wanted} ({', '.join(map(str, axes))})")
            sizes |= {axis: size for axis, size in zip(axes, shape, strict=True) if isinstance(axis, str)}
        for name in ("coordinates", "whole"):
            if sizes.get(name, 0) % 3:
                raise self.refusal(f"{sizes[name]} coordinates", "three per vertex")
        return arrays

    def indices(self, name: str, values: ndarray, count: int, first: int = 0) -> Int64[ndarray, "..."]:
        """Whole numbers ``first .. first + count - 1`` as indices from 0."""
        whole = values.astype(np.int64)
        if values.size == 0 or (whole != values).any() or whole.min() < first or whole.max() >= first + count:
            got = f"{name} from {values.min()} to {values.max()}" if values.size else f"{name} without values"
            raise self.refusal(got, f"whole numbers from {first} to {first + count - 1}")
        return whole - first

    def _real(self, name: str, value: object, axes: int) -> ndarray:
        if not isinstance(value, ndarray) or value.dtype.kind not in "fiu":
            raise self.refusal(f"{name} of type {getattr(value, 'dtype', type(value).__name__)}", "an array of numbers")
        if not value.size or not np.isfinite(value).all():
            raise self.refusal(f"{name} empty or with values that are not finite", "finite numbers")
        is_vector = axes == 1 and value.size == max(value.shape, default=1)
        return value.reshape(-1) if is_vector else value


def rows_of_modes(columns: ndarray, deviations: ndarray, unit_mm: float) -> Float32[ndarray, "modes vertices 3"]:
    """Basis columns over interleaved coordinates (x0 y0 z0 x1 ...) as modes of one standard deviation, in mm."""
    modes = columns.T.reshape(columns.shape[1], -1, 3).astype(np.float32)
    return modes * (deviations * unit_mm).astype(np.float32)[:, None, None]


def points_of(coordinates: ndarray, unit_mm: float) -> Float32[ndarray, "vertices 3"]:
    return (coordinates.reshape(-1, 3) * unit_mm).astype(np.float32)


def one_vertex_each(
    vertices: Int[ndarray, "68"],
) -> tuple[Int64[ndarray, "68 3"], Float32[ndarray, "68 3"]]:
    """Landmarks that are vertices, as corners and barycentric weights."""
    weights = np.zeros((68, 3), np.float32)
    weights[:, 0] = 1
    return np.repeat(vertices[:, None], 3, axis=1).astype(np.int64), weights


def read_landmark_table(file: ModelFile, count: int) -> tuple[Int64[ndarray, "68 3"], Float32[ndarray, "68 3"]]:
    """68 lines, each a vertex (from 0) or three vertices with their weights: ``i0 w0 i1 w1 i2 w2``."""
    table = file.read_table()
    if table.shape == (68, 1):
        return one_vertex_each(file.indices("landmarks", table[:, 0], count))
    if table.shape != (68, 6):
        raise file.refusal(f"a table of shape {table.shape}", "68 lines of a vertex, or of three with weights")
    return file.indices("landmarks", table[:, ::2], count), barycentric(file, table[:, 1::2])


def barycentric(file: ModelFile, weights: ndarray) -> Float32[ndarray, "68 3"]:
    if weights.shape != (68, 3) or np.abs(weights.sum(1) - 1).max() > 0.01:
        raise file.refusal(f"landmark weights of shape {weights.shape}", "68 times three that sum to 1")
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
