"""What the public operations demand of their arguments; nothing here waits for the GPU."""

import torch
from torch import Tensor

from nl3dmm.errors import ShapeError

TRIANGLES_MAX = 2**24 - 1  # index + 1 must be exact in float32


def check_real(
    name: str, value: object, lengths: tuple[int | None, ...], expected: str, like: Tensor | None = None
) -> None:
    """A float32 or float64 tensor with these axis lengths (None = any), of the same dtype and device as ``like``."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name}: got {type(value).__name__}; expected a tensor {expected}. Use torch.as_tensor.")
    fits = value.ndim == len(lengths) and all(
        want in (None, got) for got, want in zip(value.shape, lengths, strict=True)
    )
    if not fits:
        raise ShapeError(f"{name}: got shape {tuple(value.shape)}; expected {expected}. Check the order of its axes.")
    if value.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{name}: got {value.dtype}; expected float32 or float64. Convert it, outside of autocast.")
    if like is not None and (value.dtype, value.device) != (like.dtype, like.device):
        got, want = f"{value.dtype} on {value.device}", f"{like.dtype} on {like.device}"
        raise ShapeError(f"{name}: got {got}; expected {want}, like the other argument. Convert one of them.")


def check_batch(name: str, value: Tensor, batch: int) -> None:
    if len(value) not in (1, batch):
        raise ShapeError(f"{name}: got batch {len(value)}; expected {batch} or 1 (shared). Repeat or select elements.")


def check_triangles(tri: object, device: torch.device) -> None:
    if not isinstance(tri, Tensor) or tri.ndim != 2 or tri.shape[1] != 3 or tri.dtype not in (torch.int32, torch.int64):
        got = f"{tri.dtype} {tuple(tri.shape)}" if isinstance(tri, Tensor) else type(tri).__name__
        raise ShapeError(f"tri: got {got}; expected int32 or int64 (triangles, 3). Convert it.")
    if tri.device != device:
        raise ShapeError(f"tri: got device {tri.device}; expected {device}, like the other argument. Move it.")
    if len(tri) > TRIANGLES_MAX:
        raise ShapeError(f"tri: got {len(tri)} triangles; expected at most {TRIANGLES_MAX}. Split the mesh.")


def checked_resolution(resolution: object) -> tuple[int, int]:
    """Height and width as plain integers."""
    if isinstance(resolution, (tuple, list, torch.Size)) and len(resolution) == 2:
        height, width = resolution
        if isinstance(height, int) and isinstance(width, int) and height >= 1 and width >= 1:
            return height, width
    raise ShapeError(f"resolution: got {resolution}; expected two integers (height, width) >= 1. Correct it.")


def check_texels(tex: Tensor) -> None:
    if 0 in tex.shape[1:3]:
        raise ShapeError(f"tex: got shape {tuple(tex.shape)}; expected at least one texel. Pass a larger texture.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ShapeError(f"{name}: got {value!r}; expected one of {', '.join(choices)}. Choose one.")


def check_mask(mask: object, uv: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or (mask.shape, mask.dtype, mask.device) != (uv.shape[:3], torch.bool, uv.device):
        got = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"mask: got {got}; expected bool {tuple(uv.shape[:3])} on {uv.device}. Use rast[..., 3] > 0.")
