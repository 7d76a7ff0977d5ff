"""Representation power (paper section 4.2): how near the decoders come to given faces, whatever latent that takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.truth import TRUTH_FILE, TruthFaces
from nl3dmm.detail_metrics import detail_scores
from nl3dmm.errors import AssetError, ShapeError
from nl3dmm.evaluation import OUTER_EYES, Protocol, similarity_aligned, test_world, training_world
from nl3dmm.geometry.mesh import vertex_normals
from nl3dmm.losses.pixels import l21, masked_mean
from nl3dmm.model import Face, FaceModel
from nl3dmm.render.scene import Rendering, render_textures
from nl3dmm.render.uv import unwrap_photo
from nl3dmm.synthetic.world import SyntheticWorld, mean_face
from nl3dmm.types import FaceBatch, Latents

WORLD = "world"
RATES = {"albedo_latent": 0.1, "light": 0.03, "shape_latent": 0.1}  # of Adam, falling to 0 along a cosine
NORMAL_MM = 5.0  # weight of 1 - cosine of the normals beside distances in mm

T = TypeVar("T")
Errors = dict[str, Float[Tensor, " batch"]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class UnseenFaces:
    """Unseen faces with exact truth: a world's first ``count``, or those of a folder."""

    name: str
    count: int
    source: SyntheticWorld | TruthFaces
    mean_albedo: Float[Tensor, "3 uv_height uv_width"]


def open_faces(trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD) -> UnseenFaces:
    """The synthetic world under the protocol's seed, or a folder with ``truth.npz``.

    Raises:
        AssetError: neither of them, or a folder of another topology than the model's.
    """
    if str(data) == WORLD:
        mean = mean_face(training_world(trained))[1]
        return UnseenFaces(WORLD, protocol.faces, test_world(trained, protocol), mean)
    if not (Path(data) / TRUTH_FILE).is_file():
        raise AssetError(f"data: got {data}; expected 'world' or a folder with {TRUTH_FILE}. Check the path.")
    faces = TruthFaces(data, trained.template, trained.config.model.image_size)
    return UnseenFaces(Path(data).resolve().name, min(protocol.faces, len(faces)), faces, faces.mean_albedo())


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


@dataclass(frozen=True)
class TextureFit:
    """The albedo and light that explain an image best when its shape and camera are known."""

    albedo: Float[Tensor, "batch 3 uv_height uv_width"]
    sh_coefficients: Float[Tensor, "batch 3 9"]


def fit_texture(model: FaceModel, batch: FaceBatch, start: Face, steps: int, end: str = "final") -> TextureFit:
    """Optimise albedo latent and light under the true shape and camera, from ``start``, on l2,1 over the true mask.

    Args:
        end: ``proxy`` or ``final``: which albedo the texture is made of.
    """
    latent = start.latents.albedo_latent.detach().clone().requires_grad_(True)
    light = start.sh_coefficients.detach().clone().requires_grad_(True)

    def losses() -> Tensor:
        drawn = draw_truth(model, batch, _albedo(model, latent, end), light)
        return l21(drawn.images[:, 0], batch.image, drawn.mask & known(batch.mask))

    minimise([(latent, RATES["albedo_latent"]), (light, RATES["light"])], losses, steps)
    with torch.no_grad():
        return TextureFit(_albedo(model, latent, end), light.detach())


def fit_shape(
    model: FaceModel,
    target: Float[Tensor, "batch vertices 3"],
    steps: int,
    end: str = "final",
    align: bool = True,
) -> Float[Tensor, "batch vertices 3"]:
    """Meshes of the shape latents that come nearest to meshes in correspondence; latents start at 0.

    Minimises the mean vertex distance (mm) plus ``NORMAL_MM`` times one minus the cosine of the normals.

    Args:
        align: compare after the best similarity, which carries neither pose nor size into the latent.
    """
    latent = target.new_zeros(len(target), model.config.shape_latent).requires_grad_(True)
    used, triangles = model.template.triangles.unique(return_inverse=True)
    goal = target[:, used]
    goal_normals = vertex_normals(goal, triangles)

    def losses() -> Tensor:
        points = decode_vertices(model, latent, end)[:, used]
        points = similarity_aligned(points, goal) if align else points
        cosine = (vertex_normals(points, triangles) * goal_normals).sum(-1)
        return (points - goal).norm(dim=-1).mean(1) + NORMAL_MM * (1 - cosine).mean(1)

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


def draw_truth(
    model: FaceModel,
    batch: FaceBatch,
    albedo: Float[Tensor, "batch 3 uv_height uv_width"],
    sh_coefficients: Float[Tensor, "batch 3 9"],
) -> Rendering:
    """The true mesh under the true camera in other colours."""
    vertices, camera = known(batch.vertices), known(batch.camera)
    size, space = (batch.image.shape[-2], batch.image.shape[-1]), model.config.shading_space
    return render_textures(vertices, albedo[:, None], camera, sh_coefficients, model.surface, size, space)


@torch.no_grad()
def texture_errors(model: FaceModel, batch: FaceBatch, fit: TextureFit, mean_albedo: Tensor) -> Errors:
    """l2,1 over the visible face that no occluder hides; detail and albedo over the skin that the image shows."""
    truth, skin = known(batch.albedo), model.template.regions["skin"] * model.template.uv_mask
    drawn = draw_truth(model, batch, fit.albedo, fit.sh_coefficients)
    visible = unwrap_photo(batch.image, known(batch.camera), known(batch.vertices), model.surface).visible
    return {
        "l21": l21(drawn.images[:, 0].clamp(0, 1), batch.image, drawn.mask & known(batch.mask)),
        **detail_scores(fit.albedo, truth, mean_albedo, skin, visible),
        "albedo_l1": masked_mean((fit.albedo - truth).abs().mean(1), visible & (skin > 0.5)),
    }


