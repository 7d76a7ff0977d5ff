"""Photos in: any common source to one RGB tensor, with EXIF orientation applied here and nowhere else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nl3dmm.errors import ImageError, ShapeError
from nl3dmm.outputs import atomic_path

ImageSource: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor

MAX_BYTES = 256 * 2**20  # more than 40 megapixels of 16-bit RGB can fill
MAX_PIXELS = 40_000_000
MIN_SIDE = 32  # px
_LARGE = 1_000_000  # px

_FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "bfloat16": 1.0, "float32": 1.0, "float64": 1.0}
_RANGE_TOLERANCE = 1e-3  # resampling overshoots by rounding; more than this is another range
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "3 height width"]:
    """Read a photo as RGB in [0, 1], upright, transparency on white; embedded colour profiles are ignored.

    Args:
        source: JPEG, PNG or WebP file (path or bytes); a Pillow image; an array or tensor (H, W), (H, W, 3), (H, W, 4),
            (3, H, W) or (4, H, W), uint8 or uint16 over their full range, or float in [0, 1]. A tensor stays on
            its device.
        max_pixels: larger files are refused from their header, before they are decoded.

    Raises:
        ImageError: not an image, damaged, too large, smaller than 32 px, or values outside the range.
        ShapeError: an array's shape or dtype is not in the list, or it has non-finite values.
    """
    values = _read(source, "image", max_pixels)
    color, alpha = values[:3], values[3:]
    return (color * alpha + (1 - alpha) if len(alpha) else color).contiguous()


def read_sticker(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "4 height width"]:
    """Read a picture as RGBA in [0, 1], colours not multiplied by alpha; opaque where the source has no alpha.

    Args:
        source: as of ``read_image``.

    Raises:
        ImageError, ShapeError: as of ``read_image``.
    """
    values = _read(source, "sticker", max_pixels)
    return values if len(values) == 4 else torch.cat([values, torch.ones_like(values[:1])])


def image_size(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width that ``read_image`` would return, from the header (PNG: from a scan of its chunks).

    Raises:
        ImageError: not an image, or too large.
    """
    name = _name(source)
    with _open(source) as stream, _decoding(name):
        image = _read_header(stream, name, max_pixels)
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def write_png(image: Float[Tensor, "3 height width"], path: str | Path) -> None:
    """Write RGB values, clamped to [0, 1] and rounded to 8 bits; the file is complete or absent.

    Raises:
        ShapeError: a value is not finite.
        OutputError: the file cannot be written.
    """
    content = png_bytes(image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def png_bytes(image: Float[Tensor, "3 height width"]) -> bytes:
    """What ``write_png`` writes."""
    values = image.detach().cpu().float()
    _check_finite("image", values)
    levels = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    content = BytesIO()
    fast = {"compress_level": 1} if levels[0].numel() > _LARGE else {}  # seconds for a tenth of the size
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(content, format="PNG", **fast)
    return content.getvalue()


def _read(source: ImageSource, name: str, max_pixels: int) -> Float[Tensor, "_ height width"]:
    """RGB, or RGBA where the source has transparency."""
    if isinstance(source, np.ndarray | Tensor):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        _check_pixels(name, source.size, max_pixels)
        with _decoding(name):
            pixels = _decode(source)
        return _from_array(pixels, name)
    if not isinstance(source, str | Path | bytes):  # OpenCV gives None for what it cannot read
        raise ImageError(
            f"{name}: got {type(source).__name__}; expected a path, bytes, a Pillow image, an array or a tensor. Check "
            "where it comes from."
        )
    name = _name(source)
    with _open(source) as stream, _decoding(name):
        pixels = _decode(_read_header(stream, name, max_pixels))
    return _from_array(pixels, name)


def _name(source: str | Path | bytes) -> str:
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)


