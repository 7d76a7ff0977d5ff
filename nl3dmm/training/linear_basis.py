"""Training labels -> the fixed basis of a linear model, or of a nonlinear one that starts as it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nl3dmm.data.bank import FaceBank
from nl3dmm.data.labels import CoarseLabels
from nl3dmm.errors import ShapeError
from nl3dmm.model import FaceModel

SAMPLES = 2000  # faces; 4,000 lower the error on new faces by 2 % (64 latents, 64 x 80)
_CHUNK = 64


def fit_linear_model(
    model: FaceModel, bank: FaceBank, labels: CoarseLabels | None = None, samples: int = SAMPLES
) -> tuple[float, float] | None:
    """Fill the model's bases with the principal components of a bank's first faces, if it has any and they are empty.

    Args:
        labels: what training sees of the bank's truth; the truth itself by default.

    Returns:
        The fractions of the labels' variance in shape and in albedo that the latents can express.
    """
    if model.linear_decoders is None or all(decoder.is_filled for decoder in model.linear_decoders):
        return None
    indices = torch.arange(min(samples, len(bank))).split(_CHUNK)
    mean = model.template.vertices

    def chunks(maps: Callable[[Tensor], Tensor]) -> Callable[[], Iterator[Tensor]]:
        return lambda: (maps(chunk) for chunk in indices)

    def shape(chunk: Tensor) -> Tensor:
        vertices = bank.world.vertices(chunk)
        vertices = labels.shape(vertices) if labels else vertices
        return model.surface.to_uv_map(vertices.to(mean) - mean)

    def albedo(chunk: Tensor) -> Tensor:
        maps = bank.read(chunk).albedo
        if maps is None:
            raise ShapeError("bank: got faces without albedo; expected a synthetic world's. Use FaceBank.")
        return (labels.albedo(maps) if labels else maps).to(mean)

    return model.fit_linear(chunks(shape), chunks(albedo))
