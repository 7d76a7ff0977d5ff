"""Small files with the layouts of published face models: the embedded face with some of its modes."""

import os
import pickle
from functools import cache
from pathlib import Path

import numpy as np
from scipy.io import savemat

IDENTITIES, EXPRESSIONS = 4, 3
SIZE = (32, 40)


@cache
def face():
    from nl3dmm.assets.embedded import embedded_template

    return embedded_template(SIZE)


def vertices_mm() -> np.ndarray:
    return face().vertices.numpy().astype(np.float64)


def landmarks() -> np.ndarray:
    """The nearest vertex of each."""
    return face().landmark_vertices.gather(1, face().landmark_weights.argmax(1)[:, None])[:, 0].numpy()


def columns(basis, count: int) -> np.ndarray:
    """Modes as columns over interleaved coordinates, orthonormal but for their scale."""
    return basis[:count].numpy().reshape(count, -1).T.astype(np.float64)


def identity() -> tuple[np.ndarray, np.ndarray]:
    """Columns of unit length, and their deviations in mm."""
    modes = columns(face().identity_basis, IDENTITIES)
    deviations = np.linalg.norm(modes, axis=0)
    return modes / deviations, deviations


def expression() -> np.ndarray:
    return columns(face().expression_basis, EXPRESSIONS)


def colours() -> tuple[np.ndarray, np.ndarray]:
    """Mean and two modes over interleaved R G B, in [0, 1]."""
    generator = np.random.default_rng(0)
    return generator.uniform(0.2, 0.8, vertices_mm().size), generator.normal(0, 0.1, (vertices_mm().size, 2))


def symmetric_pairs() -> np.ndarray:
    mirror = face().mirror.numpy()
    first = np.flatnonzero(mirror >= np.arange(len(mirror)))
    return np.stack([first, mirror[first]])


def without_nones(values: dict) -> dict:
    return {key: value for key, value in values.items() if value is not None}


def write_trimmed_bfm2009(folder: Path, **changes) -> Path:
    """3DDFA's ``Model_Shape.mat`` and ``Model_Expression.mat``, micrometres; a change of None leaves a variable out."""
    modes, deviations = identity()
    shape = {
        "mu_shape": 1000 * vertices_mm().reshape(-1, 1),
        "w": modes,
        "sigma": 1000 * deviations[:, None],
        "tri": face().triangles.numpy().T.astype(np.float64) + 1,
        "keypoints": landmarks()[None].astype(np.float64) + 1,
        "symlist": symmetric_pairs().astype(np.float64) + 1,
    }
    expressions = {
        "mu_exp": np.full((vertices_mm().size, 1), 250.0),
        "w_exp": 1000 * expression() / 2,
        "sigma_exp": np.full((EXPRESSIONS, 1), 2.0),
    }
    for name, values in (("Model_Shape", shape), ("Model_Expression", expressions)):
        chosen = {key: changes.get(key, value) for key, value in values.items()}
        savemat(folder / f"{name}.mat", without_nones(chosen))
    return folder / "Model_Shape.mat"


