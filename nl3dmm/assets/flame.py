"""Importer of FLAME (2020 and 2023): its pickle, read without running it, or the same arrays as ``.npz``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from nl3dmm.assets.linear_model import LinearModel, face_template
from nl3dmm.assets.model_file import Counts, ModelFile, barycentric, read_landmark_table
from nl3dmm.assets.pickled_arrays import RefusedPickleError, read_pickled
from nl3dmm.assets.template import FaceTemplate

SOURCE = (
    "generic_model.pkl comes from https://flame.is.tue.mpg.de (account), the landmarks beside it, "
    "landmark_embedding.npy, from https://github.com/yfeng95/DECA."
)
LICENCE = "FLAME model licence of the Max Planck Society, see https://flame.is.tue.mpg.de"
PUBLISHED: Counts = {"vertices": 5_023, "triangles": 9_976, "modes": 400}
IDENTITIES = 300  # the first columns of ``shapedirs``; the rest are expressions
MM_PER_M = 1000.0
MAX_BYTES = 2**30

_LAYOUT = {"v_template": ("vertices", 3), "shapedirs": ("vertices", 3, "modes"), "f": ("triangles", 3)}
# The same 68 points under the names of DECA's file and of FLAME_PyTorch's.
_EMBEDDINGS = (("full_lmk_faces_idx", "full_lmk_bary_coords"), ("lmk_face_idx", "lmk_b_coords"))


def import_flame(path: str | Path, uv_size: tuple[int, int] = (64, 80), any_size: bool = False) -> FaceTemplate:
    """The face with the fronts of its eyeballs on a cylindrical map of ``uv_size``; the jaw's joint is not used.

    Args:
        path: ``.pkl`` or ``.npz``; beside it lie the landmarks, ``landmark_embedding.npy`` (or ``.npz``) as DECA and
            FLAME_PyTorch have them, or ``landmarks68.txt`` with 68 vertices from 0.
        any_size: accept other numbers of vertices, triangles and modes than the published ones.

    Raises:
        AssetError: a file is missing, damaged, not of the published model, or a pickle of more than arrays.
    """
    return face_template(read_flame(path, any_size=any_size), ModelFile(Path(path), SOURCE), uv_size)


def read_flame(path: str | Path, identities: int = IDENTITIES, any_size: bool = False) -> LinearModel:
    """The whole head, vertices as in the file.

    Args:
        identities: how many of the modes are identities.
    """
    file = ModelFile(Path(path), SOURCE)
    content = file.read_npz(list(_LAYOUT)) if file.path.suffix == ".npz" else _pickle(file, _bytes(file))
    data = file.arrays(content, _LAYOUT, None if any_size else PUBLISHED)
    triangles = file.indices("f", data["f"], len(data["v_template"]))
    modes = (np.moveaxis(data["shapedirs"], 2, 0) * MM_PER_M).astype(np.float32)
    landmark_vertices, landmark_weights = _landmarks(file, triangles, len(data["v_template"]))
    return LinearModel(
        name="flame",
        vertices=(data["v_template"] * MM_PER_M).astype(np.float32),
        triangles=triangles,
        identity_basis=np.ascontiguousarray(modes[:identities]),
        expression_basis=np.ascontiguousarray(modes[identities:]),
        landmark_vertices=landmark_vertices,
        landmark_weights=landmark_weights,
        licence=LICENCE,
    )


def _landmarks(file: ModelFile, triangles: ndarray, count: int) -> tuple[ndarray, ndarray]:
    table = file.beside("landmarks68.txt")
    if table.path.is_file():
        return read_landmark_table(table, count)
    found = [file.beside(f"landmark_embedding{suffix}") for suffix in (".npy", ".npz")]
    found = [embedding for embedding in found if embedding.path.is_file()]
    if not found:
        raise file.refusal("no landmarks beside it", "landmark_embedding.npy or landmarks68.txt")
    embedding, names = found[0], [name for pair in _EMBEDDINGS for name in pair]
    content = embedding.read_npz(names) if embedding.path.suffix == ".npz" else _saved_dictionary(embedding)
    for faces, weights in _EMBEDDINGS:
        if faces in content and weights in content:
            return _embedded(embedding, triangles, np.asarray(content[faces]), np.asarray(content[weights]))
    raise embedding.refusal(f"only {', '.join(content) or 'nothing'}", f"{names[0]} and {names[1]}")


def _embedded(file: ModelFile, triangles: ndarray, faces: ndarray, weights: ndarray) -> tuple[ndarray, ndarray]:
    """Corners and weights of points that lie in triangles."""
    data = {"faces": faces.reshape(-1), "weights": weights.reshape(-1, weights.shape[-1] if weights.ndim else 1)}
    data = file.arrays(data, {"faces": (68,), "weights": (68, 3)})
    return triangles[file.indices("landmark triangles", data["faces"], len(triangles))], barycentric(
        file, data["weights"]
    )


def _saved_dictionary(file: ModelFile) -> Mapping[str, Any]:
    """The dictionary that ``numpy.save`` has written: an .npy header and a pickle."""
    content = _bytes(file)
    header = 10 + int.from_bytes(content[8:10], "little") if content[:8] == b"\x93NUMPY\x01\x00" else 0
    return _pickle(file, content[header:])


def _pickle(file: ModelFile, content: bytes) -> Mapping[str, Any]:
    try:
        value = read_pickled(content)
    except RefusedPickleError as error:
        raise file.refusal(str(error), "a pickled dictionary of arrays") from error
    if not isinstance(value, dict):
        raise file.refusal(f"a pickled {type(value).__name__}", "a pickled dictionary of arrays")
    return value


def _bytes(file: ModelFile) -> bytes:
    try:
        size = file.path.stat().st_size
        if size > MAX_BYTES:
            raise file.refusal(f"{size} bytes", f"at most {MAX_BYTES}")
        return file.path.read_bytes()
    except OSError as error:
        raise file.refusal(f"a file that cannot be read ({error})", "a pickle") from error
