"""``FaceTemplate``: one average face with everything the library knows about its surface."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from nl3dmm.geometry.uv import fill_outwards
from nl3dmm.render.scene import Surface


class Box(NamedTuple):
    """Rectangle of UV texels: top-left texel and size."""

    row: int
    column: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the last two axes of a UV map."""
        return slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)


@dataclass(frozen=True, eq=False)
class FaceTemplate:
    """Topology, mean shape, UV layout, landmarks, regions and linear bases (``docs/conventions.md``).

    ``regions`` are soft masks in [0, 1]: ``left_eye`` and ``right_eye`` (visible eyeballs), ``eyes`` (orbital areas),
    ``brows``, ``nose``, ``nostrils``, ``lips``, ``mouth`` (between the lips), ``skin`` (all but eyeballs, brows,
    nostrils, lips and mouth) and ``face`` (frontal area that metrics use). ``boxes`` hold the decoder's local
    pathways: ``left_eye``, ``right_eye``, ``nose``, ``mouth``. Left and right are the subject's.
    """

    name: str
    vertices: Float32[Tensor, "vertices 3"]  # mm, the mean face
    triangles: Int64[Tensor, "triangles 3"]
    uv: Float32[Tensor, "vertices 2"]
    uv_size: tuple[int, int]  # rows, columns
    uv_mask: Bool[Tensor, "uv_height uv_width"]
    texel_triangle: Int64[Tensor, "uv_height uv_width"]  # -1 outside
    texel_barycentric: Float32[Tensor, "uv_height uv_width 3"]
    is_uv_grid: bool  # vertex k is texel k, row-major
    landmark_vertices: Int64[Tensor, "68 3"]
    landmark_weights: Float32[Tensor, "68 3"]  # barycentric
    mirror: Int64[Tensor, " vertices"]  # the vertex on the other side of x = 0
    regions: dict[str, Float32[Tensor, "uv_height uv_width"]]
    boxes: dict[str, Box]
    identity_basis: Float32[Tensor, "identity vertices 3"]  # mm per standard deviation
    expression_basis: Float32[Tensor, "expression vertices 3"]  # mm at activation 1
    expression_names: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)
    albedo_mean: Float32[Tensor, "vertices 3"] | None = None  # [0, 1], as the model's authors give it
    albedo_basis: Float32[Tensor, "albedo vertices 3"] | None = None  # per standard deviation

    @cached_property
    def hash(self) -> str:
        """SHA-256 of geometry, topology, layout and bases; independent of device, name and provenance."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        layout = [(name, *box) for name, box in sorted(self.boxes.items())]
        digest.update(repr((self.uv_size, self.is_uv_grid, self.expression_names, layout)).encode())
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; regions as ``regions.<name>``."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        flat = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return flat | {f"regions.{name}": region for name, region in self.regions.items()}

    def to(self, device: torch.device | str) -> "FaceTemplate":
        """The same template with every tensor on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        regions = {name: moved.pop(f"regions.{name}") for name in self.regions}
        return replace(self, regions=regions, **moved)

    def surface(self) -> Surface:
        """What the renderer needs to know of this template."""
        if self.is_uv_grid:
            return Surface(self.triangles, self.uv, self.uv_size)
        tables = fill_outwards(self.texel_triangle, self.texel_barycentric)
        return Surface(self.triangles, self.uv, self.uv_size, *tables)

    def landmarks(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, "batch 68 3"]:
        """The 68 surface points (iBUG order) of meshes of this topology; differentiable."""
        corners = vertices[:, self.landmark_vertices]  # (batch, 68, corner, 3)
        return (corners * self.landmark_weights[:, :, None].to(vertices.dtype)).sum(dim=2)

    def morph(
        self,
        identity: Float[Tensor, "batch identity"] | None = None,
        expression: Float[Tensor, "batch expression"] | None = None,
    ) -> Float[Tensor, "batch vertices 3"]:
        """Vertices of the linear model: mean + identity (standard deviations) + expression (activations)."""
        vertices = self.vertices[None]
        for coefficients, basis in ((identity, self.identity_basis), (expression, self.expression_basis)):
            if coefficients is not None:
                vertices = vertices + torch.einsum("bk,kvc->bvc", coefficients, basis.to(coefficients.dtype))
        return vertices


def grid_triangles(mask: Bool[Tensor, "rows columns"]) -> Int[Tensor, "triangles 3"]:
    """Two triangles per cell of a row-major vertex grid whose corners are all valid.

    Counter-clockwise where columns run to the viewer's right and rows downwards. Diagonals are mirror-symmetric; those
    of the middle column turn from row to row, because all in one direction they would show as a line in the normals.
    """
    rows, columns = mask.shape
    index = torch.arange(rows * columns, device=mask.device).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    falling = torch.stack([torch.stack([a, c, d], -1), torch.stack([a, d, b], -1)], -2)
    rising = torch.stack([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)], -2)
    cells = torch.arange(rows - 1, device=mask.device)[:, None], torch.arange(columns - 1, device=mask.device)
    is_falling = _is_falling(*cells, columns)[..., None, None]
    valid = mask[:-1, :-1] & mask[:-1, 1:] & mask[1:, :-1] & mask[1:, 1:]
    return torch.where(is_falling, falling, rising)[valid].reshape(-1, 3)


def grid_point(u: float, v: float, uv_size: tuple[int, int]) -> tuple[list[int], list[float]]:
    """Vertices and barycentric weights of the ``grid_triangles`` triangle at a UV point."""
    rows, columns = uv_size
    row = min(max(int(v * rows - 0.5), 0), rows - 2)
    column = min(max(int(u * columns - 0.5), 0), columns - 2)
    s, t = u * columns - 0.5 - column, v * rows - 0.5 - row
    a, b = row * columns + column, row * columns + column + 1
    c, d = a + columns, b + columns
    if _is_falling(row, column, columns):
        return ([a, c, d], [1 - t, t - s, s]) if t >= s else ([a, d, b], [1 - s, t, s - t])
    return ([a, c, b], [1 - s - t, t, s]) if s + t <= 1 else ([b, c, d], [1 - t, 1 - s, s + t - 1])


def _is_falling(row: Any, column: Any, columns: int) -> Any:
    """Whether the diagonals of cells (integers or index tensors) go down to the right."""
    middle = (columns - 1) // 2
    return (column < middle) | ((column == middle) & (row % 2 == 0))
