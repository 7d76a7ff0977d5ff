"""Reconstruct faces by optimising latents, camera and light (paper section 4: "solely by optimizing latents")."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.geometry.camera import project, rotation_from_6d
from nl3dmm.losses.pixels import l21, masked_mean, pixel_distance
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.types import Camera, Latents

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class FitConfig:
    """Steps and weights of one optimisation; colours in [0, 1], landmarks in half image sizes."""

    steps: int = 60
    learning_rate: float = 0.15  # of the latents
    light_rate: float = 0.03
    camera_rate: float = 0.006
    pose_rate: float = 0.03  # of the camera in the landmark steps
    landmark_steps: int = 0  # the first of the steps: the camera alone, on landmarks alone
    detail_steps: int = 0  # the last of the steps: a free albedo residual in UV space joins
    detail_rate: float = 0.05
    photo: float = 1.0
    landmark: float = 0.0
    latent_prior: float = 0.02  # mean squared distance from the latents that the fit starts with
    detail_prior: float = 0.02  # l1 of the albedo residual and of its differences between neighbours

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 100_000)
        check_range("learning_rate", self.learning_rate, 1e-9, 10)
        check_range("landmark_steps", self.landmark_steps, 0, self.steps - 1)
        check_range("detail_steps", self.detail_steps, 0, self.steps - self.landmark_steps)


def photo_config(steps: int, guided: bool = True) -> FitConfig:
    """For photos, which lie further from what was trained on than synthetic faces: smaller steps.

    Args:
        guided: by landmarks, on which the first quarter of the steps finds the pose.
    """
    pose_steps = steps // 4 if guided else 0
    landmark = 2.0 if guided else 0.0
    return FitConfig(steps, learning_rate=0.05, landmark=landmark, landmark_steps=pose_steps)


@dataclass(frozen=True)
class FitResult:
    """The fitted faces and, per term, the value at each step (mean over the batch)."""

    face: Face
    curves: dict[str, list[float]]
    albedo_detail: Float[Tensor, "batch 3 uv_height uv_width"]  # raw residual of the final albedo, before its sigmoid


class _FreeFace:
    """A face as free parameters: latents, 6D rotation, translation in half image sizes, log scale, light."""

    def __init__(self, start: Face, image_size: int, uv_size: tuple[int, int]):
        self.start, self.half_size = start, image_size / 2

        def free(value: Tensor) -> Tensor:
            return value.detach().clone().requires_grad_(True)

        self.shape_latent, self.albedo_latent = free(start.latents.shape_latent), free(start.latents.albedo_latent)
        self.rotation = free(start.camera.rotation[:, :2].flatten(1))
        self.translation = free(start.camera.translation / self.half_size)
        self.log_scale = free(start.camera.scale.log())
        self.light = free(start.sh_coefficients)
        self.albedo_detail = free(start.sh_coefficients.new_zeros(len(start.sh_coefficients), 3, *uv_size))

    def groups(self, config: FitConfig, stage: str) -> list[dict]:
        camera = [self.rotation, self.translation, self.log_scale]
        if stage == "pose":
            return [{"params": camera, "lr": config.pose_rate}]
        latents = [self.shape_latent, self.albedo_latent]
        groups = [
            {"params": latents, "lr": config.learning_rate},
            {"params": camera, "lr": config.camera_rate},
            {"params": [self.light], "lr": config.light_rate},
        ]
        detail = {"params": [self.albedo_detail], "lr": config.detail_rate}
        return [*groups, detail] if stage == "detail" else groups

    def face(self) -> Face:
        start = self.start.camera
        camera = Camera(
            rotation_from_6d(self.rotation),
            self.translation * self.half_size,
            self.log_scale.exp(),
            start.inverse_distance,
            start.principal_point,
        )
        return Face(Latents(self.shape_latent, self.albedo_latent), camera, self.light)


def optimise_faces(
    model: FaceModel,
    image: Float[Tensor, "batch 3 height width"],
    start: Face,
    config: FitConfig,
    landmarks: Float[Tensor, "batch 68 2"] | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> FitResult:
    """Adam on latents, camera and light with frozen decoders; every face of the batch is fitted on its own.

    Args:
        landmarks: pixels of ``image``; needed for ``config.landmark`` and ``config.landmark_steps``.
    """
    free = _FreeFace(start.detach(), image.shape[-1], model.template.uv_size)
    stages = ["pose"] * config.landmark_steps + ["latents"] * (config.steps - config.landmark_steps)
    stages[config.steps - config.detail_steps :] = ["detail"] * config.detail_steps
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    curves: dict[str, list[float]] = {}
    try:
        for step, stage in enumerate(stages):
            if step == 0 or stage != stages[step - 1]:
                optimizer = torch.optim.Adam(free.groups(config, stage), betas=(0.9, 0.99))
            optimizer.zero_grad(set_to_none=True)
            terms = _terms(model, image, free, config, landmarks, stage)
            loss = sum(terms.values(), torch.zeros((), device=image.device))
            # Sum over faces: each face's gradient is as if it were alone.
            (loss * len(image)).backward()
            optimizer.step()
            for name, term in terms.items():
                curves.setdefault(name, []).append(float(term.detach()))
            progress(step + 1, config.steps, float(loss.detach()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return FitResult(free.face().detach(), curves, free.albedo_detail.detach())


def add_albedo_detail(geometry: Geometry, detail: Float[Tensor, "batch 3 uv_height uv_width"]) -> Geometry:
    """The geometry whose final albedo carries a raw residual; stays in [0, 1]."""
    raw = torch.logit(geometry.maps.albedo_final, eps=1e-4) + detail
    return replace(geometry, maps=replace(geometry.maps, albedo_final=raw.sigmoid()))


def _detail_magnitude(detail: Tensor) -> Tensor:
    down, right = detail.diff(dim=2).abs().mean(), detail.diff(dim=3).abs().mean()
    return detail.abs().mean() + down + right


def _terms(model, image, free, config, landmarks, stage) -> dict[str, Tensor]:
    face, posing = free.face(), stage == "pose"
    geometry = model.decode(face.latents)
    terms = {}
    if stage == "detail":
        geometry = add_albedo_detail(geometry, free.albedo_detail)
        terms["detail_prior"] = config.detail_prior * _detail_magnitude(free.albedo_detail)
    if landmarks is not None and config.landmark > 0:
        vertices = geometry.vertices_final.detach() if posing else geometry.vertices_final
        pixels, _ = project(face.camera, model.template.landmarks(vertices))
        terms["landmark"] = config.landmark * landmark_distance(pixels, landmarks).mean() / (image.shape[-1] / 2)
    if posing:
        return terms
    here, start = face.latents, free.start.latents
    moved = (here.shape_latent - start.shape_latent, here.albedo_latent - start.albedo_latent)
    terms["latent_prior"] = config.latent_prior * sum((latent**2).mean() for latent in moved)
    size = (image.shape[-2], image.shape[-1])
    drawn = model.render_final(face, geometry, size)
    terms["photo"] = config.photo * l21(drawn.images[:, 0], image, drawn.mask).mean()
    return terms


@torch.no_grad()
def photometric_errors(
    model: FaceModel,
    image: Float[Tensor, "batch 3 height width"],
    estimates: list[tuple[Face, Geometry]],
    region: Bool[Tensor, "batch height width"] | None = None,
) -> list[Float[Tensor, " batch"]]:
    """l2,1 of (S, A) of several estimates over one region of pixels; what an estimate does not cover is black there.

    Without a region: all pixels that any of the estimates covers.
    """
    size = (image.shape[-2], image.shape[-1])
    pictures, covered = [], torch.zeros_like(image[:, 0], dtype=torch.bool)
    for face, geometry in estimates:
        drawn = model.render_final(face, geometry, size)
        pictures.append(drawn.images[:, 0].clamp(0, 1))
        covered = covered | drawn.mask
    region = covered if region is None else region
    return [masked_mean(pixel_distance(picture, image), region) for picture in pictures]
