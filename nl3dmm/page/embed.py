"""Pictures and arrays as text inside a page."""

import base64
import io
import zlib

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, features
from torch import Tensor

_LOSSY_QUALITY = 88  # of JPEG and WebP; no difference to the eye at twice the size
_SMALL = 4096  # bytes
_MAX_SIDE = 2048  # px; larger pictures are shrunk


def picture_uri(picture: Float[Tensor, "3 height width"]) -> str:
    """``data:`` URI of RGB values, clamped to [0, 1]: an exact PNG where that is small, else the smallest kind."""
    levels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    encoded = {"png": _encode(image, "png", {"optimize": True})}
    if len(encoded["png"]) > _SMALL:
        lossy = ("jpeg", "webp") if features.check("webp") else ("jpeg",)
        encoded |= {kind: _encode(image, kind, {"quality": _LOSSY_QUALITY}) for kind in lossy}
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


def _encode(image: Image.Image, kind: str, options: dict[str, int | bool]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def packed_values(values: Float[Tensor, "rows columns"], unit: float) -> dict[str, str | int | float]:
    """Finite numbers as multiples of ``unit``, which grows where int16 would not hold them; see ``packed_integers``."""
    flat = values.detach().cpu().double().numpy()
    largest = float(np.abs(flat).max(initial=0.0))
    unit = max(unit, largest / np.iinfo(np.int16).max)
    return _packed(np.rint(flat / unit).astype("<i2")) | {"unit": unit}


def packed_integers(values: Int[Tensor, "rows columns"]) -> dict[str, str | int | float]:
    """int32 numbers, column after column, each number less the one before it, deflated, base64.

    Neighbouring vertices are close to each other, so that the differences take a third of the space.
    """
    return _packed(values.detach().cpu().numpy().astype("<i4"))


def _packed(values: np.ndarray) -> dict[str, str | int | float]:
    steps = np.diff(values, axis=0, prepend=np.zeros_like(values[:1]))  # wraps around; so does the sum in the page
    data = zlib.compress(np.ascontiguousarray(steps.T).tobytes(), 9)
    return {"bits": 8 * values.itemsize, "columns": values.shape[1], "data": base64.b64encode(data).decode()}