def shape_errors(
    model: FaceModel,
    vertices: Float[Tensor, "batch vertices 3"],
    target: Float[Tensor, "batch vertices 3"],
    align: bool = True,
) -> Errors:
    """Mean vertex distance, the same over the target's outer-eye distance (NME), mean cosine of the normals."""
    used, triangles = model.template.triangles.unique(return_inverse=True)
    goal, points = target[:, used], vertices[:, used]
    points = similarity_aligned(points, goal) if align else points
    eyes = model.template.landmarks(target)[:, OUTER_EYES]
    distance = (points - goal).norm(dim=-1).mean(1)
    return {
        "nme": distance / (eyes[:, 0] - eyes[:, 1]).norm(dim=-1),
        "distance_mm": distance,
        "normal_cosine": (vertex_normals(points, triangles) * vertex_normals(goal, triangles)).sum(-1).mean(1),
    }


def texture(
    trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD, progress: Progress = lambda done, total: None
) -> dict:
    """Texture error under true shape and camera: of the truth itself, the encoder, and the best of either albedo."""
    model, faces = trained.system.model, open_faces(trained, protocol, data)
    mean = faces.mean_albedo.to(model.device)

    def measure(indices: Tensor) -> Iterator[tuple[str, Errors]]:
        batch = faces.source.sample(indices).to(model.device)
        with torch.no_grad():
            start = model.encode(batch.image)
        truth = TextureFit(known(batch.albedo), known(batch.sh_coefficients))
        yield "truth", texture_errors(model, batch, truth, mean)
        yield "encoder", texture_errors(model, batch, fit_texture(model, batch, start, 0), mean)
        for end in ends(model):
            fit = fit_texture(model, batch, start, protocol.latent_steps, end)
            yield end, texture_errors(model, batch, fit, mean)

    return _measured(trained, protocol, faces, measure, progress)


def shape(
    trained: TrainedSystem, protocol: Protocol, data: str | Path = WORLD, progress: Progress = lambda done, total: None
) -> dict:
    """Shape error after the best similarity: of the mean face, and of the best of either shape."""
    model, faces = trained.system.model, open_faces(trained, protocol, data)

    def measure(indices: Tensor) -> Iterator[tuple[str, Errors]]:
        target = faces.source.vertices(indices).to(model.device)
        yield "mean_face", shape_errors(model, model.template.vertices.expand_as(target), target)
        for end in ends(model):
            yield end, shape_errors(model, fit_shape(model, target, protocol.latent_steps, end), target)

    return _measured(trained, protocol, faces, measure, progress) | {"alignment": "similarity, also while fitting"}


def _measured(
    trained: TrainedSystem,
    protocol: Protocol,
    faces: UnseenFaces,
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
        stage: {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for stage, parts in stages.items()
    }
    return {
        "protocol": vars(protocol) | {"data": faces.name, "faces": faces.count, "rates": RATES},
        "checkpoint_step": trained.step,
        "template": trained.template.name,
        "world": vars(trained.config.world),
        "seconds": round(time.perf_counter() - started, 1),
        "errors": {
            stage: {name: float(value.mean()) for name, value in errors.items()} for stage, errors in per_face.items()
        },
        "per_face": {
            stage: {name: value.tolist() for name, value in errors.items()} for stage, errors in per_face.items()
        },
    }


class _Nothing(nn.Module):
    """The decoder of the average face: stands in for the one of shape and albedo that is not asked for."""

    def __init__(self, uv_size: tuple[int, int]):
        super().__init__()
        self.uv_size = uv_size

    def forward(self, latent: Float[Tensor, "batch latent"]) -> tuple[Tensor, Tensor]:
        nothing = latent.new_zeros(len(latent), 3, *self.uv_size)
        return nothing, nothing


def _albedo(model: FaceModel, latent: Tensor, end: str) -> Float[Tensor, "batch 3 uv_height uv_width"]:
    nothing = _Nothing(model.template.uv_size)
    maps = model.decode_with(nothing, model.albedo_decoder, Latents(latent, latent)).maps
    return maps.albedo_proxy if end == "proxy" else maps.albedo_final


def decode_vertices(
    model: FaceModel, latent: Float[Tensor, "batch latent"], end: str
) -> Float[Tensor, "batch vertices 3"]:
    """Meshes of one end, without decoding albedo."""
    nothing = _Nothing(model.template.uv_size)
    geometry = model.decode_with(model.shape_decoder, nothing, Latents(latent, latent))
    return geometry.vertices_proxy if end == "proxy" else geometry.vertices_final


def known(value: T | None) -> T:
    """A field of a batch of faces that must know their truth."""
    if value is None:
        raise ShapeError("batch: got faces without truth; expected mask, camera, mesh, albedo. Use SyntheticWorld.")
    return value


def errors_table(errors: dict[str, dict[str, float]]) -> str:
    """Aligned text: one row per stage."""
    metrics = list(next(iter(errors.values())))
    lines = [f"{'':12}" + "".join(f"{name:>20}" for name in metrics)]
    return "\n".join(
        lines + [f"{stage:12}" + "".join(f"{row[name]:>20.4f}" for name in metrics) for stage, row in errors.items()]
    )
