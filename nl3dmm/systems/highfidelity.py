"""Towards High-fidelity Nonlinear 3D Face Morphable Model (Tran, Liu, Liu, CVPR19): proxies and finals, paired."""

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nl3dmm.assets.template import FaceTemplate
from nl3dmm.geometry.camera import project
from nl3dmm.geometry.lighting import light_albedo
from nl3dmm.geometry.uv import erode
from nl3dmm.losses.albedo import albedo_constancy, albedo_symmetry, chroma, pair_constancy, random_pairs
from nl3dmm.losses.light import light_tint, over_exposure, white_shading, white_shading_of_batch
from nl3dmm.losses.objective import Estimate, Objective, reach_through, weighted_sum
from nl3dmm.losses.pixels import feature_distance, gradient_difference, l21
from nl3dmm.losses.shape import (
    landmark_distance,
    laplacian_smoothness,
    residual_magnitude,
    residual_soft_symmetry,
)
from nl3dmm.model import Face, FaceModel, FourRenderings, Geometry, ModelConfig
from nl3dmm.nn.perceptual import FeatureNetwork
from nl3dmm.nn.uv_decoder import LinearUVDecoder
from nl3dmm.render.scene import composite
from nl3dmm.systems.weights import RENDERED_TERMS, LossConfig, LossWeights
from nl3dmm.types import FaceBatch

_CM2_PER_MM2 = 0.01
_ALBEDO_DEAD_ZONE = 0.01
_SKIN = 0.5  # a texel is skin from this share on


