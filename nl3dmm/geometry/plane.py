"""Similarities of the image plane: of pixels (column, row), of pictures and of cameras."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.types import Camera, TensorFields


@dataclass(frozen=True)
class PlaneSimilarity(TensorFields):
    """``p -> scale * turn @ p + shift`` for pixels p; a positive angle turns clockwise, as rows run downwards."""

    scale: Float[Tensor, " batch"]
    angle: Float[Tensor, " batch"]  # radians
    shift: Float[Tensor, "batch 2"]  # px

    @property
    def matrix(self) -> Float[Tensor, "batch 2 2"]:
        c, s = self.scale * self.angle.cos(), self.scale * self.angle.sin()
        return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)

    def points(self, points: Float[Tensor, "batch points 2"]) -> Float[Tensor, "batch points 2"]:
        return points @ self.matrix.mT + self.shift[:, None]

    def inverse(self) -> "PlaneSimilarity":
        back = PlaneSimilarity(1 / self.scale, -self.angle, torch.zeros_like(self.shift))
        return replace(back, shift=-back.points(self.shift[:, None])[:, 0])

    def camera(self, camera: Camera) -> Camera:
        """The camera that projects to ``points(p)`` what ``camera`` projects to p; exact."""
        c, s, zero = self.angle.cos(), self.angle.sin(), torch.zeros_like(self.angle)
        rows = ([c, s, zero], [-s, c, zero], [zero, zero, zero + 1])  # the camera's y runs upwards
        turn = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return Camera(
            rotation=turn @ camera.rotation,
            translation=(self.matrix @ camera.translation[..., None])[..., 0],
            scale=camera.scale * self.scale,
            inverse_distance=camera.inverse_distance,
            principal_point=self.points(camera.principal_point[:, None])[:, 0],
        )

    def pictures(
        self, pictures: Float[Tensor, "_ channels height width"], size: int, padding: str = "border"
    ) -> Float[Tensor, "batch channels {size} {size}"]:
        """Squares whose pixel ``points(p)`` shows what ``pictures`` shows at p, by linear interpolation.

        Shrink a picture first that is to be shown at less than half its size.

        Args:
            pictures: one per similarity, or one for all.
            size: side of the squares, px.
            padding: ``border`` repeats the picture's edge, ``zeros`` is 0 outside.
        """
        axis = torch.arange(size, device=pictures.device) + 0.5
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
        height, width = pictures.shape[-2:]
        source = self.inverse().points(pixels.expand(len(self.scale), -1, -1))
        grid = (2 * source / source.new_tensor([width, height]) - 1).unflatten(1, (size, size))
        return F.grid_sample(pictures.expand(len(grid), -1, -1, -1), grid, padding_mode=padding, align_corners=False)


def similarity_onto(
    source: Float[Tensor, "batch 2"],
    target: Float[Tensor, "batch 2"],
    scale: Float[Tensor, " batch"],
    angle: Float[Tensor, " batch"],
) -> PlaneSimilarity:
    """Turns by ``angle`` (radians, clockwise) and scales so that the pixel ``source`` comes to lie on ``target``."""
    turn = PlaneSimilarity(scale, angle, torch.zeros_like(target))
    return replace(turn, shift=target - turn.points(source[:, None])[:, 0])
