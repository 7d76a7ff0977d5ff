"""Reconstruct faces by optimising latents, camera and light (paper section 4: "solely by optimizing latents")."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.errors import ConfigError
from nl3dmm.geometry.camera import project, rotation_from_6d
from nl3dmm.losses.pixels import feature_distance, l21
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.nn.perceptual import FeatureNetwork
from nl3dmm.render.scene import Rendering, composite
from nl3dmm.types import Camera, Latents

Progress = Callable[[int, int, float], None]
Stage = Literal["pose", "proxy", "final", "detail"]
Terms = dict[str, Float[Tensor, " batch"]]
SHAREABLE = ("shape", "albedo")  # latents that several photos of one person may have in common
_WINDOW = 10  # steps over which a loss is averaged before two of its values are compared
_CONVERGED = 0.02  # relative fall of the loss from one window to the next that counts as none


@dataclass(frozen=True)
class FitConfig:
    """Steps and weights of one optimisation; colours in [0, 1], landmarks in half image sizes.

    The steps are split into stages: the pose on landmarks, proxies, finals, finals with a free residual of albedo.
    """

    steps: int = 60
    learning_rate: float = 0.15  # of the latents
    light_rate: float = 0.03
    camera_rate: float = 0.006
    pose_rate: float = 0.03  # of the camera in the landmark steps
    landmark_steps: int = 0  # the first of the steps: the camera alone, on landmarks alone
    proxy_steps: int = 0  # the next of the steps: (S~, A~) is compared with the photo
    detail_steps: int = 0  # the last of the steps: a free albedo residual in UV space joins
    detail_rate: float = 0.05
    photo: float = 1.0
    perceptual: float = 0.0  # needs a feature network
    landmark: float = 0.0
    latent_prior: float = 0.02  # mean squared distance from the latents that the fit starts with
    detail_prior: float = 0.02  # l1 of the albedo residual and of its differences between neighbours
    tolerance: float = 0.0  # a stage ends when no loss falls by this share from 10 steps to the next 10; 0: never

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 100_000)
        check_range("learning_rate", self.learning_rate, 1e-9, 10)
        check_range("landmark_steps", self.landmark_steps, 0, self.steps - 1)
        check_range("proxy_steps", self.proxy_steps, 0, self.steps - self.landmark_steps)
        check_range("detail_steps", self.detail_steps, 0, self.steps - self.landmark_steps - self.proxy_steps)
        check_range("tolerance", self.tolerance, 0, 1)

    def stages(self) -> list[tuple[Stage, int]]:
        """What is optimised for how many steps at most, in order."""
        final = self.steps - self.landmark_steps - self.proxy_steps - self.detail_steps
        counts = {"pose": self.landmark_steps, "proxy": self.proxy_steps, "final": final, "detail": self.detail_steps}
        return [(stage, count) for stage, count in counts.items() if count]  # type: ignore[misc]


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
    """The fitted faces, and how their losses went."""

    face: Face
    curves: list[dict[str, list[float]]]  # of each face: weighted term -> its value at each step it took part in
    converged: list[bool]  # of each face: the last stage's loss had stopped falling
    albedo_detail: Float[Tensor, "batch 3 uv_height uv_width"]  # raw residual of the final albedo, before its sigmoid

    @classmethod
    def unfitted(cls, start: Face, uv_size: tuple[int, int], shared: Sequence[str]) -> "FitResult":
        """The start itself; shared latents are their mean."""
        start = replace(start, latents=_shared_mean(start.latents, shared))
        count = len(start.sh_coefficients)
        detail = start.sh_coefficients.new_zeros(count, 3, *uv_size)
        return cls(start, [{} for _ in range(count)], [False] * count, detail)


@dataclass(frozen=True)
class FitTarget:
    """What the faces are compared with."""

    image: Float[Tensor, "batch 3 height width"]
    landmarks: Float[Tensor, "batch 68 2"] | None = None  # px of ``image``
    mask: Bool[Tensor, "batch height width"] | None = None  # False: something hides the face here

    def visible(self, drawn: Bool[Tensor, "batch height width"]) -> Bool[Tensor, "batch height width"]:
        return drawn if self.mask is None else drawn & self.mask


def _shared_mean(latents: Latents, shared: Sequence[str]) -> Latents:
    """Those named in ``shared`` become their mean over the batch."""
    named = zip(SHAREABLE, (latents.shape_latent, latents.albedo_latent), strict=True)
    return Latents(*(each.mean(0, keepdim=True).expand_as(each) if name in shared else each for name, each in named))


class _FreeFace:
    """Faces as free parameters: latents, 6D rotation, translation in half image sizes, log scale, light."""

    def __init__(self, start: Face, image_size: int, uv_size: tuple[int, int], shared: Sequence[str]):
        count, self.half_size = len(start.sh_coefficients), image_size / 2

        def free(value: Tensor) -> Tensor:
            return value.detach().clone().requires_grad_(True)

        self.start = replace(start, latents=_shared_mean(start.latents, shared))
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
        groups = [
            {"params": self.latents, "lr": config.learning_rate},
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
        latents = Latents(*(latent.expand(len(self.light), -1) for latent in self.latents))
        return Face(latents, camera, self.light)


def check_shared(shared: Sequence[str]) -> None:
    """Raises: ConfigError: a name that is not in ``SHAREABLE``."""
    if not set(shared) <= set(SHAREABLE):
        raise ConfigError(f"shared: got {sorted(shared)}; expected some of {SHAREABLE}. Change it.")


def optimise_faces(
    model: FaceModel,
    target: FitTarget,
    start: Face,
    config: FitConfig,
    shared: Sequence[str] = (),
    features: FeatureNetwork | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> FitResult:
    """Adam on latents, camera and light with frozen decoders; every face of the batch is fitted on its own.

    Args:
        target: its landmarks are needed for ``config.landmark`` and ``config.landmark_steps``.
        shared: of ``SHAREABLE``: latents that all faces of the batch have in common; they start as the mean.
        features: of the perceptual term, if it weighs anything.

    Raises:
        ConfigError: an unknown name in ``shared``.
    """
    check_shared(shared)
    free = _FreeFace(start.detach(), target.image.shape[-1], model.template.uv_size, shared)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    history: list[Terms] = []
    totals: list[Tensor] = []
    try:
        for stage, count in config.stages():
            optimizer = torch.optim.Adam(free.groups(config, stage), betas=(0.9, 0.99))
            totals = []
            while len(totals) < count and not (config.tolerance and bool(_fallen(totals, config.tolerance).all())):
                optimizer.zero_grad(set_to_none=True)
                terms = _terms(model, target, free, config, stage, features)
                loss = torch.stack(list(terms.values())).sum(0)
                loss.sum().backward()  # each face's gradient is as if it were alone
                optimizer.step()
                history.append({name: term.detach() for name, term in terms.items()})
                totals.append(loss.detach())
                progress(len(history), config.steps, float(loss.detach().mean()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    converged = _converged(totals).expand(len(target.image))
    return FitResult(
        free.face().detach(), _curves(history, len(target.image)), converged.tolist(), free.albedo_detail.detach()
    )


def _fallen(totals: list[Float[Tensor, " batch"]], tolerance: float) -> Bool[Tensor, " _"]:
    """Which losses do not fall any more: by less than ``tolerance`` from one window of steps to the next."""
    if len(totals) < 2 * _WINDOW:
        return torch.zeros(1, dtype=torch.bool)
    before, now = (torch.stack(part).mean(0) for part in (totals[-2 * _WINDOW : -_WINDOW], totals[-_WINDOW:]))
    return before - now < tolerance * before.abs()


def _converged(totals: list[Float[Tensor, " batch"]]) -> Bool[Tensor, " _"]:
    """Which losses stay where they are: they neither fall nor rise."""
    return _fallen(totals, _CONVERGED) & ~_fallen(totals, -_CONVERGED)


def _curves(history: list[Terms], faces: int) -> list[dict[str, list[float]]]:
    """Per face and term."""
    curves: list[dict[str, list[float]]] = [{} for _ in range(faces)]
    for name in dict.fromkeys(name for terms in history for name in terms):
        values = torch.stack([terms[name] for terms in history if name in terms], 1)
        for curve, row in zip(curves, values.tolist(), strict=True):
            curve[name] = row
    return curves


def add_albedo_detail(geometry: Geometry, detail: Float[Tensor, "batch 3 uv_height uv_width"]) -> Geometry:
    """The geometry whose final albedo carries a raw residual; stays in [0, 1]."""
    raw = torch.logit(geometry.maps.albedo_final, eps=1e-4) + detail
    return replace(geometry, maps=replace(geometry.maps, albedo_final=raw.sigmoid()))


def _detail_magnitude(detail: Float[Tensor, "batch 3 uv_height uv_width"]) -> Float[Tensor, " batch"]:
    parts = (detail, detail.diff(dim=2), detail.diff(dim=3))
    return torch.stack([part.abs().mean((1, 2, 3)) for part in parts]).sum(0)


def _terms(
    model: FaceModel,
    target: FitTarget,
    free: _FreeFace,
    config: FitConfig,
    stage: Stage,
    features: FeatureNetwork | None,
) -> Terms:
    """Weighted losses of each face."""
    face, image = free.face(), target.image
    geometry = model.decode(face.latents)
    terms: Terms = {}
    if stage == "detail":
        geometry = add_albedo_detail(geometry, free.albedo_detail)
        terms["detail_prior"] = config.detail_prior * _detail_magnitude(free.albedo_detail)
    if target.landmarks is not None and config.landmark > 0:
        vertices = geometry.vertices_proxy if stage == "proxy" else geometry.vertices_final
        pixels, _ = project(face.camera, model.template.landmarks(vertices.detach() if stage == "pose" else vertices))
        terms["landmark"] = config.landmark * landmark_distance(pixels, target.landmarks) / (image.shape[-1] / 2)
    if stage == "pose":
        return terms
    here, start = face.latents, free.start.latents
    moved = (here.shape_latent - start.shape_latent, here.albedo_latent - start.albedo_latent)
    terms["latent_prior"] = config.latent_prior * torch.stack([(latent**2).mean(1) for latent in moved]).sum(0)
    drawn = _draw(model, face, geometry, stage, (image.shape[-2], image.shape[-1]))
    mask = target.visible(drawn.mask)
    terms["photo"] = config.photo * l21(drawn.images[:, 0], image, mask)
    if features is not None and config.perceptual > 0 and stage != "proxy":
        with model.networks():
            drawn_features, wanted = (features(each) for each in (composite(drawn.images[:, 0], image, mask), image))
        distance = feature_distance(drawn_features, wanted, features.layer_weights, features.relative)
        terms["perceptual"] = config.perceptual * distance
    return terms


def _draw(model: FaceModel, face: Face, geometry: Geometry, stage: Stage, size: tuple[int, int]) -> Rendering:
    if stage == "proxy":
        return model.render(face, geometry.vertices_proxy, geometry.maps.albedo_proxy[:, None], size)
    return model.render_final(face, geometry, size)
