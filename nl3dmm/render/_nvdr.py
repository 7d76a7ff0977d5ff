"""nvdiffrast on CUDA: imported when its user has installed it, never required.

Its licence allows research and evaluation only, which is why it is not a dependency.
"""

import re
import threading
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nl3dmm.errors import BackendError, ShapeError
from nl3dmm.render._torch.normals import vertex_normals as vertex_normals  # nvdiffrast has none
from nl3dmm.render._torch.shading import light_albedo as light_albedo
from nl3dmm.render._torch.shading import shade as shade

MINIMUM = (0, 3, 5)  # the first version that keeps u + v <= 1
INSTALLATION = "https://nvlabs.github.io/nvdiffrast/#installation"

_contexts: dict[int, Any] = {}
_topologies = WeakTensorKeyDictionary()
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
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:3]) < MINIMUM:
        raise BackendError(f"nvdiffrast: got version {installed}; expected 0.3.5 or later. {advice}")
    return library


def _context(device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    with _lock:
        if index not in _contexts:
            _contexts[index] = library().RasterizeCudaContext(torch.device("cuda", index))
        return _contexts[index]


def rasterize(
    ctx: Any,
    pos: Float[Tensor, "batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    height: int,
    width: int,
    ranges: Int[Tensor, "batch 2"] | None,
    grad_db: bool | None,
) -> tuple[Float[Tensor, "batch {height} {width} 4"], Float[Tensor, "batch {height} {width} 4"] | None]:
    ctx = _context(pos.device) if ctx is None else ctx
    ranges = None if ranges is None else ranges.int().contiguous()
    rast, rast_db = library().rasterize(
        ctx, _prepared(pos), _int32(tri), [height, width], ranges=ranges, grad_db=bool(grad_db)
    )
    return rast, None if grad_db is None else rast_db


def interpolate(
    attr: Float[Tensor, "attr_batch vertices channels"],
    rast: Float[Tensor, "batch height width 4"],
    tri: Int[Tensor, "triangles 3"],
    rast_db: Float[Tensor, "batch height width _"] | None,
    diff_attrs: tuple[int, ...],
) -> tuple[Float[Tensor, "batch height width channels"], Float[Tensor, "batch height width _"] | None]:
    values, fragments = _prepared(attr), _prepared(rast)
    if not diff_attrs or rast_db is None:
        return library().interpolate(values, fragments, _int32(tri))[0], None
    wanted = "all" if diff_attrs == tuple(range(attr.shape[2])) else list(diff_attrs)
    return library().interpolate(values, fragments, _int32(tri), rast_db=_prepared(rast_db), diff_attrs=wanted)


def texture(
    levels: list[Tensor],
    uv: Float[Tensor, "batch height width 2"],
    uv_da: Float[Tensor, "batch height width 4"] | None,
    mip_level_bias: Float[Tensor, "batch height width"] | None,
    filter_mode: str,
    boundary_mode: str,
    mask: Bool[Tensor, "batch height width"] | None,
) -> Float[Tensor, "batch height width channels"]:
    tex, *mip = [_prepared(level) for level in levels]
    pyramid: dict[str, Any] = {}
    if "mipmap" in filter_mode:
        guides = {"uv_da": uv_da, "mip_level_bias": mip_level_bias}
        pyramid = {name: None if value is None else _prepared(value) for name, value in guides.items()} | {"mip": mip}
    out = library().texture(tex, _prepared(uv), filter_mode=filter_mode, boundary_mode=boundary_mode, **pyramid)
    return out if mask is None else torch.where(mask[..., None], out, 0)


def antialias(
    color: Float[Tensor, "batch height width channels"],
    rast: Float[Tensor, "batch height width 4"],
    pos: Float[Tensor, "pos_batch vertices 4"] | Float[Tensor, "vertices 4"],
    tri: Int[Tensor, "triangles 3"],
    topology: Any,
    pos_gradient_boost: float,
) -> Float[Tensor, "batch height width channels"]:
    """nvdiffrast makes its own table of edges; ``topology`` is ours and not used."""
    pos = pos.expand(len(rast), -1, -1) if pos.ndim == 3 else pos
    return library().antialias(
        _prepared(color),
        _prepared(rast),
        _prepared(pos),
        _int32(tri),
        topology_hash=_edges(tri),
        pos_gradient_boost=pos_gradient_boost,
    )


def _prepared(values: Tensor) -> Tensor:
    """nvdiffrast knows contiguous float32 only."""
    if values.dtype != torch.float32:
        raise ShapeError(f"values: got {values.dtype} for nvdiffrast; expected float32. Convert all arguments.")
    return values.contiguous()


def _int32(tri: Tensor) -> Tensor:
    return tri.int().contiguous()


def _edges(tri: Tensor) -> Any:
    """nvdiffrast's table of edges, kept as long as the tensor lives and is not written to."""
    if tri.is_inference():  # nobody counts the writes to such a tensor
        return library().antialias_construct_topology_hash(_int32(tri))
    if tri not in _topologies or _topologies[tri][0] != tri._version:
        _topologies[tri] = tri._version, library().antialias_construct_topology_hash(_int32(tri))
    return _topologies[tri][1]