@contextmanager
def _open(source: str | Path | bytes) -> Iterator[BytesIO | BufferedReader]:
    if isinstance(source, bytes):
        _check_length(_name(source), len(source))
        yield BytesIO(source)
        return
    path = Path(source)
    if not path.is_file():  # also refuses pipes and devices, which never end
        state = "a folder" if path.is_dir() else "no such file"
        raise ImageError(f"{path}: got {state}; expected a JPEG, PNG or WebP file. Check the path.")
    _check_length(str(path), path.stat().st_size)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path}: got {error}; expected a readable file. Check its permissions.") from error
    with stream:
        yield stream


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged data into one ``ImageError``."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: got damaged image data ({error}); expected a complete JPEG, PNG or WebP file. "
            "Copy or export the photo again."
        ) from error


def _read_header(stream: BytesIO | BufferedReader, name: str, max_pixels: int) -> Image.Image:
    kind = _format(stream.read(16))
    if kind is None:
        raise ImageError(
            f"{name}: got data that is no JPEG, PNG or WebP image; expected one of these. "
            "Convert the photo (HEIC, GIF, TIFF, ...) to JPEG or PNG first."
        )
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, and checked below
            image = Image.open(stream, formats=(kind,))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: got {error}; expected at most {max_pixels} pixels. Shrink the photo.") from error
    _check_pixels(name, image.size, max_pixels)
    return image


def _format(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; unreadable metadata counts as upright, the pixels may well be sound."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _decode(image: Image.Image) -> np.ndarray:
    image.load()
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 8 bits; "I" in Pillow before 11
        return np.asarray(image).clip(0, 65535).astype(np.uint16)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _from_array(source: np.ndarray | Tensor, name: str) -> Float[Tensor, "_ height width"]:
    dtype = source.dtype.name if isinstance(source, np.ndarray) else str(source.dtype).removeprefix("torch.")
    if dtype not in _FULL_SCALE:
        raise ShapeError(
            f"{name}: got dtype {dtype}; expected uint8, uint16 or float in [0, 1]. Convert it to one of these."
        )
    shape = tuple(source.shape)
    planar = len(shape) == 3 and shape[0] in (3, 4) and shape[2] not in (3, 4)
    if not planar and not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise ShapeError(
            f"{name}: got shape {shape}; expected one image (H, W), (H, W, 3), (H, W, 4), (3, H, W), (4, H, W). "
            "Pass the images of a batch one at a time."
        )
    _check_side(name, shape[1:] if planar else shape[:2])
    if isinstance(source, np.ndarray):
        kind = np.dtype(np.float32) if source.dtype.kind == "f" else source.dtype.newbyteorder("=")
        source = torch.from_numpy(source.astype(kind))  # a copy: PyTorch wants writable arrays of this byte order
    array = source.detach()
    if array.ndim == 3 and not planar:
        array = array.permute(2, 0, 1).contiguous()  # while most values are bytes: a large photo's floats fill GB
    values = array.to(torch.float32, copy=True).div_(_FULL_SCALE[dtype])
    if dtype not in ("uint8", "uint16"):
        _check_range(name, values)
    return values.expand(3, -1, -1).contiguous() if values.ndim == 2 else values


def _check_range(name: str, values: Tensor) -> None:
    """Refuses; clamps in place what is left."""
    _check_finite(name, values)
    low, high = values.min().item(), values.max().item()
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ImageError(
            f"{name}: got values from {low:.4g} to {high:.4g}; expected floats in [0, 1]. "
            "Divide by 255, or undo the normalisation, or pass uint8."
        )
    values.clamp_(0, 1)


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ShapeError(f"{name}: got NaN or infinite values; expected finite numbers. Find where they come from.")


def _check_length(name: str, length: int) -> None:
    if length == 0:
        raise ImageError(f"{name}: got an empty file; expected a JPEG, PNG or WebP image. Copy or export it again.")
    if length > MAX_BYTES:
        raise ImageError(f"{name}: got {length} bytes; expected at most {MAX_BYTES}. Shrink the photo.")


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ImageError(
            f"{name}: got {size[0]} x {size[1]} px; expected at most {max_pixels} pixels. Shrink the photo."
        )


def _check_side(name: str, size: tuple[int, ...]) -> None:
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{name}: got {size[1]} x {size[0]} px; expected at least {MIN_SIDE} px per side. Use a larger photo."
        )
