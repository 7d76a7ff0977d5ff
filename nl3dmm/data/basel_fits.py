"""Meshes from the parameters that 300W-LP and AFLW2000-3D publish: ``mean + W_id alpha + W_exp beta``."""

import torch
from jaxtyping import Float
from torch import Tensor

from nl3dmm.assets.bfm2009 import SOURCE
from nl3dmm.assets.linear_model import LinearModel
from nl3dmm.errors import AssetError

NUM_SHAPES, NUM_EXPRESSIONS = 199, 29


class BaselFits:
    """The Basel Face Model under its authors' parameters, which are not in standard deviations."""

    def __init__(self, basis: LinearModel | None):
        self.basis = basis
        if basis is not None:
            modes = len(basis.identity_basis), len(basis.expression_basis)
            if modes != (NUM_SHAPES, NUM_EXPRESSIONS) or basis.identity_deviation is None:
                raise AssetError(
                    f"basis: got {basis.name} with {modes[0]} identities and {modes[1]} expressions; expected "
                    f"{NUM_SHAPES} and {NUM_EXPRESSIONS}, of Model_Shape.mat with Model_Expression.mat. {SOURCE}"
                )

    def vertices(
        self, shape: Float[Tensor, "batch shapes"], expression: Float[Tensor, "batch expressions"]
    ) -> Float[Tensor, "batch vertices 3"]:
        """Meshes in mm, from ``Shape_Para`` (of orthonormal modes, micrometres) and ``Exp_Para``."""
        basis = self._known()
        vertices = torch.from_numpy(basis.vertices)[None]
        for coefficients, modes, deviation in (
            (shape, basis.identity_basis, basis.identity_deviation),
            (expression, basis.expression_basis, basis.expression_deviation),
        ):
            standard = coefficients / torch.as_tensor(deviation)
            vertices = vertices + torch.einsum("bk,kvc->bvc", standard, torch.from_numpy(modes))
        return vertices

    def landmarks(self, vertices: Float[Tensor, "batch vertices 3"]) -> Float[Tensor, "batch 68 3"]:
        """The 68 points of the meshes, mm."""
        basis = self._known()
        corners = vertices[:, torch.from_numpy(basis.landmark_vertices)]
        return (corners * torch.from_numpy(basis.landmark_weights)[..., None]).sum(2)

    def _known(self) -> LinearModel:
        if self.basis is None:
            raise AssetError(
                "basis: got none; expected the model that the parameters belong to, Model_Shape.mat with "
                f"Model_Expression.mat beside it. Give basis=read_bfm2009(path). {SOURCE}"
            )
        return self.basis
