"""Representation power (paper section 4.2): how near the decoders come to given faces, whatever latent that takes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.errors import ShapeError
from nl3dmm.evaluation.accuracy import Protocol
from nl3dmm.evaluation.detail import detail_scores
from nl3dmm.evaluation.latent_search import INNER, RATES, Errors, decode_albedo, ends, fit_shape, minimise
from nl3dmm.evaluation.unseen_faces import WORLD, FaceSource, open_faces
from nl3dmm.geometry.camera import project
from nl3dmm.losses.pixels import l21, masked_mean
from nl3dmm.model import Face, FaceModel
from nl3dmm.render.scene import Rendering, render_textures
from nl3dmm.render.uv import unwrap_photo
from nl3dmm.types import FaceBatch

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TextureFit:
    """The albedo and light that explain an image best when its shape and camera are known."""

    albedo: Float[Tensor, "batch 3 uv_height uv_width"]
    sh_coefficients: Float[Tensor, "batch 3 9"]


def fit_texture(model: FaceModel, batch: FaceBatch, start: Face, steps: int, end: str = "final") -> TextureFit:
    """Optimise albedo latent and light under the batch's shape and camera, from ``start``, on l2,1 over its mask.

    Args:
        end: ``proxy`` or ``final``: which albedo the texture is made of.
    """
    latent = start.latents.albedo_latent.detach().clone().requires_grad_(True)
    light = start.sh_coefficients.detach().clone().requires_grad_(True)

    def losses() -> Tensor:
        drawn = draw_truth(model, batch, decode_albedo(model, latent, end), light)
        return l21(drawn.images[:, 0], batch.image, drawn.mask & known(batch.mask))

    minimise([(latent, RATES["albedo_latent"]), (light, RATES["light"])], losses, steps)
    with torch.no_grad():
        return TextureFit(decode_albedo(model, latent, end), light.detach())


def draw_truth(
    model: FaceModel,
    batch: FaceBatch,
    albedo: Float[Tensor, "batch 3 uv_height uv_width"],
    sh_coefficients: Float[Tensor, "batch 3 9"],
) -> Rendering:
    """The batch's mesh under its camera in other colours."""
    vertices, camera = known(batch.vertices), known(batch.camera)
    size, space = (batch.image.shape[-2], batch.image.shape[-1]), model.config.shading_space
    return render_textures(vertices, albedo[:, None], camera, sh_coefficients, model.surface, size, space)


@torch.no_grad()
def texture_l21(model: FaceModel, batch: FaceBatch, fit: TextureFit) -> Float[Tensor, " batch"]:
    """l2,1 of the batch's mesh in this texture over what is visible of the face."""
    drawn = draw_truth(model, batch, fit.albedo, fit.sh_coefficients)
    return l21(drawn.images[:, 0].clamp(0, 1), batch.image, drawn.mask & known(batch.mask))


@torch.no_grad()
def texture_errors(
    model: FaceModel, batch: FaceBatch, fit: TextureFit, mean_albedo: Float[Tensor, "3 uv_height uv_width"] | None
) -> Errors:
    """l2,1 over the visible face that no known occluder hides, and how far the rest can be trusted.

    Where the true albedo is known: detail and albedo over the skin that the image shows. Elsewhere: how well the mesh
    and the camera, which are then no truth either, meet the landmarks.
    """
    photometric = texture_l21(model, batch, fit)
    if mean_albedo is None:
        return {"l21": photometric, **placement_errors(model, batch)}
    return {"l21": photometric, **albedo_errors(model, batch, fit.albedo, mean_albedo)}


@torch.no_grad()
def albedo_errors(
    model: FaceModel,
    batch: FaceBatch,
    albedo: Float[Tensor, "batch 3 uv_height uv_width"],
    mean_albedo: Float[Tensor, "3 uv_height uv_width"],
) -> Errors:
    """Detail scores and l1 over the skin that the image shows."""
    truth, skin = known(batch.albedo), model.template.regions["skin"] * model.template.uv_mask
    visible = unwrap_photo(batch.image, known(batch.camera), known(batch.vertices), model.surface).visible
    return {
        **detail_scores(albedo, truth, mean_albedo, skin, visible),
        "albedo_l1": masked_mean((albedo - truth).abs().mean(1), visible & (skin > 0.5)),
    }


