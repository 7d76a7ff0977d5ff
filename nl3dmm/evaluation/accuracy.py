"""Errors against exact truth on synthetic faces that no training run sees."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.config import check_range
from nl3dmm.errors import ShapeError
from nl3dmm.fitting.optimise import optimise_faces
from nl3dmm.fitting.stages import FitConfig
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.similarity import similarity_aligned
from nl3dmm.losses.pixels import masked_mean, pixel_distance
from nl3dmm.model import Face, FaceModel
from nl3dmm.render.scene import render_textures
from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig, mean_face
from nl3dmm.types import Camera, FaceBatch, concatenate

TEST_SEED = 1_000_003  # no training run may use it
OUTER_EYES = (36, 45)
METRICS = ("photo", "nme", "shape_mm", "albedo_l1", "rotation_deg", "mask_iou")


@dataclass(frozen=True)
class Protocol:
    """What was measured: stamped beside every number."""

    faces: int = 128
    latent_steps: int = 60
    batch_size: int = 16
    seed: int = TEST_SEED
    camera: str = "mixed"
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        check_range("faces", self.faces, 1, 1_000_000)
        check_range("latent steps", self.latent_steps, 0, 100_000)
        check_range("batch_size", self.batch_size, 1, 1e6)


def landmark_nme(
    landmarks: Float[Tensor, "batch 68 2"], target: Float[Tensor, "batch 68 2"]
) -> Float[Tensor, " batch"]:
    """Mean distance of 68 points over the target's outer-eye distance (points 36 and 45)."""
    span = (target[:, OUTER_EYES[0]] - target[:, OUTER_EYES[1]]).norm(dim=-1)
    return (landmarks - target).norm(dim=-1).mean(-1) / span


@torch.no_grad()
def face_errors(model: FaceModel, face: Face, batch: FaceBatch) -> dict[str, Float[Tensor, " batch"]]:
    """Errors of the final shape and albedo per face.

    Photometric: over the true mask, where uncovered pixels count as black.
    """
    geometry = model.decode(face.latents)
    size = (batch.image.shape[-2], batch.image.shape[-1])
    drawn = model.render_final(face, geometry, size)
    mesh = geometry.vertices_final
    landmarks, _ = project(face.camera, model.template.landmarks(mesh))
    camera, _ = _true_scene(batch)
    return _errors(model, batch, drawn.images[:, 0], drawn.mask, mesh, landmarks, geometry.maps.albedo_final) | {
        "rotation_deg": _angle(face.camera.rotation, camera.rotation)
    }


@torch.no_grad()
def mean_face_errors(
    model: FaceModel,
    vertices: Float[Tensor, "vertices 3"],
    albedo: Float[Tensor, "3 uv_height uv_width"],
    batch: FaceBatch,
) -> dict[str, Float[Tensor, " batch"]]:
    """The baseline: mean shape and mean albedo under the true camera and light."""
    count, size = len(batch.image), (batch.image.shape[-2], batch.image.shape[-1])
    camera, light = _true_scene(batch)
    mesh, maps = vertices.expand(count, -1, -1), albedo.expand(count, -1, -1, -1)
    drawn = render_textures(mesh, maps[:, None], camera, light, model.surface, size, model.config.shading_space)
    landmarks, _ = project(camera, model.template.landmarks(mesh))
    return _errors(model, batch, drawn.images[:, 0], drawn.mask, mesh, landmarks, maps)


def _true_scene(batch: FaceBatch) -> tuple[Camera, Tensor]:
    if batch.camera is None or batch.sh_coefficients is None:
        raise ShapeError("batch: got no true camera or light; expected a synthetic world's sample. Use SyntheticWorld.")
    return batch.camera, batch.sh_coefficients


def _errors(model, batch, picture, mask, mesh, landmarks, albedo) -> dict[str, Tensor]:
    both, either = (mask & batch.mask).sum((1, 2)), (mask | batch.mask).sum((1, 2))
    texels = model.template.uv_mask.expand(len(albedo), -1, -1)
    used = model.template.triangles.unique()
    aligned = similarity_aligned(mesh[:, used], batch.vertices[:, used])
    return {
        "photo": masked_mean(pixel_distance(picture.clamp(0, 1), batch.image), batch.mask),
        "nme": landmark_nme(landmarks, batch.landmarks),
        "shape_mm": (aligned - batch.vertices[:, used]).norm(dim=-1).mean(1),
        "albedo_l1": masked_mean((albedo - batch.albedo).abs().mean(1), texels),
        "mask_iou": both / either.clamp_min(1),
    }


def _angle(rotation: Float[Tensor, "batch 3 3"], target: Float[Tensor, "batch 3 3"]) -> Float[Tensor, " batch"]:
    """Of the rotation from one to the other, degrees; exact near 0, where the arc cosine is not."""
    half_sine = (rotation - target).norm(dim=(1, 2)) / 8**0.5
    return torch.rad2deg(2 * torch.asin(half_sine.clamp_max(1)))


def _mean(errors: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.cat([part[name] for part in errors]).mean()) for name in errors[0]}


def evaluate(
    trained: TrainedSystem, protocol: Protocol, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict:
    """Mean errors of the mean face, the encoder alone and, if asked for, after latent steps; with ratios.

    Latent steps see the image only: no landmarks, no mask, no truth.
    """
    model = trained.system.model
    world = test_world(trained, protocol)
    vertices, albedo = mean_face(training_world(trained))
    vertices, albedo = vertices.to(model.device), albedo.to(model.device)
    stages: dict[str, list] = {"mean_face": [], "encoder": []}
    started = time.perf_counter()
    for indices in torch.arange(protocol.faces).split(protocol.batch_size):
        batch = world.sample(indices).to(model.device)
        with torch.no_grad():
            face = model.encode(batch.image)
        stages["mean_face"].append(mean_face_errors(model, vertices, albedo, batch))
        stages["encoder"].append(face_errors(model, face, batch))
        if protocol.latent_steps:
            fitted = optimise_faces(model, FitTarget(batch.image), face, FitConfig(steps=protocol.latent_steps)).face
            stages.setdefault("fitted", []).append(face_errors(model, fitted, batch))
        progress(int(indices[-1]) + 1, protocol.faces)
    results = {name: _mean(errors) for name, errors in stages.items()}
    return {
        "protocol": vars(protocol),
        "checkpoint_step": trained.step,
        "template": trained.template.name,
        "world": vars(trained.config.world),
        "seconds": round(time.perf_counter() - started, 1),
        "errors": results,
        "ratios_to_mean_face": {
            name: {
                metric: values[metric] / results["mean_face"][metric] for metric in ("photo", "shape_mm", "albedo_l1")
            }
            for name, values in results.items()
            if name != "mean_face"
        },
    }


def training_world(trained: TrainedSystem) -> SyntheticWorld:
    """The world that the run was trained on."""
    config, model = trained.config, trained.config.model
    template = trained.template.to("cpu")
    return SyntheticWorld(template, config.world, model.image_size, config.seed, model.shading_space)


def test_world(trained: TrainedSystem, protocol: Protocol) -> SyntheticWorld:
    """The same kind of faces from another seed, with the protocol's camera and occluders."""
    config: WorldConfig = replace(trained.config.world, camera=protocol.camera, occlusion=protocol.occlusion)
    model, template = trained.config.model, trained.template.to("cpu")
    return SyntheticWorld(template, config, model.image_size, protocol.seed, model.shading_space)


def sample_faces(world: SyntheticWorld, count: int) -> FaceBatch:
    """The first ``count`` faces of a world."""
    return concatenate([world.sample(indices) for indices in torch.arange(count).split(32)])


def table(results: dict) -> str:
    """Aligned text: one row per stage, ratios to the mean face in brackets."""
    lines = [f"{'':12}" + "".join(f"{name:>18}" for name in METRICS)]
    ratios = results["ratios_to_mean_face"]
    for stage, errors in results["errors"].items():
        cells = []
        for metric in METRICS:
            ratio = ratios.get(stage, {}).get(metric)
            value = f"{errors[metric]:.4f}" if metric in errors else "-"
            cells.append(f"{value + (f' ({ratio:.3f})' if ratio is not None else ''):>18}")
        lines.append(f"{stage:12}" + "".join(cells))
    return "\n".join(lines)
