import os
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from nl3dmm.data import images
from nl3dmm.data.images import image_size, read_image, read_sticker, write_png
from nl3dmm.errors import ImageError, OutputError, ShapeError

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
FORMATS = ["JPEG", "PNG", "WEBP"]


@pytest.fixture
def pixels() -> np.ndarray:
    """A 40 x 48 image without any symmetry; smooth, so that JPEG keeps it."""
    row, column = np.mgrid[0:40, 0:48]
    return np.stack([row * 6, column * 5, (row + column) * 2], axis=2).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 100} | options if kind != "PNG" else options))
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG of less than 100 bytes that announces this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def to_uint8(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def test_reads_committed_photo():
    image = read_image(ASTRONAUT)
    assert image.shape == (3, 512, 512)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.05 < 0.95 < image.max() <= 1
    assert torch.equal(image, read_image(str(ASTRONAUT)))
    assert torch.equal(image, read_image(ASTRONAUT.read_bytes()))
    assert image_size(ASTRONAUT) == (512, 512)


@pytest.mark.parametrize("kind", FORMATS)
def test_all_sources_agree(tmp_path, pixels, kind):
    data = encode(Image.fromarray(pixels), kind)
    (tmp_path / "photo").write_bytes(data)
    image = read_image(data)
    assert np.abs(to_uint8(image).astype(int) - pixels).max() <= 6
    assert torch.equal(image, read_image(tmp_path / "photo"))
    assert torch.equal(image, read_image(Image.open(BytesIO(data))))
    assert image_size(tmp_path / "photo") == image_size(data) == (40, 48)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(pixels, kind, orientation):
    data = encode(Image.fromarray(pixels), kind, exif=turned(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))
    assert np.array_equal(to_uint8(read_image(data)), expected)
    assert np.array_equal(to_uint8(read_image(Image.open(BytesIO(data)))), expected)
    assert image_size(data) == expected.shape[:2]


def test_upright_pillow_image_is_not_turned_again(pixels):
    upright = ImageOps.exif_transpose(Image.open(BytesIO(encode(Image.fromarray(pixels), "PNG", exif=turned(6)))))
    assert np.array_equal(to_uint8(read_image(upright)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's
@pytest.mark.parametrize("exif", [b"MM\x00\x2a\xff\xff\xff\xff", b"no TIFF header"])
def test_broken_exif_does_not_lose_the_photo(pixels, exif):
    plain, data = (encode(Image.fromarray(pixels), "JPEG", exif=tag) for tag in (b"", b"Exif\x00\x00" + exif))
    assert torch.equal(read_image(data), read_image(plain))


def test_grey_and_palette(pixels):
    grey = Image.fromarray(pixels[..., 0])
    expected = torch.from_numpy(pixels[..., 0] / np.float32(255)).expand(3, -1, -1)
    assert torch.equal(read_image(encode(grey, "PNG")), expected)
    assert torch.equal(read_image(encode(grey.convert("1"), "PNG")).unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(read_image(Image.fromarray(pixels[..., 0] / np.float32(255))), expected)
    palette = Image.fromarray(pixels).quantize(16)
    assert np.array_equal(to_uint8(read_image(encode(palette, "PNG"))), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_grey_png_keeps_its_precision():
    ramp = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535).expand(3, -1, -1)
    data = encode(Image.fromarray(ramp), "PNG")
    assert torch.equal(read_image(data), expected)
    assert torch.equal(read_image(encode(Image.fromarray(ramp), "PNG", exif=turned(3))), expected.flip(1, 2))


def test_transparency_lies_on_white(pixels):
    rgba = np.concatenate([pixels, np.full((40, 48, 1), 255, np.uint8)], axis=2)
    rgba[:20, :, 3] = 0
    rgba[20:30, :, 3] = 51
    image = read_image(encode(Image.fromarray(rgba), "PNG"))
    assert (image[:, :20] == 1).all()
    opaque = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(image[:, 20:], torch.cat([opaque[:, 20:30] * 0.2 + 0.8, opaque[:, 30:]], dim=1))
    torch.testing.assert_close(read_image(rgba), image)
    torch.testing.assert_close(read_image(rgba.astype(np.float64) / 255), image)


def test_stickers_keep_their_transparency(pixels):
    rgba = np.concatenate([pixels, np.full((40, 48, 1), 255, np.uint8)], axis=2)
    rgba[:20, :, 3] = 51
    expected = torch.from_numpy(rgba).permute(2, 0, 1) / 255
    for source in (encode(Image.fromarray(rgba), "PNG"), Image.fromarray(rgba), rgba, expected):
        torch.testing.assert_close(read_sticker(source), expected)
    opaque = read_sticker(encode(Image.fromarray(pixels), "PNG"))
    assert torch.equal(opaque[:3], expected[:3])
    assert (opaque[3] == 1).all()
    with pytest.raises(ShapeError, match="sticker: got NaN"):
        read_sticker(torch.full((4, 40, 48), torch.nan))


def test_transparent_palette_and_grey_alpha(pixels):
    palette = Image.fromarray(pixels).quantize(16)
    index = int(np.asarray(palette)[0, 0])
    image = read_image(encode(palette, "PNG", transparency=index))
    assert (image[:, np.asarray(palette) == index] == 1).all()
    grey_alpha = np.stack([pixels[..., 0], np.zeros((40, 48), np.uint8)], axis=2)
    assert (read_image(encode(Image.fromarray(grey_alpha, "LA"), "PNG")) == 1).all()


def test_cmyk_jpeg(pixels):
    image = read_image(encode(Image.fromarray(pixels).convert("CMYK"), "JPEG", subsampling=0))
    assert np.abs(to_uint8(image).astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, ">u2", ">f4"])
def test_array_layouts_and_dtypes(pixels, dtype):
    scale = {"u1": 1, "u2": 257}.get(np.dtype(dtype).str[1:], 1 / 255)
    array = (pixels.astype(np.float64) * scale).astype(dtype)
    array.setflags(write=False)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    tolerance = {"atol": 1e-3 if dtype == np.float16 else 1e-6, "rtol": 0.0}
    torch.testing.assert_close(read_image(array), expected, **tolerance)
    torch.testing.assert_close(read_image(array.transpose(2, 0, 1)), expected, **tolerance)
    torch.testing.assert_close(read_image(array[..., 1]), expected[1].expand(3, -1, -1), **tolerance)
    torch.testing.assert_close(read_image(array[:, ::-1]), expected.flip(2), **tolerance)


def test_tensor_is_detached_and_not_changed(pixels):
    before = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    source = before.clone().requires_grad_()
    assert not read_image(source).requires_grad
    assert torch.equal(read_image(source), before)
    assert torch.equal(read_image(torch.from_numpy(pixels)), before)
    assert torch.equal(source, before)


@pytest.mark.parametrize("shape", [(), (40,), (1, 3, 40, 48), (1, 40, 48), (40, 48, 2), (5, 40, 48)])
def test_wrong_shape(shape):
    with pytest.raises(ShapeError, match=r"image: got shape .*; expected one image \(H, W\).*one at a time"):
        read_image(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", [np.int64, bool, complex, object])
def test_wrong_dtype(dtype):
    with pytest.raises(ShapeError, match=r"image: got dtype .*; expected uint8, uint16 or float"):
        read_image(np.zeros((40, 48), dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite(value):
    array = np.zeros((40, 48), np.float32)
    array[3, 4] = value
    with pytest.raises(ShapeError, match="image: got NaN or infinite values"):
        read_image(array)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_wrong_range(low, high):
    array = np.linspace(low, high, 40 * 48, dtype=np.float32).reshape(40, 48)
    with pytest.raises(ImageError, match=rf"image: got values from {low} to {high}; expected floats in \[0, 1\]"):
        read_image(array)


def test_rounding_overshoot_is_clamped():
    image = read_image(torch.tensor([-1e-4, 1 + 1e-4]).repeat(32, 16))
    assert (image.min(), image.max()) == (0, 1)


def test_too_small():
    with pytest.raises(ImageError, match="got 64 x 31 px; expected at least 32 px per side"):
        read_image(np.zeros((31, 64), np.uint8))
    with pytest.raises(ImageError, match=r"image of .* bytes: got 31 x 64 px; expected at least 32"):
        read_image(encode(Image.new("RGB", (31, 64)), "PNG"))


def test_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "portrait.jpg"
    with pytest.raises(ImageError, match=r"portrait\.jpg: got no such file; expected a JPEG, PNG or WebP file"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"portrait\.jpg: got an empty file"):
        read_image(path)
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ImageError, match=r"portrait\.jpg: got data that is no JPEG, PNG or WebP image.*Convert"):
        image_size(path)
    with pytest.raises(ImageError, match="got a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=f"{os.devnull}: got no such file"):  # devices may never end
        read_image(os.devnull)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "locked.png"
    path.write_bytes(b"x")

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root reads every file, so a mode cannot show this
    with pytest.raises(ImageError, match=r"locked\.png: got .*Permission denied.*expected a readable file"):
        read_image(path)


def test_other_formats_are_refused(pixels):
    for kind in ("BMP", "GIF", "TIFF"):
        with pytest.raises(ImageError, match="no JPEG, PNG or WebP"):
            read_image(encode(Image.fromarray(pixels), kind))


def test_too_many_bytes(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(ImageError, match=r"astronaut\.jpg: got \d+ bytes; expected at most 1000"):
        read_image(ASTRONAUT)


@pytest.mark.parametrize("side", [6400, 10_000, 60_000])
def test_decompression_bomb_is_refused_from_its_header(side):
    with pytest.raises(ImageError, match=r"expected at most 40000000 pixels. Shrink the photo"):
        read_image(png_bomb(side, side))
    with pytest.raises(ImageError, match="expected at most 40000000 pixels"):
        image_size(png_bomb(side, side))


def test_pixel_limit_is_an_argument():
    with pytest.raises(ImageError, match="got 512 x 512 px; expected at most 1000 pixels"):
        read_image(ASTRONAUT, max_pixels=1000)
    with pytest.raises(ImageError, match="image: got 64 x 64 px; expected at most 1000 pixels"):
        read_image(Image.new("RGB", (64, 64)), max_pixels=1000)


def test_closed_pillow_image():
    image = Image.open(ASTRONAUT)
    image.close()
    with pytest.raises(ImageError, match="image: got damaged image data"):
        read_image(image)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(pixels, kind):
    """Refused at every length, but for a PNG that lacks only what follows its last pixel."""
    data = encode(Image.fromarray(pixels), kind)
    for length in range(1, len(data) - 24 if kind == "PNG" else len(data)):
        with pytest.raises(ImageError, match=r"expected a complete JPEG|no JPEG, PNG or WebP"):
            read_image(data[:length])
    if kind == "PNG":
        assert np.array_equal(to_uint8(read_image(data[:-12])), pixels)


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_files_raise_nothing_but_image_error(pixels, kind):
    random = np.random.default_rng(0)
    data = np.frombuffer(encode(Image.fromarray(pixels), kind), np.uint8)
    for _ in range(300):
        mutant = data.copy()
        mutant[random.integers(len(data), size=random.integers(1, 6))] = random.integers(256)
        with suppress(ImageError):
            image = read_image(mutant.tobytes())
            assert tuple(image.shape[1:]) == image_size(mutant.tobytes())


def test_png_round_trip_clamps_and_rounds(tmp_path, pixels):
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    write_png(image, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), image)
    write_png(torch.tensor([-1.0, 0.5, 2.0])[:, None, None].expand(3, 32, 32), tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png"))[0, 0], [0, 128, 255])


def test_png_refuses_nan_and_bad_folder(tmp_path):
    with pytest.raises(ShapeError, match="image: got NaN or infinite"):
        write_png(torch.full((3, 32, 32), torch.nan), tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"output file: got .*missing.a\.png"):
        write_png(torch.zeros(3, 32, 32), tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []
