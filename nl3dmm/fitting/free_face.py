"""Faces as the parameters of an optimisation."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nl3dmm.errors import ConfigError
from nl3dmm.fitting.stages import FitConfig, Stage
from nl3dmm.geometry.camera import rotation_from_6d
from nl3dmm.model import Face
from nl3dmm.types import Camera, Latents

SHAREABLE = ("shape", "albedo")  # latents that several photos of one person may have in common


def shared_mean(latents: Latents, shared: Sequence[str]) -> Latents:
    """Those named in ``shared`` become their mean over the batch."""
    named = zip(SHAREABLE, (latents.shape_latent, latents.albedo_latent), strict=True)
    return Latents(*(each.mean(0, keepdim=True).expand_as(each) if name in shared else each for name, each in named))


class FreeFace:
    """Faces as free parameters: latents, 6D rotation, translation in half image sizes, log scale, light."""

    def __init__(self, start: Face, image_size: int, uv_size: tuple[int, int], shared: Sequence[str]):
        count, self.half_size = len(start.sh_coefficients), image_size / 2

        def free(value: Tensor) -> Tensor:
            return value.detach().clone().requires_grad_(True)

        self.start = replace(start, latents=shared_mean(start.latents, shared))
        named = zip(SHAREABLE, (self.start.latents.shape_latent, self.start.latents.albedo_latent), strict=True)
        self.latents = [free(latent[:1] if name in shared else latent) for name, latent in named]
        self.rotation = free(start.camera.rotation[:, :2].flatten(1))
        self.translation = free(start.camera.translation / self.half_size)
        self.log_scale = free(start.camera.scale.log())
        self.light = free(start.sh_coefficients)
        self.albedo_detail = free(start.sh_coefficients.new_zeros(count, 3, *uv_size))

    def groups(self, config: FitConfig, stage: Stage) -> list[dict]:
        camera = [self.rotation, self.translation, self.log_scale]
        if stage == "pose":
            return [{"params": camera, "lr": config.pose_rate}]
        if stage == "detail":
            return [{"params": [self.albedo_detail], "lr": config.detail_rate}]
        return [
            {"params": self.latents, "lr": config.learning_rate},
            {"params": camera, "lr": config.camera_rate},
            {"params": [self.light], "lr": config.light_rate},
        ]

    def face(self) -> Face:
        start = self.start.camera
        camera = Camera(
            rotation_from_6d(self.rotation),
            self.translation * self.half_size,
            self.log_scale.exp(),
            start.inverse_distance,
            start.principal_point,
        )
        latents = Latents(*(latent.expand(len(self.light), -1) for latent in self.latents))
        return Face(latents, camera, self.light)


def check_shared(shared: Sequence[str]) -> None:
    """Raises: ConfigError: a name that is not in ``SHAREABLE``."""
    if not set(shared) <= set(SHAREABLE):
        raise ConfigError(f"shared: got {sorted(shared)}; expected some of {SHAREABLE}. Change it.")
