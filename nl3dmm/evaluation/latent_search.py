"""Latents found by optimisation with frozen decoders, and what a mesh can be compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.evaluation.accuracy import OUTER_EYES
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.geometry.similarity import Similarity, similarity, similarity_aligned
from nl3dmm.model import FaceModel
from nl3dmm.types import Latents

RATES = {"albedo_latent": 0.1, "light": 0.03, "shape_latent": 0.1}  # of Adam, falling to 0 along a cosine
NORMAL_MM = 5.0  # weight of 1 - cosine of the normals beside distances in mm
LANDMARK_PRIOR_MM = 0.3  # weight of the latent's mean square: 68 points say little of what lies between them
INNER = slice(17, 68)  # landmarks of brows, nose, eyes, mouth

Errors: TypeAlias = dict[str, Float[Tensor, " batch"]]


def minimise(
    free: Sequence[tuple[Tensor, float]],
    losses: Callable[[], Float[Tensor, " batch"]],
    steps: int,
) -> None:
    """Adam on leaves with their rates, which fall to 0 along a cosine; every face of the batch on its own loss."""
    leaves = [leaf for leaf, _ in free]
    optimizer = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in free], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        for leaf, gradient in zip(leaves, torch.autograd.grad(losses().sum(), leaves), strict=True):
            leaf.grad = gradient
        optimizer.step()
        schedule.step()


@runtime_checkable
class ShapeTarget(Protocol):
    """What the meshes of a batch are to come near to."""

    @property
    def prior(self) -> float:
        """Weight of the latent's mean square beside the losses."""
        ...

    def __len__(self) -> int: ...

    def losses(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, " batch"]:
        """mm, differentiable."""
        ...

    def errors(self, vertices: Float[Tensor, "batch vertices 3"]) -> Errors:
        """What is reported."""
        ...


@dataclass(frozen=True)
class MeshTarget:
    """Meshes in correspondence: mean vertex distance, the same over the outer-eye distance (NME), normals.

    ``align``: compare after the best similarity, which carries neither pose nor size into a latent.
    """

    template: FaceTemplate
    vertices: Float[Tensor, "batch vertices 3"]  # mm
    align: bool = True
    prior: float = 0.0

    def __len__(self) -> int:
        return len(self.vertices)

    def losses(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, " batch"]:
        distance, cosine = self._compare(vertices)
        return distance + NORMAL_MM * (1 - cosine)

    def errors(self, vertices: Float[Tensor, "batch vertices 3"]) -> Errors:
        distance, cosine = self._compare(vertices)
        span = _outer_eye_distance(self.template.landmarks(self.vertices))
        return {"nme": distance / span, "distance_mm": distance, "normal_cosine": cosine}

    def _compare(self, vertices: Tensor) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Mean distance of the vertices that triangles use, mean cosine of their normals."""
        goal, goal_normals, used, triangles = self._goal
        points = similarity_aligned(vertices[:, used], goal) if self.align else vertices[:, used]
        cosine = (vertex_normals(points, triangles) * goal_normals).sum(-1)
        return (points - goal).norm(dim=-1).mean(1), cosine.mean(1)

    @cached_property
    def _goal(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        used, triangles = self.template.triangles.unique(return_inverse=True)
        goal = self.vertices[:, used]
        return goal, vertex_normals(goal, triangles), used, triangles


@dataclass(frozen=True)
class LandmarkTarget:
    """68 points in space of any unit and pose; compared after the similarity of the 51 inner ones.

    The inner points mean the same on every topology, while those of the contour lie where an annotation scheme puts
    them, between eye and ear lobe at their ends: they pull at the shape, but not at its pose.
    """

    template: FaceTemplate
    points: Float[Tensor, "batch 68 3"]
    prior: float = LANDMARK_PRIOR_MM

    def __len__(self) -> int:
        return len(self.points)

    def losses(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, " batch"]:
        best, distances = self._compare(vertices)
        return distances.mean(1) / best.scale.detach()

    def errors(self, vertices: Float[Tensor, "batch vertices 3"]) -> Errors:
        """Mean distance of the points, of all 68 and of the inner 51, over the outer-eye distance in space."""
        nme = self._compare(vertices)[1] / _outer_eye_distance(self.points)[:, None]
        return {"landmark_nme_3d": nme.mean(1), "landmark_nme_3d_inner": nme[:, INNER].mean(1)}

    def similarity(self, vertices: Float[Tensor, "batch vertices 3"]) -> Similarity:
        """From a mesh's frame to that of the points."""
        return similarity(self.template.landmarks(vertices)[:, INNER], self.points[:, INNER])

    def _compare(self, vertices: Tensor) -> tuple[Similarity, Float[Tensor, "batch 68"]]:
        best = self.similarity(vertices)
        return best, (best.apply(self.template.landmarks(vertices)) - self.points).norm(dim=-1)


def fit_shape(
    model: FaceModel, target: ShapeTarget, steps: int, end: str = "final"
) -> Float[Tensor, "batch vertices 3"]:
    """Meshes of the shape latents that come nearest to the target; latents start at 0.

    Args:
        end: ``proxy`` or ``final``: which shape comes near.
    """
    latent = torch.zeros(len(target), model.config.shape_latent, device=model.device, requires_grad=True)

    def losses() -> Tensor:
        return target.losses(decode_vertices(model, latent, end)) + target.prior * latent.square().mean(1)

    minimise([(latent, RATES["shape_latent"])], losses, steps)
    with torch.no_grad():
        return decode_vertices(model, latent, end)


@torch.no_grad()
def ends(model: FaceModel) -> tuple[str, ...]:
    """``proxy`` and ``final``; the final alone where a decoder gives one map for both."""
    sizes = (model.config.shape_latent, model.config.albedo_latent)
    maps = model.decode(Latents(*(torch.ones(1, size, device=model.device) for size in sizes))).maps
    one = maps.shape_proxy.equal(maps.shape_final) and maps.albedo_proxy.equal(maps.albedo_final)
    return ("final",) if one else ("proxy", "final")


def decode_vertices(
    model: FaceModel, latent: Float[Tensor, "batch latent"], end: str
) -> Float[Tensor, "batch vertices 3"]:
    """Meshes of one end, without decoding albedo."""
    nothing = _Nothing(model.template.uv_size)
    geometry = model.decode_with(model.shape_decoder, nothing, Latents(latent, latent))
    return geometry.vertices_proxy if end == "proxy" else geometry.vertices_final


def decode_albedo(
    model: FaceModel, latent: Float[Tensor, "batch latent"], end: str
) -> Float[Tensor, "batch 3 uv_height uv_width"]:
    """Albedo maps of one end, without decoding shape."""
    nothing = _Nothing(model.template.uv_size)
    maps = model.decode_with(nothing, model.albedo_decoder, Latents(latent, latent)).maps
    return maps.albedo_proxy if end == "proxy" else maps.albedo_final


class _Nothing(nn.Module):
    """The decoder of the average face: stands in for the one of shape and albedo that is not asked for."""

    def __init__(self, uv_size: tuple[int, int]):
        super().__init__()
        self.uv_size = uv_size

    def forward(self, latent: Float[Tensor, "batch latent"]) -> tuple[Tensor, Tensor]:
        nothing = latent.new_zeros(len(latent), 3, *self.uv_size)
        return nothing, nothing


def _outer_eye_distance(landmarks: Float[Tensor, "batch 68 3"]) -> Float[Tensor, " batch"]:
    return (landmarks[:, OUTER_EYES[0]] - landmarks[:, OUTER_EYES[1]]).norm(dim=-1)