@dataclass(frozen=True)
class HighFidelityConfig:
    """The system: model sizes and losses."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class HighFidelity(nn.Module):
    """Model and objective. The feature network is held outside the module tree: it is no part of a checkpoint."""

    skin_interior: Tensor  # texels of the map all of whose neighbours are in the map too
    skin_texels: Tensor  # numbers of the texels that show skin, row by row

    def __init__(self, config: HighFidelityConfig, template: FaceTemplate):
        super().__init__()
        self.config = config
        self.model = FaceModel(config.model, template)
        sizes = config.model
        self.linear_shape = LinearUVDecoder(sizes.shape_latent, template.uv_size)
        self.linear_albedo = LinearUVDecoder(sizes.albedo_latent, template.uv_size)
        self._features: list[FeatureNetwork] = []
        self.register_buffer("skin_interior", erode(template.uv_mask), persistent=False)
        skin = (template.regions["skin"] > _SKIN) & template.uv_mask
        self.register_buffer("skin_texels", skin.flatten().nonzero()[:, 0], persistent=False)

    def feature_network(self) -> FeatureNetwork:
        """The perceptual term's network, loaded when first asked for."""
        if not self._features:
            self._features.append(FeatureNetwork(self.config.loss.perceptual))
        return self._features[0]

    def linear_objective(self, batch: FaceBatch, weights: LossWeights) -> Objective:
        """Supervised loss of the encoder with linear decoders: a cheap start for encoder and latents."""
        face = self.model.encode(batch.image)
        # a model's own basis, if it has one, is what the latents are for
        decoders = self.model.linear_decoders or (self.linear_shape, self.linear_albedo)
        geometry = self.model.decode_with(*decoders, face.latents)
        named = asdict(weights)
        terms = self._supervised(batch, face, geometry, weights.landmark > 0)
        return replace(weighted_sum(terms, named), estimate=Estimate(face.latents, geometry.maps).detach())

    def objective(self, batch: FaceBatch, weights: LossWeights, step: int = 0) -> Objective:
        """Weighted loss of one batch; what nothing needs is not rendered. Random pairs are drawn for the ``step``."""
        face = self.model.encode(batch.image)
        geometry = self.model.decode(face.latents)
        named = asdict(weights)
        terms = self._supervised(batch, face, geometry, weights.landmark > 0) | self._regularisers(geometry)
        terms["light_tint"] = light_tint(face.sh_coefficients)
        if weights.albedo_pairs > 0:
            pairs = random_pairs(self.skin_texels, batch.index, step)
            terms["albedo_pairs"] = pair_constancy(geometry.maps.albedo_proxy, pairs, _ALBEDO_DEAD_ZONE)
        estimate = Estimate(face.latents, geometry.maps)
        if any(named[name] > 0 for name in RENDERED_TERMS):
            rendered = self.model.render_four(face, geometry, (batch.image.shape[-2], batch.image.shape[-1]))
            terms |= self._reconstruction(batch, rendered, weights)
            terms |= self._visibility_terms(batch, face, geometry, rendered)
            terms |= self._light(geometry, rendered, weights)
            estimate = replace(estimate, shading=rendered.proxy_shading)
        return replace(weighted_sum(terms, named), estimate=estimate.detach())

    def _supervised(
        self, batch: FaceBatch, face: Face, geometry: Geometry, landmarks_weigh: bool = True
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        half_size = batch.image.shape[-1] / 2
        if batch.landmarks is not None:
            terms["landmark"] = self._landmarks(batch.landmarks, face, geometry, landmarks_weigh) / half_size
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

    def _landmarks(self, target: Tensor, face: Face, geometry: Geometry, weigh: bool) -> Tensor:
        """Mean distance in px over both shapes; the gradient reaches the encoder only (``landmark_reaches``)."""
        outputs, latent = (geometry.vertices_proxy, geometry.vertices_final), face.latents.shape_latent
        reaches = weigh and self.config.loss.landmark_reaches == "encoder" and latent.requires_grad
        copies = [vertices.detach().requires_grad_(reaches) for vertices in outputs]
        drawn = [project(face.camera, self.model.template.landmarks(vertices))[0] for vertices in copies]
        distance = (landmark_distance(drawn[0], target) + landmark_distance(drawn[1], target)) / 2
        return reach_through(distance, copies, outputs, latent) if reaches else distance

    def _masks(self, batch: FaceBatch, rendered: FourRenderings) -> tuple[Tensor, Tensor]:
        """Pixels of each shape's rendering that are known to show the face."""
        known = _known(batch)
        return rendered.proxy_mask & known, rendered.final_mask & known

    def _reconstruction(self, batch: FaceBatch, rendered: FourRenderings, weights: LossWeights) -> dict[str, Tensor]:
        """Photo terms, paper equation 15, and of what may be added to them that which weighs something."""
        proxy_mask, final_mask = self._masks(batch, rendered)
        terms = {
            "photo_proxy_proxy": l21(rendered.proxy_proxy, batch.image, proxy_mask),
            "photo_proxy_final": l21(rendered.proxy_final, batch.image, proxy_mask),
            "photo_final_proxy": l21(rendered.final_proxy, batch.image, final_mask),
            "photo_final_final": l21(rendered.final_final, batch.image, final_mask),
        }
        if weights.gradient_difference > 0:
            steps = gradient_difference(rendered.proxy_final, batch.image, proxy_mask)
            terms["gradient_difference"] = (
                steps + gradient_difference(rendered.final_proxy, batch.image, final_mask)
            ) / 2
        if weights.perceptual > 0:
            terms["perceptual"] = self._perceptual(batch, rendered)
        return terms

    def _perceptual(self, batch: FaceBatch, rendered: FourRenderings) -> Tensor:
        """Of (S~, A) and (S, A~) before the photo: what hides the face is the photo's own in both pictures."""
        network = self.feature_network().to(batch.image.device)
        proxy_mask, final_mask = self._masks(batch, rendered)

        def features_of(image: Tensor) -> list[Tensor]:
            with self.model.networks():
                return network(image)

        target = features_of(batch.image)

        def distance(drawn: Tensor, mask: Tensor) -> Tensor:
            features = features_of(composite(drawn, batch.image, mask))
            return feature_distance(features, target, network.layer_weights, network.relative)

        first = distance(rendered.proxy_final, proxy_mask)
        if rendered.final_proxy is rendered.proxy_final:  # decoders with one end
            return first
        return (first + distance(rendered.final_proxy, final_mask)) / 2

    def _regularisers(self, geometry: Geometry) -> dict[str, Tensor]:
        maps, mask = geometry.maps, self.model.template.uv_mask
        residual_cm = (maps.shape_final - maps.shape_proxy) / 10
        return {
            "albedo_symmetry": albedo_symmetry(maps.albedo_proxy, mask, _ALBEDO_DEAD_ZONE),
            "shape_smoothness": laplacian_smoothness(maps.shape_proxy / 10, mask),
            "shape_smoothness_final": laplacian_smoothness(maps.shape_final / 10, mask),
            "residual_shape": residual_magnitude(residual_cm, mask),
            "residual_albedo": residual_magnitude(maps.albedo_final - maps.albedo_proxy, mask),
        }

    def _light(self, geometry: Geometry, rendered: FourRenderings, weights: LossWeights) -> dict[str, Tensor]:
        shading = rendered.proxy_shading
        terms = {"white_shading": white_shading(shading), "white_shading_of_batch": white_shading_of_batch(shading)}
        if weights.over_exposure > 0:
            shading_map = self.model.surface.to_uv_map(shading)
            with torch.no_grad():
                texture = light_albedo(geometry.maps.albedo_proxy, shading_map, self.config.model.shading_space)
            terms["over_exposure"] = over_exposure(shading_map, texture, self.model.template.uv_mask)
        return terms

    def _visibility_terms(
        self, batch: FaceBatch, face: Face, geometry: Geometry, rendered: FourRenderings
    ) -> dict[str, Tensor]:
        """Terms that ask which texels the image shows: those that face the camera and lie on known pixels.

        The paper (section 3.3) asks the proxy's normals alone; here texels behind an occluder are hidden as well.
        """
        maps = geometry.maps
        facing = self.model.surface.to_uv_map(rendered.proxy_normals[..., 2:].detach())[:, 0]
        positions, _ = project(face.camera, geometry.vertices_proxy.detach())
        height, width = batch.image.shape[-2:]
        scale = positions.new_tensor([2 / width, 2 / height])
        grid = self.model.surface.to_uv_map(positions.detach() * scale - 1).permute(0, 2, 3, 1)
        seen = F.grid_sample(batch.image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        known = F.grid_sample(_known(batch)[:, None].to(seen), grid, mode="nearest", align_corners=False)[:, 0] > 0.5
        in_sight = (facing > 0.1) & known & self.skin_interior
        hidden = ((facing < 0) | ~known) & self.skin_interior
        return {
            "albedo_constancy": albedo_constancy(maps.albedo_proxy, chroma(seen), in_sight),
            "residual_symmetry": residual_soft_symmetry((maps.shape_final - maps.shape_proxy) / 10, hidden),
        }


def _known(batch: FaceBatch) -> Tensor:
    """Pixels that may be trusted to show the face where a mesh covers them."""
    return torch.ones_like(batch.image[:, 0], dtype=torch.bool) if batch.mask is None else batch.mask
