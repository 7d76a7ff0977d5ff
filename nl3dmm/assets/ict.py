"""Importer of the ICT-FaceKit light face model, packed as one ``.npz`` (MIT licence, (c) 2020 USC ICT)."""

import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from nl3dmm.assets.landmarks import pathway_boxes
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import AssetError
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.render import rasterize

MM_PER_CM = 10.0
EYEBALLS = ("eyeball_L", "eyeball_R")
BROWS = ("brow_L", "brow_R")
LIPS = ("lip_upper", "lip_lower", "lip_inner")
# Key -> shape; names stand for one number each, the same in all keys.
LAYOUT: dict[str, tuple[str | int, ...]] = {
    "v_mean": ("vertices", 3),
    "faces": ("triangles", 3),
    "n_faces_narrow": (),
    "uv_narrow": ("vertices", 2),
    "id_basis": ("identity", "vertices", 3),
    "exp_basis": ("expression", "vertices", 3),
    "exp_names": ("expression",),
    "lmk68": (68,),
    "sym": ("vertices",),
    "region": ("vertices",),
    "region_names": ("regions",),
}


def import_ict(path: str | Path, uv_size: tuple[int, int] = (64, 80)) -> FaceTemplate:
    """The narrow face with its eye patches and mouth interior, sampled into UV maps of ``uv_size`` (rows, columns).

    Identity modes stay scaled to one standard deviation; they are orthogonal on the whole head only.

    Raises:
        AssetError: the file is missing, truncated, or lacks what its layout promises.
    """
    data = _read(Path(path))
    used, triangles = np.unique(data["faces"][: int(data["n_faces_narrow"])], return_inverse=True)
    triangles = torch.from_numpy(triangles.reshape(-1, 3).astype(np.int64))
    renumber = np.full(len(data["v_mean"]), -1, dtype=np.int64)
    renumber[used] = np.arange(len(used))
    landmarks, mirror = renumber[data["lmk68"]], renumber[data["sym"][used]]
    uv = data["uv_narrow"][used].astype(np.float64) * (1, -1) + (0, 1)  # v up -> down the rows
    if not np.isfinite(uv).all() or min(landmarks.min(), mirror.min()) < 0:
        raise _damaged(Path(path), "uv, landmarks or mirror outside the narrow face", "all inside")
    uv = (uv + uv[mirror] * (-1, 1) + (1, 0)) / 2  # symmetric about u = .5
    vertices = _millimetres(data["v_mean"][used])
    texel_triangle, texel_barycentric = texel_tables(torch.from_numpy(uv).float(), triangles, uv_size)
    corners = triangles[texel_triangle.clamp(min=0)]
    weights = _region_weights(data["region"][used], data["region_names"], vertices, triangles, landmarks)
    return FaceTemplate(
        name="ict",
        vertices=vertices,
        triangles=triangles,
        uv=torch.from_numpy(uv).float(),
        uv_size=uv_size,
        uv_mask=texel_triangle >= 0,
        texel_triangle=texel_triangle,
        texel_barycentric=texel_barycentric,
        is_uv_grid=False,
        landmark_vertices=torch.from_numpy(landmarks)[:, None].repeat(1, 3),
        landmark_weights=torch.tensor([1.0, 0.0, 0.0]).repeat(68, 1),
        mirror=torch.from_numpy(mirror),
        regions={name: (weight[corners] * texel_barycentric).sum(-1) for name, weight in weights.items()},
        boxes=pathway_boxes(uv[landmarks], uv_size),
        identity_basis=_millimetres(data["id_basis"][:, used]).half().float(),
        expression_basis=_millimetres(data["exp_basis"][:, used]).half().float(),
        expression_names=tuple(str(name) for name in data["exp_names"]),
        provenance=_provenance(Path(path)),
    )


def texel_tables(
    uv: Float[Tensor, "vertices 2"], triangles: Int[Tensor, "triangles 3"], uv_size: tuple[int, int]
) -> tuple[Int[Tensor, "uv_height uv_width"], Float[Tensor, "uv_height uv_width 3"]]:
    """Triangle (-1 outside) and barycentric coordinates of each texel centre."""
    clip = torch.cat([2 * uv - 1, torch.zeros_like(uv[:, :1]), torch.ones_like(uv[:, :1])], -1)
    fragments = rasterize(None, clip[None], triangles, uv_size)[0][0]
    index = fragments[..., 3].long() - 1
    first, second = fragments[..., 0], fragments[..., 1]
    weights = torch.stack([first, second, 1 - first - second], -1)
    return index, weights * (index >= 0)[..., None]


