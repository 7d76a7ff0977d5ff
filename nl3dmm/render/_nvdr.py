"""nvdiffrast on CUDA: imported when its user has installed it, never required.

Its licence allows research and evaluation only, which is why it is not a dependency.
"""

import threading
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.errors import BackendError, ShapeError

MINIMUM = (0, 3, 5)  # the first version that keeps u + v <= 1
INSTALLATION = "https://nvlabs.github.io/nvdiffrast/#installation"

_contexts: dict[int, Any] = {}
_lock = threading.Lock()


def obstacle() -> str | None:
    """Why nvdiffrast cannot be used here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        library()
    except BackendError as error:
        return str(error)
    return None


@cache
def library() -> ModuleType:
    advice = f"Install it as {INSTALLATION} says, set NL3DMM_RENDER=torch, or move the tensors to the CPU."
    try:
        installed = version("nvdiffrast")
        library = import_module("nvdiffrast.torch")
    except (PackageNotFoundError, ImportError, OSError) as error:
        reason = "not installed" if isinstance(error, PackageNotFoundError) else f"an import error ({error})"
        raise BackendError(f"nvdiffrast: got {reason}; expected an installation to render on CUDA. {advice}") from error
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < MINIMUM:
        raise BackendError(f"nvdiffrast: got version {installed}; expected 0.3.5 or later. {advice}")
    return library


def _context(device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _contexts:
            _contexts[index] = library().RasterizeCudaContext(torch.device("cuda", index))
        return _contexts[index]


def rasterize(
    ctx: Any, pos: Float[Tensor, "batch vertices 4"], tri: Int[Tensor, "triangles 3"], height: int, width: int
) -> Float[Tensor, "batch {height} {width} 4"]:
    if pos.dtype != torch.float32:
        raise ShapeError(f"pos: got {pos.dtype} for nvdiffrast; expected float32. Convert it.")
    ctx = _context(pos.device) if ctx is None else ctx
    tri = tri.int().contiguous()
    return library().rasterize(ctx, pos.contiguous(), tri, [height, width], grad_db=False)[0]


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
) -> Float[Tensor, "batch height width channels"]:
    return library().interpolate(attr.contiguous(), rast.contiguous(), tri.int().contiguous())[0]


def texture(
    tex: Float[Tensor, "tex_batch tex_height tex_width channels"],
    uv: Float[Tensor, "batch height width 2"],
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    modes = {"filter_mode": filter_mode, "boundary_mode": boundary_mode}
    out = library().texture(tex.contiguous(), uv.contiguous(), **modes)
    return out if mask is None else torch.where(mask[..., None], out, 0)
