"""What the public operations demand of their arguments; nothing here waits for the GPU."""

import torch
from torch import Tensor

from nl3dmm.errors import ShapeError
from nl3dmm.render.topology import Topology

_MIPMAP_MODES = ("linear-mipmap-nearest", "linear-mipmap-linear")
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


def check_positions(pos: object, ranges: object) -> None:
    """Three axes, or two in range mode."""
    if ranges is None:
        check_real("pos", pos, (None, None, 4), "(batch, vertices, 4)")
    else:
        check_real("pos", pos, (None, 4), "(vertices, 4) with ranges")


def check_corners(pos: object, rast: Tensor) -> None:
    """What ``rast`` was drawn from: one mesh per image, or one for all."""
    shared = isinstance(pos, Tensor) and pos.ndim == 2
    check_real("pos", pos, (None, 4) if shared else (None, None, 4), "(batch, vertices, 4) or (vertices, 4)", like=rast)
    if isinstance(pos, Tensor) and not shared:
        check_batch("pos", pos, len(rast))


def check_topology(topology: object, tri: Tensor) -> None:
    """Made from these triangles, as far as can be seen for free."""
    if not isinstance(topology, Topology):
        raise ShapeError(
            f"topology_hash: got {type(topology).__name__}; expected what antialias_construct_topology_hash(tri) "
            "returns. Pass that or None."
        )
    if topology.neighbour.shape != tri.shape or topology.neighbour.device != tri.device:
        got = f"{len(topology.neighbour)} triangles on {topology.neighbour.device}"
        raise ShapeError(
            f"topology_hash: got one of {got}; expected {len(tri)} on {tri.device}. Make it from this tri."
        )


def check_ranges(ranges: object, triangles: int) -> None:
    """Start and count of each image, on CPU, within the triangles."""
    if ranges is None:
        return
    integers = isinstance(ranges, Tensor) and ranges.dtype in (torch.int32, torch.int64)
    if not isinstance(ranges, Tensor) or not integers or ranges.ndim != 2 or ranges.shape[1] != 2:
        got = f"{ranges.dtype} {tuple(ranges.shape)}" if isinstance(ranges, Tensor) else type(ranges).__name__
        raise ShapeError(f"ranges: got {got}; expected int32 (batch, 2) of start and count. Convert it.")
    if ranges.device.type != "cpu":
        raise ShapeError(f"ranges: got device {ranges.device}; expected cpu, as nvdiffrast does. Move it.")
    start, count = ranges.long().unbind(1)
    outside = ((start < 0) | (count < 0) | (start > triangles) | (count > triangles - start)).nonzero()[:, 0]
    if len(outside):
        image = int(outside[0])
        raise ShapeError(
            f"ranges: got {ranges[image].tolist()} for image {image}; expected starts and counts within {triangles} "
            "triangles. Correct them."
        )


def checked_attributes(attr: object, rast: Tensor) -> Tensor:
    """With a batch axis: (1, vertices, channels) where it had none."""
    shared = isinstance(attr, Tensor) and attr.ndim == 2
    lengths = (None, None) if shared else (None, None, None)
    check_real("attr", attr, lengths, "(batch, vertices, channels) or (vertices, channels)", like=rast)
    values: Tensor = attr[None] if shared else attr  # type: ignore[index, assignment]  # checked to be a tensor
    check_batch("attr", values, len(rast))
    return values


def checked_channels(diff_attrs: object, channels: int) -> tuple[int, ...]:
    """The channels whose derivatives are wanted, counted from 0."""
    if diff_attrs is None:
        return ()
    if isinstance(diff_attrs, str) and diff_attrs == "all":
        return tuple(range(channels))
    if isinstance(diff_attrs, (list, tuple)) and all(
        isinstance(channel, int) and -channels <= channel < channels for channel in diff_attrs
    ):
        return tuple(channel % channels for channel in diff_attrs)
    raise ShapeError(f"diff_attrs: got {diff_attrs!r}; expected 'all' or a list of channels of {channels}. Correct it.")


def check_derivatives(rast_db: object, rast: Tensor, channels: tuple[int, ...]) -> None:
    if channels or (isinstance(rast_db, Tensor) and rast_db.shape[-1:] != (0,)):
        check_real("rast_db", rast_db, tuple(rast.shape), f"{tuple(rast.shape)} from grad_db", like=rast)


def checked_filter_mode(filter_mode: object, uv: Tensor, uv_da: object, bias: object) -> str:
    """The filter that ``auto`` stands for, and its inputs."""
    batch, height, width = uv.shape[:3]
    check_choice("filter_mode", filter_mode, ("auto", "nearest", "linear", *_MIPMAP_MODES))
    if uv_da is not None:
        check_real("uv_da", uv_da, (batch, height, width, 4), "(batch, height, width, 4) like uv", like=uv)
    if bias is not None:
        check_real("mip_level_bias", bias, (batch, height, width), "(batch, height, width) like uv", like=uv)
    guided = uv_da is not None or bias is not None
    if filter_mode in _MIPMAP_MODES and not guided:
        raise ShapeError(
            f"filter_mode: got {filter_mode!r} without uv_da and mip_level_bias; expected one of them, which choose "
            "the mip level. Pass uv_da, or filter_mode='linear'."
        )
    if filter_mode == "auto":
        return "linear-mipmap-linear" if guided else "linear"
    return str(filter_mode)


def checked_mip(mip: object, tex: Tensor, max_mip_level: object) -> list[Tensor]:
    """Levels 1, 2, ...: each half the one before, an extent of 1 stays 1."""
    if max_mip_level is not None:
        raise ShapeError(
            f"max_mip_level: got {max_mip_level} together with mip; expected one of them. Shorten the list instead."
        )
    if not isinstance(mip, (list, tuple)):
        raise ShapeError(f"mip: got {type(mip).__name__}; expected a list of tensors. Use texture_construct_mip.")
    height, width = tex.shape[1:3]
    for number, level in enumerate(mip, 1):
        height, width = max(height // 2, 1), max(width // 2, 1)
        expected = (len(tex), height, width, tex.shape[3])
        check_real(f"mip[{number - 1}]", level, expected, f"{expected}", like=tex)
    return list(mip)


def check_batch(name: str, value: Tensor, batch: int) -> None:
    if len(value) not in (1, batch):
        raise ShapeError(f"{name}: got batch {len(value)}; expected {batch} or 1 (shared). Repeat or select elements.")


def check_triangles(tri: object, device: torch.device, name: str = "tri") -> None:
    if not isinstance(tri, Tensor) or tri.ndim != 2 or tri.shape[1] != 3 or tri.dtype not in (torch.int32, torch.int64):
        got = f"{tri.dtype} {tuple(tri.shape)}" if isinstance(tri, Tensor) else type(tri).__name__
        raise ShapeError(f"{name}: got {got}; expected int32 or int64 (triangles, 3). Convert it.")
    if tri.device != device:
        raise ShapeError(f"{name}: got device {tri.device}; expected {device}, like the other argument. Move it.")
    if len(tri) > TRIANGLES_MAX:
        raise ShapeError(f"{name}: got {len(tri)} triangles; expected at most {TRIANGLES_MAX}. Split the mesh.")


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
