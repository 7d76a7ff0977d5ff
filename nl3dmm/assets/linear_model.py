"""Published linear face models in nl3dmm's frame and units, and the templates made of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from scipy.spatial import KDTree

from nl3dmm.assets.landmarks import pathway_boxes
from nl3dmm.assets.model_file import ModelFile
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.assets.unwrap import cylinder, inside, landmark_regions, outermost_texels

EYE_CORNERS = (60.0, 130.0)  # mm between the outer ones; people have 80 to 105
MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class LinearModel:
    """Mean and modes with the vertices numbered as in the model's file; millimetres, ``docs/conventions.md``.

    ``albedo_*`` hold colours of vertices as the model's authors give them, in [0, 1]: they have no map of their own.
    """

    name: str
    vertices: Float32[ndarray, "vertices 3"]
    triangles: Int64[ndarray, "triangles 3"]
    identity_basis: Float32[ndarray, "identity vertices 3"]  # mm per standard deviation
    expression_basis: Float32[ndarray, "expression vertices 3"]  # mm at coefficient 1 (a standard deviation)
    landmark_vertices: Int64[ndarray, "68 3"]
    landmark_weights: Float32[ndarray, "68 3"]
    mirror: Int64[ndarray, " vertices"] | None = None  # None: the nearest vertex on the other side
    expression_names: tuple[str, ...] = ()
    albedo_mean: Float32[ndarray, "vertices 3"] | None = None
    albedo_basis: Float32[ndarray, "albedo vertices 3"] | None = None  # per standard deviation
    identity_deviation: Float32[ndarray, " identity"] | None = None  # of the authors' coefficients, in their unit
    expression_deviation: Float32[ndarray, " expression"] | None = None
    licence: str = ""

    def landmarks(self) -> Float[ndarray, "68 3"]:
        """Of the mean face."""
        return (self.vertices[self.landmark_vertices] * self.landmark_weights[..., None]).sum(1)


def face_template(model: LinearModel, file: ModelFile, uv_size: tuple[int, int]) -> FaceTemplate:
    """The part of the model that a cylinder round the face shows, ear to ear; the other vertices are left out.

    Args:
        file: where the model comes from, for the errors and the provenance.

    Raises:
        AssetError: the landmarks are no upright face of human size in millimetres, looking along +z.
    """
    marks = model.landmarks()
    _check_face(marks, file)
    chart = cylinder(marks)
    used, triangles = _cut(model, inside(chart.uv(model.vertices)))
    renumber = np.full(len(model.vertices), -1)
    renumber[used] = np.arange(len(used))
    landmarks, vertices = renumber[model.landmark_vertices], model.vertices[used]
    if landmarks.min() < 0:
        raise file.refusal("landmarks on no triangle of the face", "68 points of its skin")
    mirror = _nearest_mirror(vertices) if model.mirror is None else renumber[model.mirror[used]]
    uv = chart.uv(vertices)
    uv = (uv + uv[mirror] * (-1, 1) + (1, 0)) / 2
    faces = torch.from_numpy(_outward(vertices, renumber[triangles]))
    uv_tensor, radius = torch.from_numpy(uv).float(), torch.from_numpy(chart.radius(vertices))
    texel_triangle, texel_barycentric = outermost_texels(uv_tensor, faces, radius, uv_size)
    uv_mask, uv_marks = texel_triangle >= 0, (uv[landmarks] * model.landmark_weights[..., None]).sum(1)
    return FaceTemplate(
        name=model.name,
        vertices=torch.from_numpy(vertices),
        triangles=faces,
        uv=uv_tensor,
        uv_size=uv_size,
        uv_mask=uv_mask,
        texel_triangle=texel_triangle,
        texel_barycentric=texel_barycentric,
        is_uv_grid=False,
        landmark_vertices=torch.from_numpy(landmarks),
        landmark_weights=torch.from_numpy(model.landmark_weights),
        mirror=torch.from_numpy(mirror),
        regions=landmark_regions(uv_marks, chart, uv_mask),
        boxes=pathway_boxes(uv_marks, uv_size),
        identity_basis=torch.from_numpy(model.identity_basis[:, used]),
        expression_basis=torch.from_numpy(model.expression_basis[:, used]),
        expression_names=model.expression_names or _numbered(len(model.expression_basis)),
        albedo_mean=_cut_colours(model.albedo_mean, used),
        albedo_basis=_cut_colours(model.albedo_basis, used),
        provenance={"source": file.source, "licence": model.licence, "sha256": file.sha256()},
    )


def _cut_colours(colours: Float32[ndarray, "*modes vertices 3"] | None, used: ndarray) -> torch.Tensor | None:
    return None if colours is None else torch.from_numpy(np.ascontiguousarray(colours[..., used, :]))


def mirror_from_pairs(pairs: Int64[ndarray, "2 pairs"], count: int, file: ModelFile) -> Int64[ndarray, " vertices"]:
    """The other vertex of each vertex's pair; those of the midline are paired with themselves."""
    mirror = np.arange(count)
    mirror[pairs[0]], mirror[pairs[1]] = pairs[1], pairs[0]
    if (mirror[mirror] != np.arange(count)).any():
        raise file.refusal("vertices in more than one symmetric pair", "each in one")
    return mirror


def _check_face(marks: Float[ndarray, "68 3"], file: ModelFile) -> None:
    distance = float(np.linalg.norm(marks[45] - marks[36]))
    if not EYE_CORNERS[0] <= distance <= EYE_CORNERS[1]:
        raise file.refusal(
            f"outer eye corners {distance:.4g} mm apart",
            f"{EYE_CORNERS[0]:.0f} to {EYE_CORNERS[1]:.0f} mm, as in the published file and its unit",
        )
    is_upright = marks[45, 0] > marks[36, 0] and marks[27, 1] > marks[8, 1] and marks[30, 2] > marks[[0, 16], 2].max()
    if not is_upright:
        raise file.refusal(
            "landmarks that are no upright face looking along +z", "68 points in iBUG order, +x to the subject's left"
        )


def _cut(model: LinearModel, is_inside: ndarray) -> tuple[ndarray, ndarray]:
    """Vertices and triangles of the part inside, closed under the model's mirror map."""
    used = np.zeros(len(model.vertices), dtype=bool)
    used[model.triangles[is_inside[model.triangles].all(1)]] = True
    if model.mirror is not None:
        used &= used[model.mirror]
    return np.flatnonzero(used), model.triangles[used[model.triangles].all(1)]


def _nearest_mirror(vertices: Float32[ndarray, "vertices 3"]) -> Int64[ndarray, " vertices"]:
    _, nearest = KDTree(vertices).query(vertices * MIRROR)
    return np.asarray(nearest, dtype=np.int64)


def _outward(vertices: ndarray, triangles: Int64[ndarray, "triangles 3"]) -> Int64[ndarray, "triangles 3"]:
    """Counter-clockwise seen from the front, where most of a face's area looks."""
    first, second, third = (vertices[triangles[:, corner]] for corner in range(3))
    towards_front = np.cross(second - first, third - first)[:, 2].sum()
    return np.ascontiguousarray(triangles if towards_front > 0 else triangles[:, [0, 2, 1]])


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"expression_{number:02}" for number in range(count))
