"""Towards High-fidelity Nonlinear 3D Face Morphable Model (Tran, Liu, Liu, CVPR19): proxies and finals, paired."""

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.config import check_range
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.uv import erode
from nl3dmm.losses.albedo import albedo_constancy, albedo_symmetry, chroma, white_shading
from nl3dmm.losses.objective import Objective, weighted_sum
from nl3dmm.losses.pixels import feature_distance, l21
from nl3dmm.losses.shape import (
    landmark_distance,
    laplacian_smoothness,
    residual_magnitude,
    residual_soft_symmetry,
)
from nl3dmm.model import Face, FaceModel, FourRenderings, Geometry, ModelConfig
from nl3dmm.nn.perceptual import FeatureNetwork, PerceptualConfig
from nl3dmm.nn.uv_decoder import LinearUVDecoder
from nl3dmm.render.scene import composite
from nl3dmm.types import FaceBatch

_CM2_PER_MM2 = 0.01
_ALBEDO_DEAD_ZONE = 0.01
_RENDERED_TERMS = (
    *("photo_proxy_proxy", "photo_proxy_final", "photo_final_proxy", "perceptual"),
    *("albedo_constancy", "residual_symmetry", "white_shading"),
)


@dataclass(frozen=True)
class LossWeights:
    """One weight per term. Units: images and albedo in [0, 1], shape in cm, image positions in half image sizes.

    Supervised terms need a batch that knows the truth, as synthetic faces do; they are skipped where it does not.
    """

    # supervised by labels
    camera_rotation: float = 5.0
    camera_position: float = 20.0
    light: float = 1.0
    shape: float = 20.0
    albedo: float = 5.0
    landmark: float = 10.0  # reaches the camera only: sparse points must not bend the shape (paper section 3.2)
    # reconstruction of the image by (S~, A~), (S~, A), (S, A~), paper equation 15
    photo_proxy_proxy: float = 2.0
    photo_proxy_final: float = 4.0
    photo_final_proxy: float = 4.0
    perceptual: float = 0.05
    # regularisers of the proxies, paper equation 13
    albedo_symmetry: float = 1.0
    albedo_constancy: float = 0.3
    shape_smoothness: float = 200.0
    # residuals, paper equations 14 and 16
    residual_shape: float = 1.0
    residual_albedo: float = 1.0
    residual_symmetry: float = 5.0
    white_shading: float = 0.1

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            check_range(f"weights.{name}", weight, 0, 1e9)


