"""What flows between the stages: small frozen dataclasses with shapes, units and frames (``docs/conventions.md``).

Data flow: image -> encoder -> ``Latents``, ``Camera``, light -> decoders -> ``UVMaps`` -> mesh -> images -> losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

T = TypeVar("T", bound="TensorFields")


@dataclass(frozen=True)
class TensorFields:
    """Base of dataclasses whose fields are tensors (or nested ``TensorFields``): move, detach and index together."""

    def map(self: T, function: Callable[[Tensor], Tensor]) -> T:
        """A copy with ``function`` applied to every tensor, nested ones included; ``None`` stays ``None``."""

        def apply(value):
            if isinstance(value, TensorFields):
                return value.map(function)
            return function(value) if isinstance(value, Tensor) else value

        return replace(self, **{field.name: apply(getattr(self, field.name)) for field in fields(self)})

    def to(self: T, *args, **kwargs) -> T:
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self: T) -> T:
        return self.map(torch.Tensor.detach)

    def __getitem__(self: T, index) -> T:
        """Select batch elements; an integer keeps the batch axis (length 1)."""
        index = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self.map(lambda tensor: tensor[index])


def concatenate(parts: "list[T]") -> T:
    """Concatenate equal ``TensorFields`` along the batch axis."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def join(name: str):
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], TensorFields):
            return concatenate(values)
        return torch.cat(values) if isinstance(values[0], Tensor) else values[0]

    return replace(first, **{field.name: join(field.name) for field in fields(first)})


def with_rows(whole: T, rows: Int[Tensor, " some"], part: T) -> T:
    """A copy of ``whole`` in which ``part`` stands in place of some batch elements."""

    def put(name: str):
        value, piece = getattr(whole, name), getattr(part, name)
        if isinstance(value, TensorFields):
            return with_rows(value, rows, piece)
        return value.index_copy(0, rows, piece) if isinstance(value, Tensor) else value

    return replace(whole, **{field.name: put(field.name) for field in fields(whole)})


@dataclass(frozen=True)
class Camera(TensorFields):
    """Pinhole camera in the form that has weak perspective as its exact limit ``inverse_distance = 0``.

    With ``X = rotation @ x`` (camera frame: +x image right, +y up, +z towards the camera, millimetres)::

        column = principal_point[0] + (scale * X_x + translation[0]) / (1 - inverse_distance * X_z)
        row    = principal_point[1] - (scale * X_y - translation[1]) / (1 - inverse_distance * X_z)

    so ``focal_px = scale / inverse_distance`` and the camera stands ``1 / inverse_distance`` mm before the object's
    origin. One formula serves both camera types and a batch may mix them.
    """

    rotation: Float[Tensor, "batch 3 3"]  # camera from object, proper rotations
    translation: Float[Tensor, "batch 2"]  # px (column, row downwards) of the object's origin from the principal point
    scale: Float[Tensor, " batch"]  # px per mm at the depth of the object's origin
    inverse_distance: Float[Tensor, " batch"]  # 1 / mm, 0 = weak perspective
    principal_point: Float[Tensor, "batch 2"]  # px (column, row), (0, 0) = top-left corner of the image


@dataclass(frozen=True)
class Latents(TensorFields):
    """Decoder inputs."""

    shape_latent: Float[Tensor, "batch shape_latent"]
    albedo_latent: Float[Tensor, "batch albedo_latent"]


@dataclass(frozen=True)
class UVMaps(TensorFields):
    """Decoder outputs; ``final = proxy + residual`` always."""

    shape_proxy: Float[Tensor, "batch 3 uv_height uv_width"]  # mm, offset from the template's mean
    shape_final: Float[Tensor, "batch 3 uv_height uv_width"]
    albedo_proxy: Float[Tensor, "batch 3 uv_height uv_width"]  # [0, 1]
    albedo_final: Float[Tensor, "batch 3 uv_height uv_width"]


@dataclass(frozen=True)
class FaceBatch(TensorFields):
    """Images with everything that is known about them; ``None`` where a source does not know it.

    Landmarks are in pixels of ``image``, (0, 0) = its top-left corner, centres at .5.
    """

    image: Float[Tensor, "batch 3 height width"]  # RGB, [0, 1]
    index: Int[Tensor, " batch"]  # which sample of the source this is
    landmarks: Float[Tensor, "batch 68 2"] | None = None
    mask: Bool[Tensor, "batch height width"] | None = None  # True = skin surface of the template is visible here
    camera: Camera | None = None
    sh_coefficients: Float[Tensor, "batch 3 9"] | None = None
    vertices: Float[Tensor, "batch vertices 3"] | None = None  # mm, object frame
    albedo: Float[Tensor, "batch 3 uv_height uv_width"] | None = None  # [0, 1], encoding of the config