def _read(path: Path) -> dict[str, ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            data = {key: archive[key] for key in LAYOUT if key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"a file that cannot be read ({error})", "a packed .npz") from error
    missing = [key for key in LAYOUT if key not in data]
    if missing:
        raise _damaged(path, f"no {', '.join(missing)}", "a packed ICT-FaceKit")
    _check_values(data, _check_shapes(data, path), path)
    return data


def _check_shapes(data: dict[str, ndarray], path: Path) -> dict[str, int]:
    """Sizes of the axes that ``LAYOUT`` names, the same in all arrays."""
    sizes: dict[str, int] = {}
    for key, layout in LAYOUT.items():
        expected = tuple(axis if isinstance(axis, int) else sizes.get(axis) for axis in layout)
        got = data[key].shape
        if len(got) != len(expected) or any(want not in (None, size) for want, size in zip(expected, got, strict=True)):
            raise _damaged(path, f"{key}: shape {got}", f"{layout} with {sizes}")
        sizes |= {axis: size for axis, size in zip(layout, got, strict=True) if isinstance(axis, str)}
    return sizes


def _check_values(data: dict[str, ndarray], sizes: dict[str, int], path: Path) -> None:
    """Indices exist and numbers are finite."""
    for key, axis in (("faces", "vertices"), ("lmk68", "vertices"), ("sym", "vertices"), ("region", "regions")):
        if data[key].min() < 0 or data[key].max() >= sizes[axis]:
            raise _damaged(path, f"{key}: indices {data[key].min()}..{data[key].max()}", f"0..{sizes[axis] - 1}")
    for key in ("v_mean", "id_basis", "exp_basis"):
        if not np.isfinite(data[key]).all():
            raise _damaged(path, f"{key}: values that are not finite", "numbers")
    if not 0 < int(data["n_faces_narrow"]) <= sizes["triangles"]:
        raise _damaged(path, f"n_faces_narrow: {data['n_faces_narrow']}", f"1..{sizes['triangles']}")


def _damaged(path: Path, got: str, expected: str) -> AssetError:
    return AssetError(f"{path}: got {got}; expected {expected}. Download or pack the model again.")


def _region_weights(
    labels: ndarray, names: ndarray, vertices: Tensor, triangles: Tensor, landmarks: ndarray
) -> dict[str, Tensor]:
    """Regions of the template as 0/1 weights of vertices."""
    label_names = np.array([str(name) for name in names])[labels]

    def having(*wanted: str) -> Tensor:
        return torch.from_numpy(np.isin(label_names, wanted)).float()

    height, points = vertices[:, 1], vertices[torch.from_numpy(landmarks)]
    frontal = vertex_normals(vertices[None], triangles)[0, :, 2] > 0.25
    inner = having("nostril", "mouth_inner", "lip_inner", *EYEBALLS) > 0  # normals there say nothing
    between = (height > points[8, 1]) & (height < points[17:27, 1].max() + 25)
    return {
        "left_eye": having("eyeball_L"),
        "right_eye": having("eyeball_R"),
        "eyes": having("eyelid_L", "eyelid_R", *EYEBALLS),
        "brows": having(*BROWS),
        "nose": having("nose", "nostril"),
        "nostrils": having("nostril"),
        "lips": having(*LIPS),
        "mouth": having("mouth_inner"),
        "skin": 1 - having("nostril", "mouth_inner", *EYEBALLS, *BROWS, *LIPS),
        "face": ((frontal | inner) & between & (having("neck", "ear_L", "ear_R") == 0)).float(),
    }


def _millimetres(centimetres: ndarray) -> Tensor:
    return torch.from_numpy(centimetres.astype(np.float32) * np.float32(MM_PER_CM))


def _provenance(path: Path) -> dict[str, str]:
    return {
        "source": "ICT-FaceKit light (https://github.com/ICT-VGL/ICT-FaceKit)",
        "licence": "MIT, (c) 2020 USC Institute for Creative Technologies",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
