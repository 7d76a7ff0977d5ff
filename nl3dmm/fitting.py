"""Reconstruct faces by optimising latents, camera and light (paper section 4: "solely by optimizing latents")."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.geometry.camera import project, rotation_from_6d
from nl3dmm.losses.pixels import feature_distance, l21, masked_mean, pixel_distance
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, FaceModel
from nl3dmm.nn.perceptual import FeatureNetwork
from nl3dmm.render.scene import composite
from nl3dmm.types import Camera, Latents

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class FitConfig:
    """Steps and weights of one optimisation; colours in [0, 1], landmarks in half image sizes."""

    steps: int = 60
    learning_rate: float = 0.15
    slow: float = 0.2  # camera and light move at this fraction of the latents' rate
    landmark_steps: int = 0  # first steps on landmarks and camera alone
    photo: float = 1.0
    perceptual: float = 0.0
    landmark: float = 0.0
    latent_prior: float = 0.002
    light_prior: float = 0.0  # pulls the light's colour towards grey

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 100_000)
        check_range("learning_rate", self.learning_rate, 1e-9, 10)


@dataclass(frozen=True)
class FitResult:
    """The fitted faces and, per term, the value at each step (mean over the batch)."""

    face: Face
    curves: dict[str, list[float]]


class _FreeFace:
    """A face as free parameters: latents, 6D rotation, translation in half image sizes, log scale, light."""

    def __init__(self, start: Face, image_size: int):
        self.start, self.half_size = start, image_size / 2

        def free(value: Tensor) -> Tensor:
            return value.detach().clone().requires_grad_(True)

        self.shape_latent, self.albedo_latent = free(start.latents.shape_latent), free(start.latents.albedo_latent)
        self.rotation = free(start.camera.rotation[:, :2].flatten(1))
        self.translation = free(start.camera.translation / self.half_size)
        self.log_scale = free(start.camera.scale.log())
        self.light = free(start.sh_coefficients)

    def groups(self, config: FitConfig) -> list[dict]:
        fast, slow = [self.shape_latent, self.albedo_latent], [self.rotation, self.translation, self.log_scale]
        rate = config.learning_rate
        return [{"params": fast, "lr": rate}, {"params": slow, "lr": rate * config.slow * 0.2}, self._light(config)]

    def _light(self, config: FitConfig) -> dict:
        return {"params": [self.light], "lr": config.learning_rate * config.slow}

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
    mask: Bool[Tensor, "batch height width"] | None = None,
    features: FeatureNetwork | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> FitResult:
    """Adam on latents, camera and light with frozen decoders; every face of the batch is fitted on its own.

    Args:
        mask: pixels that may show skin; ``None`` trusts all that the mesh covers.
        landmarks: pixels of ``image``; used with ``config.landmark`` and ``config.landmark_steps``.
        features: network of the perceptual term; needed when ``config.perceptual`` > 0.
    """
    free = _FreeFace(start.detach(), image.shape[-1])
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    curves: dict[str, list[float]] = {}
    try:
        optimizer = torch.optim.Adam(free.groups(config), betas=(0.9, 0.99))
        total_steps = config.landmark_steps + config.steps
        for step in range(total_steps):
            optimizer.zero_grad(set_to_none=True)
            face = free.face()
            only_landmarks = step < config.landmark_steps
            terms = _terms(
                model, image, face, config, landmarks, None if only_landmarks else mask, features, only_landmarks
            )
            loss = sum(terms.values(), torch.zeros((), device=image.device))
            # Sum over faces: each face's gradient is as if it were alone.
            (loss * len(image)).backward()
            optimizer.step()
            for name, term in terms.items():
                curves.setdefault(name, []).append(float(term.detach()))
            progress(step + 1, total_steps, float(loss.detach()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return FitResult(free.face().detach(), curves)


def _terms(model, image, face, config, landmarks, mask, features, only_landmarks) -> dict[str, Tensor]:
    geometry = model.decode(face.latents)
    latents = face.latents
    prior = (latents.shape_latent**2).mean() + (latents.albedo_latent**2).mean()
    terms = {"latent_prior": config.latent_prior * prior}
    if landmarks is not None and config.landmark > 0:
        pixels, _ = project(face.camera, model.template.landmarks(geometry.vertices_final))
        terms["landmark"] = config.landmark * landmark_distance(pixels, landmarks).mean() / (image.shape[-1] / 2)
    if only_landmarks:
        return terms
    size = (image.shape[-2], image.shape[-1])
    drawn = model.render(face, geometry.vertices_final, geometry.maps.albedo_final[:, None], size)
    seen = drawn.mask if mask is None else drawn.mask & mask
    terms["photo"] = config.photo * l21(drawn.images[:, 0], image, seen).mean()
    if config.light_prior > 0:
        tint = face.sh_coefficients - face.sh_coefficients.mean(1, keepdim=True)
        terms["light_prior"] = config.light_prior * (tint**2).mean()
    if features is not None and config.perceptual > 0:
        picture = composite(drawn.images[:, 0], image, seen)
        terms["perceptual"] = config.perceptual * feature_distance(features(picture), features(image)).mean()
    return terms


@torch.no_grad()
def photometric_error(
    model: FaceModel,
    image: Float[Tensor, "batch 3 height width"],
    face: Face,
    mask: Bool[Tensor, "batch height width"] | None = None,
) -> Float[Tensor, " batch"]:
    """l2,1 of (S, A) over ``mask``, where uncovered pixels count as black; over the drawn face without a mask."""
    geometry = model.decode(face.latents)
    size = (image.shape[-2], image.shape[-1])
    drawn = model.render(face, geometry.vertices_final, geometry.maps.albedo_final[:, None], size)
    picture = drawn.images[:, 0].clamp(0, 1)
    return masked_mean(pixel_distance(picture, image), drawn.mask if mask is None else mask)