def _pretrain_weights() -> LossWeights:
    """Labels and regularisers only: nothing that needs a rendering."""
    return LossWeights(
        photo_proxy_proxy=0.0,
        photo_proxy_final=0.0,
        photo_final_proxy=0.0,
        perceptual=0.0,
        albedo_constancy=0.0,
        residual_symmetry=0.0,
        white_shading=0.0,
    )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the two stages, and the features of the perceptual term."""

    pretrain: LossWeights = field(default_factory=_pretrain_weights)
    finetune: LossWeights = field(default_factory=LossWeights)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)


@dataclass(frozen=True)
class HighFidelityConfig:
    """The system: model sizes and losses."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class HighFidelity(nn.Module):
    """Model and objective. The feature network is held outside the module tree: it is no part of a checkpoint."""

    skin_interior: Tensor  # texels all of whose neighbours are skin too

    def __init__(self, config: HighFidelityConfig, template: FaceTemplate):
        super().__init__()
        self.config = config
        self.model = FaceModel(config.model, template)
        sizes = config.model
        self.linear_shape = LinearUVDecoder(sizes.shape_latent, template.uv_size)
        self.linear_albedo = LinearUVDecoder(sizes.albedo_latent, template.uv_size)
        self._features: list[FeatureNetwork] = []
        self.register_buffer("skin_interior", erode(template.uv_mask), persistent=False)

    def feature_network(self) -> FeatureNetwork:
        """The perceptual term's network, loaded when first asked for."""
        if not self._features:
            self._features.append(FeatureNetwork(self.config.loss.perceptual))
        return self._features[0]

    def linear_objective(self, batch: FaceBatch, weights: LossWeights) -> Objective:
        """Supervised loss of the encoder with linear decoders: a cheap start for encoder and latents."""
        face = self.model.encode(batch.image)
        geometry = self.model.decode_with(self.linear_shape, self.linear_albedo, face.latents)
        named = asdict(weights)
        terms = self._supervised(batch, face, geometry)
        return weighted_sum(terms, named)

    def objective(self, batch: FaceBatch, weights: LossWeights) -> Objective:
        """Weighted loss of one batch; rendering is skipped while nothing needs it."""
        face = self.model.encode(batch.image)
        geometry = self.model.decode(face.latents)
        named = asdict(weights)
        terms = self._supervised(batch, face, geometry) | self._regularisers(geometry)
        if any(named[name] > 0 for name in _RENDERED_TERMS):
            rendered = self.model.render_four(face, geometry, (batch.image.shape[-2], batch.image.shape[-1]))
            terms |= self._reconstruction(batch, rendered) | self._visibility_terms(batch, face, geometry, rendered)
            if weights.perceptual > 0:
                terms["perceptual"] = self._perceptual(batch, rendered)
        return weighted_sum(terms, named)

    def _supervised(self, batch: FaceBatch, face: Face, geometry: Geometry) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        half_size = batch.image.shape[-1] / 2
        if batch.landmarks is not None:
            terms["landmark"] = self._landmarks(batch.landmarks, face, geometry) / half_size
        if batch.camera is not None:
            origin = batch.image.new_zeros(len(batch.image), 1, 3)
            offset = project(face.camera, origin)[0] - project(batch.camera, origin)[0]
            scale = torch.log(face.camera.scale / batch.camera.scale)
            terms["camera_position"] = ((offset[:, 0] / half_size) ** 2).mean(1) + scale**2
            terms["camera_rotation"] = ((face.camera.rotation - batch.camera.rotation) ** 2).mean((1, 2))
        if batch.sh_coefficients is not None:
            terms["light"] = ((face.sh_coefficients - batch.sh_coefficients) ** 2).mean((1, 2))
        if batch.vertices is not None:
            squared = ((geometry.vertices_proxy - batch.vertices) ** 2).sum(-1)
            terms["shape"] = squared.mean(1) * _CM2_PER_MM2
        if batch.albedo is not None:
            difference = geometry.maps.albedo_proxy - batch.albedo
            terms["albedo"] = residual_magnitude(difference, self.model.template.uv_mask)
        return terms

    def _landmarks(self, target: Tensor, face: Face, geometry: Geometry) -> Tensor:
        """Mean distance in px over both shapes; vertices are held fixed, so the gradient reaches the camera only."""
        distances = []
        for vertices in (geometry.vertices_proxy, geometry.vertices_final):
            pixels, _ = project(face.camera, self.model.template.landmarks(vertices.detach()))
            distances.append(landmark_distance(pixels, target))
        return (distances[0] + distances[1]) / 2

    def _masks(self, batch: FaceBatch, rendered: FourRenderings) -> tuple[Tensor, Tensor]:
        """Pixels of each shape's rendering that are known to show the face."""
        known = _known(batch)
        return rendered.proxy_mask & known, rendered.final_mask & known

    def _reconstruction(self, batch: FaceBatch, rendered: FourRenderings) -> dict[str, Tensor]:
        proxy_mask, final_mask = self._masks(batch, rendered)
        return {
            "photo_proxy_proxy": l21(rendered.proxy_proxy, batch.image, proxy_mask),
            "photo_proxy_final": l21(rendered.proxy_final, batch.image, proxy_mask),
            "photo_final_proxy": l21(rendered.final_proxy, batch.image, final_mask),
        }

    def _perceptual(self, batch: FaceBatch, rendered: FourRenderings) -> Tensor:
        network = self.feature_network().to(batch.image.device)
        proxy_mask, final_mask = self._masks(batch, rendered)
        pictures = [
            composite(rendered.proxy_final, batch.image, proxy_mask),
            composite(rendered.final_proxy, batch.image, final_mask),
        ]
        target = network(batch.image)
        distances = [feature_distance(network(picture), target) for picture in pictures]
        return (distances[0] + distances[1]) / 2

    def _regularisers(self, geometry: Geometry) -> dict[str, Tensor]:
        maps, mask = geometry.maps, self.model.template.uv_mask
        residual_cm = (maps.shape_final - maps.shape_proxy) / 10
        return {
            "albedo_symmetry": albedo_symmetry(maps.albedo_proxy, mask, _ALBEDO_DEAD_ZONE),
            "shape_smoothness": laplacian_smoothness(maps.shape_proxy / 10, mask),
            "residual_shape": residual_magnitude(residual_cm, mask),
            "residual_albedo": residual_magnitude(maps.albedo_final - maps.albedo_proxy, mask),
        }

    def _visibility_terms(
        self, batch: FaceBatch, face: Face, geometry: Geometry, rendered: FourRenderings
    ) -> dict[str, Tensor]:
        """Terms that ask which texels the image shows: decided by the proxy's normals (paper section 3.3)."""
        maps = geometry.maps
        facing = self.model.surface.to_uv_map(rendered.proxy_normals[..., 2:].detach())[:, 0]
        positions, _ = project(face.camera, geometry.vertices_proxy.detach())
        height, width = batch.image.shape[-2:]
        scale = positions.new_tensor([2 / width, 2 / height])
        grid = self.model.surface.to_uv_map(positions.detach() * scale - 1).permute(0, 2, 3, 1)
        seen = F.grid_sample(batch.image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        known = F.grid_sample(_known(batch)[:, None].to(seen), grid, mode="nearest", align_corners=False)[:, 0] > 0.5
        in_sight = (facing > 0.1) & known & self.skin_interior
        return {
            "albedo_constancy": albedo_constancy(maps.albedo_proxy, chroma(seen), in_sight),
            "residual_symmetry": residual_soft_symmetry(
                (maps.shape_final - maps.shape_proxy) / 10, (facing < 0) & self.skin_interior
            ),
            "white_shading": white_shading(rendered.proxy_shading),
        }


def _known(batch: FaceBatch) -> Tensor:
    """Pixels that may be trusted to show the face where a mesh covers them."""
    return torch.ones_like(batch.image[:, 0], dtype=torch.bool) if batch.mask is None else batch.mask
