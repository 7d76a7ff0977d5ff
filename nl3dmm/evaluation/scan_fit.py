"""Shape power on a scan of another topology: nearest points after alignment by landmarks."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.scans import Scan, read_scan
from nl3dmm.evaluation.accuracy import OUTER_EYES, Protocol
from nl3dmm.evaluation.latent_search import RATES, decode_vertices, ends, minimise
from nl3dmm.geometry.similarity import similarity
from nl3dmm.model import FaceModel

_ROUNDS = 5  # alignment and nearest points are found anew at the start of each
_FARTHEST_MM = 10.0  # beyond it a scan has a hole or ends
_CHUNK = 2048


def fit_scan(model: FaceModel, scan: Scan, steps: int, end: str = "final") -> Float[Tensor, "1 vertices 3"]:
    """The mesh whose face region and landmarks come nearest to the scan; latents start at 0.

    In each round the scan is laid on the mesh by the 68 landmarks, and each vertex draws to its nearest scan point.
    """
    latent = torch.zeros(1, model.config.shape_latent, device=model.device, requires_grad=True)
    region = face_vertices(model)
    for count in [steps // _ROUNDS + (part < steps % _ROUNDS) for part in range(_ROUNDS)]:
        with torch.no_grad():
            start = decode_vertices(model, latent, end)
        points, marks = place(scan, model.template.landmarks(start))
        target, near = _nearest(start[0, region], points)

        def losses(target: Tensor = target, near: Tensor = near, marks: Tensor = marks) -> Tensor:
            mesh = decode_vertices(model, latent, end)
            surface = (mesh[0, region] - target).norm(dim=-1)[near].mean()
            return (surface + (model.template.landmarks(mesh)[0] - marks).norm(dim=-1).mean())[None]

        minimise([(latent, RATES["shape_latent"])], losses, count)
    with torch.no_grad():
        return decode_vertices(model, latent, end)


@torch.no_grad()
def scan_errors(model: FaceModel, vertices: Float[Tensor, "1 vertices 3"], scan: Scan) -> dict[str, float]:
    """Mean distance of the face region to the nearest scan point, over the scan's outer-eye distance too (NME).

    ``covered``: the part of the region that the scan comes within 10 mm of; only this part counts.
    """
    points, marks = place(scan, model.template.landmarks(vertices))
    region = vertices[0, face_vertices(model)]
    target, near = _nearest(region, points)
    distance = (region - target).norm(dim=-1)[near].mean()
    landmark = (model.template.landmarks(vertices)[0] - marks).norm(dim=-1).mean()
    eyes = marks[list(OUTER_EYES)]
    return {
        "nme": float(distance / (eyes[0] - eyes[1]).norm()),
        "distance_mm": float(distance),
        "landmark_mm": float(landmark),
        "covered": float(near.float().mean()),
    }


def scan_shape(
    trained: TrainedSystem, protocol: Protocol, data: str | Path, progress: Callable[[int, int], None]
) -> dict:
    """Shape errors on one scan: of the mean face, and of the best of either shape."""
    model, scan = trained.system.model, read_scan(data)
    started = time.perf_counter()
    meshes = {"mean_face": model.template.vertices[None]}
    meshes |= {end: fit_scan(model, scan, protocol.latent_steps, end) for end in ends(model)}
    progress(1, 1)
    return {
        "protocol": vars(protocol) | {"data": scan.name, "faces": 1, "rates": RATES},
        "checkpoint_step": trained.step,
        "template": trained.template.name,
        "alignment": "similarity by 68 landmarks; distances to the nearest scan point, not to a corresponding one",
        "seconds": round(time.perf_counter() - started, 1),
        "errors": {stage: scan_errors(model, mesh, scan) for stage, mesh in meshes.items()},
    }


def place(scan: Scan, landmarks: Float[Tensor, "1 68 3"]) -> tuple[Float[Tensor, "points 3"], Float[Tensor, "68 3"]]:
    """The scan's points and landmarks after the similarity that lays the latter on a mesh's."""
    points, marks = scan.points.to(landmarks), scan.landmarks.to(landmarks)
    best = similarity(marks[None], landmarks)
    return best.apply(points[None])[0], best.apply(marks[None])[0]


def face_vertices(model: FaceModel) -> Int[Tensor, " vertices"]:
    """Vertices of the template's frontal area."""
    inside = model.surface.to_vertices(model.template.regions["face"][None, None])[0, :, 0] > 0.5
    used = torch.zeros_like(inside).index_fill(0, model.template.triangles.unique(), True)
    return (inside & used).nonzero()[:, 0]


def _nearest(
    points: Float[Tensor, "points 3"], scan: Float[Tensor, "others 3"]
) -> tuple[Float[Tensor, "points 3"], Bool[Tensor, " points"]]:
    """Of each point the nearest of the scan, and whether it is near enough to be the same surface."""
    index = torch.cat([torch.cdist(part, scan).argmin(1) for part in points.split(_CHUNK)])
    return scan[index], (points - scan[index]).norm(dim=-1) < _FARTHEST_MM
