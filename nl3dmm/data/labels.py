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
from nl3dmm.nn.principal import principal_components
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
        check_range("labels.shape_coefficients", self.shape_coefficients, 0, SAMPLES // 2)
        check_range("labels.albedo_blur", self.albedo_blur, 0, _BLUR_WIDTH / 4)


class CoarseLabels:
    """Replaces exact shape and albedo by what a linear model and a low pass leave of them."""

    def __init__(self, config: LabelConfig, bank: FaceBank):
        template = bank.world.template
        self._mask = template.uv_mask
        self._sigma = config.albedo_blur * template.uv_size[1] / _BLUR_WIDTH
        self._mean, self._directions = _linear_shapes(bank, config.shape_coefficients)

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
        if not len(self._directions):
            return vertices
        centred = vertices.flatten(1) - self._mean
        return (self._mean + (centred @ self._directions.T) @ self._directions).view_as(vertices)

    def albedo(self, maps: Float[Tensor, "batch 3 uv_height uv_width"]) -> Float[Tensor, "batch 3 uv_height uv_width"]:
        """Blurred within the map's mask."""
        return low_pass(maps, self._mask, self._sigma) if self._sigma else maps


def _linear_shapes(bank: FaceBank, count: int) -> tuple[Float[Tensor, " size"], Float[Tensor, "count size"]]:
    """Mean (mm) and orthonormal directions of most variance of the bank's shapes; nothing for ``count`` 0."""
    if not count:
        return torch.zeros(0), torch.zeros(0, 0)
    faces = min(SAMPLES, len(bank))
    # a mesh is a map of one channel, a row per vertex
    meshes = [bank.world.vertices(chunk)[:, None] for chunk in torch.arange(faces).split(_CHUNK)]
    components = principal_components(lambda: meshes, count)
    basis = components.basis.flatten(1)
    return components.mean.flatten(), basis / basis.norm(dim=1, keepdim=True).clamp_min(1e-12)
