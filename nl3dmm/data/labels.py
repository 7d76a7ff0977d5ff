"""Labels that are coarse on purpose, as those of a fitted linear model are (paper section 4: supervised pre-training).

Exact labels on the proxies leave nothing for the finals to learn from pictures: residuals stay at 0.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.config import check_range
from nl3dmm.data.bank import FaceBank
from nl3dmm.geometry.uv import low_pass
from nl3dmm.nn.principal import PrincipalComponents, principal_components
from nl3dmm.types import FaceBatch

SAMPLES = 1000  # faces that the components of shape come from
_CHUNK = 100
_BLUR_WIDTH = 224  # texels of the paper's map, the unit of ``albedo_blur``


@dataclass(frozen=True)
class LabelConfig:
    """How coarse labels of shape and albedo are, 0: exact. Those of camera, light and landmarks stay exact."""

    shape_coefficients: int = 0  # shapes become their best fit by so many principal components of the bank's shapes
    albedo_blur: float = 0.0  # standard deviation of the albedo's low pass, in texels of a map 224 wide

    def __post_init__(self) -> None:
        check_range("labels.shape_coefficients", self.shape_coefficients, 0, SAMPLES - 1)
        check_range("labels.albedo_blur", self.albedo_blur, 0, _BLUR_WIDTH / 4)


class CoarseLabels:
    """Replaces exact shape and albedo by what a linear model and a low pass leave of them."""

    def __init__(self, config: LabelConfig, bank: FaceBank):
        template = bank.world.template
        self._mask = template.uv_mask
        self._sigma = config.albedo_blur * template.uv_size[1] / _BLUR_WIDTH
        self._components: PrincipalComponents | None = None
        if config.shape_coefficients:
            chunks = torch.arange(min(SAMPLES, len(bank))).split(_CHUNK)
            # a mesh is a map of one channel, a row per vertex
            meshes = [bank.world.vertices(chunk)[:, None] for chunk in chunks]
            self._components = principal_components(lambda: meshes, config.shape_coefficients)

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """The batch with coarse shape and albedo where it has any."""
        vertices, albedo = batch.vertices, batch.albedo
        return replace(
            batch,
            vertices=None if vertices is None else self.shape(vertices),
            albedo=None if albedo is None else self.albedo(albedo),
        )

    def shape(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, "batch vertices 3"]:
        """The nearest meshes (least squares, mm) in the span of the components."""
        if self._components is None:
            return vertices
        mean, basis = self._components.mean.flatten(), self._components.basis.flatten(1)
        directions = basis / basis.norm(dim=1, keepdim=True).clamp_min(1e-12)
        centred = vertices.flatten(1) - mean
        return (mean + (centred @ directions.T) @ directions).view_as(vertices)

    def albedo(self, maps: Float[Tensor, "batch 3 uv_height uv_width"]) -> Float[Tensor, "batch 3 uv_height uv_width"]:
        """Blurred within the map's mask."""
        return low_pass(maps, self._mask, self._sigma) if self._sigma else maps
