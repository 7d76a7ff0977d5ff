"""NPZ: everything as arrays, for NumPy."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.export.mesh import check_suffix
from nl3dmm.outputs import atomic_path


def write_npz(path: str | Path, values: Mapping[str, Tensor | str]) -> None:
    """Write one compressed file of named arrays, readable without pickle.

    Raises:
        ShapeError: a value is not finite.
        OutputError: the name does not end in .npz, or the file cannot be written.
    """
    path = check_suffix(path, ".npz")
    arrays = {name: v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for name, v in values.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ShapeError(f"{name}: got NaN or infinite values; expected finite ones. Check the fit.")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