def write_basel_bfm2009(folder: Path, **changes) -> Path:
    """Basel's file with seven more vertices, 3DDFA's ``model_info.mat``, ``Exp_Pca.bin`` and ``std_exp.txt``."""
    extra = 7
    (modes, deviations), (mean, colour_modes) = identity(), colours()

    def padded(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(len(values), -1)
        return np.concatenate([np.zeros((3 * extra, rows.shape[1])), rows]).astype(np.float32)

    basel = {
        "shapeMU": padded(1000 * vertices_mm().reshape(-1)),
        "shapePC": padded(modes),
        "shapeEV": 1000 * deviations[:, None],
        "texMU": padded(255 * mean),
        "texPC": padded(255 * colour_modes / 3),
        "texEV": np.full((2, 1), 3.0),
        "tl": np.zeros((5, 3)),
    }
    info = {
        "tri": face().triangles.numpy().T + 1,
        "keypoints": landmarks()[None] + 1,
        "trimIndex": np.arange(len(vertices_mm()))[:, None] + extra + 1,
        "symlist": symmetric_pairs() + 1,
    }
    for name, values in (("01_MorphableModel", basel), ("model_info", info)):
        chosen = {key: changes.get(key, value) for key, value in values.items()}
        savemat(folder / f"{name}.mat", without_nones(chosen))
    with (folder / "Exp_Pca.bin").open("wb") as stream:
        stream.write(np.int32(EXPRESSIONS).tobytes())
        stream.write(np.full(vertices_mm().size, 9e9, np.float32).tobytes())  # a mean that nobody uses
        stream.write((1000 * expression().T).astype(np.float32).tobytes())
    (folder / "std_exp.txt").write_text(" ".join(["1.0"] * EXPRESSIONS) + "\n", encoding="utf-8")
    return folder / "01_MorphableModel.mat"


def write_front_bfm2009(folder: Path, **changes) -> Path:
    """Deep3D's ``BFM_model_front.mat``: decimetres, modes of one standard deviation."""
    (modes, deviations), (mean, colour_modes) = identity(), colours()
    values = {
        "meanshape": vertices_mm().reshape(1, -1) / 100,
        "idBase": modes * deviations / 100,
        "exBase": expression() / 100,
        "meantex": 255 * mean[None],
        "texBase": 255 * colour_modes,
        "tri": face().triangles.numpy()[:, [0, 2, 1]] + 1,
        "keypoints": landmarks()[None] + 1,
    } | changes
    savemat(folder / "BFM_model_front.mat", without_nones(values))
    return folder / "BFM_model_front.mat"


def bfm2017_datasets(**changes) -> dict[str, np.ndarray]:
    """What ``model2017-1_bfm_nomouth.h5`` holds, by path: millimetres, variances, colours in [0, 1]."""
    (modes, deviations), (mean, colour_modes) = identity(), colours()
    one = np.ones(2)
    values = {
        "shape/model/mean": vertices_mm().reshape(-1) - 1,
        "shape/model/pcaBasis": modes,
        "shape/model/pcaVariance": deviations**2,
        "shape/representer/cells": face().triangles.numpy().T,
        "expression/model/mean": np.ones(vertices_mm().size),
        "expression/model/pcaBasis": expression(),
        "expression/model/pcaVariance": np.ones(EXPRESSIONS),
        "color/model/mean": mean,
        "color/model/pcaBasis": colour_modes,
        "color/model/pcaVariance": one,
    }
    return without_nones(values | {key.replace("__", "/"): value for key, value in changes.items()})


def write_landmark_table(path: Path) -> Path:
    path.write_text("".join(f"{vertex}\n" for vertex in landmarks()), encoding="utf-8")
    return path


def flame_arrays(**changes) -> dict[str, np.ndarray]:
    """The keys of ``generic_model.pkl``: metres, 4 identities and 3 expressions in one array."""
    shape = [face().identity_basis[:IDENTITIES].numpy(), face().expression_basis[:EXPRESSIONS].numpy()]
    return without_nones(
        {
            "v_template": vertices_mm() / 1000,
            "shapedirs": np.moveaxis(np.concatenate(shape), 0, 2).astype(np.float64) / 1000,
            "f": face().triangles.numpy().astype(np.uint32),
            "weights": np.ones((len(vertices_mm()), 5)) / 5,
        }
        | changes
    )


def triangles_of_landmarks() -> np.ndarray:
    """Some triangle whose first corner each landmark is, after turning; and the weights that say so."""
    triangles, found = face().triangles.numpy(), []
    for vertex in landmarks():
        row, corner = np.argwhere(triangles == vertex)[0]
        found.append((row, corner))
    return np.array(found)


def write_embedding(path: Path, **changes) -> Path:
    """DECA's ``landmark_embedding.npy``: a pickled dictionary in an .npy file."""
    places = triangles_of_landmarks()
    values = {
        "full_lmk_faces_idx": places[None, :, 0],
        "full_lmk_bary_coords": np.eye(3)[places[:, 1]][None],
        "dynamic_lmk_faces_idx": [places[:17, 0]],
    } | changes
    np.save(path, np.array(without_nones(values), dtype=object), allow_pickle=True)
    return path


def gnm_arrays(**changes) -> dict[str, np.ndarray]:
    """The keys of ``gnm_head.npz`` that matter: metres, a hidden tongue of three more vertices behind the face."""
    count, extra = len(vertices_mm()), 3
    tongue = np.array([[-5.0, -40, 60], [5, -40, 60], [0, -40, 70]])

    def padded(modes: np.ndarray) -> np.ndarray:
        return np.concatenate([modes, np.zeros((len(modes), extra, 3))], 1).astype(np.float32) / 1000

    groups = np.zeros((2, count + extra), np.float32)
    groups[0, :count], groups[1, count:] = 1, 1
    mirror = np.concatenate([face().mirror.numpy(), [count + 1, count, count + 2]])
    return without_nones(
        {
            "template_vertex_positions": (np.concatenate([vertices_mm(), tongue]) / 1000).astype(np.float32),
            "vertex_identity_basis": padded(face().identity_basis[:IDENTITIES].numpy()),
            "expression_basis": padded(face().expression_basis[:EXPRESSIONS].numpy()),
            "expression_names": np.array(["lower_face_000", "lower_face_001", "tongue_000"]),
            "triangles": np.concatenate([face().triangles.numpy(), [[count, count + 1, count + 2]]]).astype(np.int32),
            "mirror_indices": mirror.astype(np.int32),
            "vertex_groups": groups,
            "vertex_group_names": np.array(["skin", "tongue"]),
        }
        | changes
    )


def write_sparse_landmarks(path: Path) -> Path:
    """GNM's ``head_sparse_68.txt``, with part of the jaw in reverse as in theirs."""
    points = landmarks()[[0, 1, 6, 5, 4, 3, 2, *range(7, 68)]]
    lines = [f"{vertex} 1.0 {vertex} 0.0 {vertex} 0.0\n" for vertex in points]
    path.write_text("".join(lines), encoding="utf-8")
    return path


class RunsCode:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def pickle_with_code(canary: Path, protocol: int) -> bytes:
    return pickle.dumps(flame_arrays() | {"J_regressor": RunsCode(canary)}, protocol=protocol)
