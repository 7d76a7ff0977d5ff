"""The weighted losses of faces that are being fitted, stage by stage."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.fitting.free_face import FreeFace
from nl3dmm.fitting.stages import FitConfig, Stage
from nl3dmm.geometry.camera import project
from nl3dmm.losses.pixels import feature_distance, l21, masked_mean
from nl3dmm.losses.shape import landmark_distance
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.nn.perceptual import FeatureNetwork
from nl3dmm.render import interpolate
from nl3dmm.render.scene import Rendering, composite, see_mesh, wear_textures
from nl3dmm.render.uv import unwrap_photo

# Cosines of normal and viewing direction: below the first a pixel may well show what lies behind the face; from the
# second on a texel's detail is good enough for its mirror image too.
_GRAZING, _WELL_SEEN = 0.2, 0.3
Terms = dict[str, Float[Tensor, " batch"]]


@dataclass(frozen=True)
class FitTarget:
    """What the faces are compared with."""

    image: Float[Tensor, "batch 3 height width"]
    landmarks: Float[Tensor, "batch 68 2"] | None = None  # px of ``image``
    mask: Bool[Tensor, "batch height width"] | None = None  # False: something hides the face here
    landmark_tolerance: Float[Tensor, " batch"] | float = 0.0  # half image sizes: nearer than this is near enough

    def visible(self, drawn: Bool[Tensor, "batch height width"]) -> Bool[Tensor, "batch height width"]:
        return drawn if self.mask is None else drawn & self.mask


def add_albedo_detail(geometry: Geometry, detail: Float[Tensor, "batch 3 uv_height uv_width"]) -> Geometry:
    """The geometry whose final albedo carries a raw residual; stays in [0, 1]."""
    raw = torch.logit(geometry.maps.albedo_final, eps=1e-4) + detail
    return replace(geometry, maps=replace(geometry.maps, albedo_final=raw.sigmoid()))


def _detail_magnitude(detail: Float[Tensor, "batch 3 uv_height uv_width"]) -> Float[Tensor, " batch"]:
    parts = (detail, detail.diff(dim=2), detail.diff(dim=3))
    return torch.stack([part.abs().mean((1, 2, 3)) for part in parts]).sum(0)


def stage_terms(
    model: FaceModel,
    target: FitTarget,
    free: FreeFace,
    config: FitConfig,
    stage: Stage,
    features: FeatureNetwork | None,
) -> Callable[[], Terms]:
    """What gives the weighted losses of each face, whenever it is called, as the faces then are."""
    if stage == "detail":
        return _detail_terms(model, target, free, config, features)
    if stage == "pose":
        with torch.no_grad():
            vertices = model.decode(free.face().latents).vertices_final
        return lambda: _landmark_term(model, target, free.face(), vertices, config)
    return lambda: _face_terms(model, target, free, config, stage, features)


def _face_terms(
    model: FaceModel,
    target: FitTarget,
    free: FreeFace,
    config: FitConfig,
    stage: Stage,
    features: FeatureNetwork | None,
) -> Terms:
    """Of latents, camera and light."""
    face, size = free.face(), (target.image.shape[-2], target.image.shape[-1])
    geometry = model.decode(face.latents)
    here, start = face.latents, free.start.latents
    moved = (here.shape_latent - start.shape_latent, here.albedo_latent - start.albedo_latent)
    vertices = geometry.vertices_proxy if stage == "proxy" else geometry.vertices_final
    terms = _landmark_term(model, target, face, vertices, config)
    terms["latent_prior"] = config.latent_prior * torch.stack([(latent**2).mean(1) for latent in moved]).sum(0)
    if config.light_prior > 0:
        light = face.sh_coefficients - free.start.sh_coefficients
        terms["light_prior"] = config.light_prior * (light**2).mean((1, 2))
    if stage == "proxy":
        drawn = model.render(face, geometry.vertices_proxy, geometry.maps.albedo_proxy[:, None], size)
        return terms | _photo_terms(model, target, drawn, config, None)
    return terms | _photo_terms(model, target, model.render_final(face, geometry, size), config, features)


def _detail_terms(
    model: FaceModel, target: FitTarget, free: FreeFace, config: FitConfig, features: FeatureNetwork | None
) -> Callable[[], Terms]:
    """Of the albedo residual alone, from pixels that see the skin from above; all else is drawn once."""
    with torch.no_grad():
        face = free.face()
        geometry = model.decode(face.latents)
        size = (target.image.shape[-2], target.image.shape[-1])
        seen = see_mesh(geometry.vertices_final, face.camera, face.sh_coefficients, model.surface, size)
        shown = torch.ones_like(seen.mask) if target.mask is None else target.mask
        texels = unwrap_photo(shown[:, None].to(target.image), face.camera, geometry.vertices_final, model.surface)
        confidence = texels.confidence * (texels.colour[:, 0] > 0.5)
        hidden = (confidence < _GRAZING) & (confidence.flip(-1) > _WELL_SEEN) & model.template.uv_mask
        facing, _ = interpolate(seen.normals[..., 2:].contiguous(), seen.fragments, model.surface.triangles)
        target = replace(target, mask=target.visible(facing[..., 0] > _GRAZING))

    def terms() -> Terms:
        detail = free.albedo_detail
        albedo = add_albedo_detail(geometry, detail).maps.albedo_final
        drawn = wear_textures(seen, albedo[:, None], model.surface, model.config.shading_space)
        prior = config.detail_prior * _detail_magnitude(detail)
        mirrored = config.detail_symmetry * masked_mean((detail - detail.flip(-1).detach()).abs().sum(1), hidden)
        return {
            "detail_prior": prior,
            "detail_symmetry": mirrored,
            **_photo_terms(model, target, drawn, config, features),
        }

    return terms


def _landmark_term(
    model: FaceModel, target: FitTarget, face: Face, vertices: Float[Tensor, "batch vertices 3"], config: FitConfig
) -> Terms:
    """Beyond the tolerance."""
    if target.landmarks is None or config.landmark == 0:
        return {}
    pixels, _ = project(face.camera, model.template.landmarks(vertices))
    half_size = target.image.shape[-1] / 2
    distance = landmark_distance(pixels, target.landmarks, target.landmark_tolerance * half_size)
    return {"landmark": config.landmark * distance / half_size}


def _photo_terms(
    model: FaceModel, target: FitTarget, drawn: Rendering, config: FitConfig, features: FeatureNetwork | None
) -> Terms:
    image, picture = target.image, drawn.images[:, 0]
    mask = target.visible(drawn.mask)
    terms = {"photo": config.photo * l21(picture, image, mask)}
    if features is not None and config.perceptual > 0:
        with model.networks():
            drawn_features, wanted = (features(each) for each in (composite(picture, image, mask), image))
        distance = feature_distance(drawn_features, wanted, features.layer_weights, features.relative)
        terms["perceptual"] = config.perceptual * distance
    return terms