@torch.no_grad()
def placement_errors(model: FaceModel, batch: FaceBatch) -> Errors:
    """Mean distance of the mesh's landmarks in the image, of all 68 and of the inner 51, over the size of the target's.

    The size is the square root of the bounding box's area: the distance of the eyes vanishes in profiles.
    """
    target = known(batch.landmarks)
    landmarks, _ = project(known(batch.camera), model.template.landmarks(known(batch.vertices)))
    size = (target.amax(1) - target.amin(1)).prod(-1).sqrt()
    nme = (landmarks - target).norm(dim=-1) / size[:, None]
    return {"landmark_nme": nme.mean(1), "landmark_nme_inner": nme[:, INNER].mean(1)}


def texture(
    trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD, progress: Progress = lambda done, total: None
) -> dict:
    """Texture error under fixed shape and camera: of the truth if known, the encoder, and the best of either albedo."""
    model, faces = trained.system.model, open_faces(trained, protocol, data)

    def measure(indices: Tensor) -> Iterator[tuple[str, Errors]]:
        batch = faces.sample(indices)
        with torch.no_grad():
            start = model.encode(batch.image)
        fits = {"encoder": fit_texture(model, batch, start, 0)}
        if batch.albedo is not None:
            fits = {"truth": TextureFit(batch.albedo, known(batch.sh_coefficients)), **fits}
        fits |= {end: fit_texture(model, batch, start, protocol.latent_steps, end) for end in ends(model)}
        for stage, fit in fits.items():
            yield stage, texture_errors(model, batch, fit, faces.mean_albedo)

    return _measured(trained, protocol, faces, measure, progress)


def shape(
    trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD, progress: Progress = lambda done, total: None
) -> dict:
    """Shape error after the best similarity: of the mean face, and of the best of either shape."""
    model, faces = trained.system.model, open_faces(trained, protocol, data)

    def measure(indices: Tensor) -> Iterator[tuple[str, Errors]]:
        target = faces.target(indices)
        yield "mean_face", target.errors(model.template.vertices.expand(len(indices), -1, -1))
        for end in ends(model):
            yield end, target.errors(fit_shape(model, target, protocol.latent_steps, end))

    return _measured(trained, protocol, faces, measure, progress) | {"alignment": "similarity, also while fitting"}


def _measured(
    trained: TrainedSystem,
    protocol: Protocol,
    faces: FaceSource,
    measure: Callable[[Int[Tensor, " batch"]], Iterator[tuple[str, Errors]]],
    progress: Progress,
) -> dict:
    """Errors of every stage over all faces, their means, and what they were measured on."""
    stages: dict[str, list[Errors]] = {}
    started = time.perf_counter()
    for indices in torch.arange(faces.count).split(protocol.batch_size):
        for stage, errors in measure(indices):
            stages.setdefault(stage, []).append(errors)
        progress(int(indices[-1]) + 1, faces.count)
    per_face = {
        stage: {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
        for stage, parts in stages.items()
    }
    groups = {
        name: {"faces": len(members), "errors": _means(per_face, members)} for name, members in faces.groups().items()
    }
    return {
        "protocol": vars(protocol) | {"data": faces.name, "faces": faces.count, "rates": RATES},
        "truth": faces.truth,
        "checkpoint_step": trained.step,
        "template": trained.template.name,
        "world": vars(trained.config.world),
        "seconds": round(time.perf_counter() - started, 1),
        "errors": _means(per_face),
        "groups": groups,
        "per_face": {
            stage: {name: value.tolist() for name, value in errors.items()} for stage, errors in per_face.items()
        },
    }


def _means(per_face: dict[str, Errors], members: Tensor | slice = slice(None)) -> dict[str, dict[str, float]]:
    return {
        stage: {name: float(value[members].mean()) for name, value in errors.items()}
        for stage, errors in per_face.items()
    }


def known(value: T | None) -> T:
    """A field of a batch of faces that must know their truth."""
    if value is None:
        raise ShapeError("batch: got faces without truth; expected mask, camera, mesh, albedo. Use SyntheticWorld.")
    return value


def errors_table(results: dict) -> str:
    """Aligned text: one row per stage, of all faces and of each group."""
    metrics = list(next(iter(results["errors"].values())))
    lines = [f"{'':12}" + "".join(f"{name:>24}" for name in metrics)]
    blocks = {"": results["errors"]}
    for name, group in results.get("groups", {}).items():
        blocks[f"{name}: {group['faces']} face(s)"] = group["errors"]
    for title, errors in blocks.items():
        lines += [title] if title else []
        lines += [f"{stage:12}" + "".join(f"{row[name]:>24.4f}" for name in metrics) for stage, row in errors.items()]
    return "\n".join(lines)
