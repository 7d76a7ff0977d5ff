"""Sheets: pictures in columns with headings above and numbers below, as figures in papers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

_GAP = 8  # px between the pictures, and around them
_HEADING, _CAPTION, _LEAST_FONT = 22, 18, 9  # px
_LEADING = 1.5  # height of a line of text over its font's size
_TILDE, _TILDE_LIFT = "~", 0.55  # stands above the letter before it, this part of the font's size higher than it is
_COLD, _NEUTRAL, _WARM = (0.23, 0.30, 0.75), (0.87, 0.87, 0.87), (0.71, 0.02, 0.15)


@dataclass(frozen=True)
class Column:
    """Of a sheet; neighbours of one group share a line above their headings."""

    heading: str
    group: str = ""


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet and the text below it."""

    picture: Float[Tensor, "3 height width"]
    caption: str = ""


def sheet(columns: Sequence[Column], rows: Sequence[Sequence[Cell | None]]) -> Float[Tensor, "3 height width"]:
    """Pictures in columns with headings, captions below them, on white; smaller ones stand in the middle of a cell.

    In all text a tilde stands above the letter before it.

    Args:
        rows: as many cells as there are columns; None leaves a place empty.
    """
    widths = [max(cell.picture.shape[2] if cell else 0 for cell in column) for column in zip(*rows, strict=True)]
    spans, left = [], _GAP
    for width in widths:
        spans.append((left, width))
        left += width + _GAP
    strips = [_groups(columns, spans, left)] if any(column.group for column in columns) else []
    headings = [_text(column.heading, _HEADING, width) for column, width in zip(columns, widths, strict=True)]
    strips.append(_strip(headings, spans, left))
    for row in rows:
        strips.append(_strip([cell.picture if cell else None for cell in row], spans, left))
        captions = [
            _text(cell.caption, _CAPTION, width) if cell and cell.caption else None
            for cell, width in zip(row, widths, strict=True)
        ]
        strips += [_strip(captions, spans, left), torch.ones(3, _GAP, left)]
    return F.pad(torch.cat(strips, 1), (0, 0, _GAP, 0), value=1.0)


def fitted(picture: Float[Tensor, "batch 3 height width"], side: int) -> Float[Tensor, "batch 3 _ _"]:
    """Resampled so that the longer side has ``side`` pixels; untouched where it has."""
    factor = side / max(picture.shape[2:])
    if factor == 1:
        return picture
    size = (round(picture.shape[2] * factor), round(picture.shape[3] * factor))
    return F.interpolate(picture, size, mode="bicubic", align_corners=False, antialias=factor < 1).clamp(0, 1)


def fitted_map(
    uv_map: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "height width"], side: int
) -> tuple[Float[Tensor, "batch channels _ _"], Float[Tensor, "1 1 _ _"]]:
    """A map of which only the mask's texels count, resampled as ``fitted`` does, and how much of each pixel it fills.

    Linear: values stay within those of the mask.
    """
    factor = side / max(mask.shape)
    size = (round(mask.shape[0] * factor), round(mask.shape[1] * factor))

    def resample(values: Tensor) -> Tensor:
        return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=factor < 1)

    weight = mask[None, None].to(uv_map.dtype)
    share = resample(weight)
    values = resample(torch.where(mask, uv_map, 0)) / share.clamp_min(1e-6)
    return values, ((share - 0.5) * max(factor, 1) + 0.5).clamp(0, 1)


def diverging(values: Float[Tensor, "batch 1 height width"], limit: float) -> Float[Tensor, "batch 3 height width"]:
    """Blue at -limit over light grey at 0 to red at limit."""
    level = (values / limit).clamp(-1, 1)
    cold, neutral, warm = (values.new_tensor(colour)[:, None, None] for colour in (_COLD, _NEUTRAL, _WARM))
    return neutral + level.clamp_min(0) * (warm - neutral) - level.clamp_max(0) * (cold - neutral)


def _strip(
    pictures: Sequence[Float[Tensor, "3 _ _"] | None], spans: Sequence[tuple[int, int]], width: int
) -> Float[Tensor, "3 height {width}"]:
    """Pictures side by side, each in the middle of its span (left, width)."""
    height = max((picture.shape[1] for picture in pictures if picture is not None), default=0)
    strip = torch.ones(3, height, width)
    for picture, (left, room) in zip(pictures, spans, strict=True):
        if picture is not None:
            rows, columns = picture.shape[1:]
            top, first = (height - rows) // 2, left + (room - columns) // 2
            strip[:, top : top + rows, first : first + columns] = picture.cpu()
    return strip


def _groups(
    columns: Sequence[Column], spans: Sequence[tuple[int, int]], width: int
) -> Float[Tensor, "3 height {width}"]:
    """The groups' names, ruled off from their columns' headings."""
    names, places = [], []
    for group, members in groupby(zip(columns, spans, strict=True), key=lambda pair: pair[0].group):
        members = [span for _, span in members]
        left, right = members[0][0], sum(members[-1])
        places.append((left, right - left))
        name = _text(group, _HEADING, right - left)
        name[:, -2:] = 0.0 if group else 1.0
        names.append(name)
    return _strip(names, places, width)


def _text(text: str, size: int, width: int) -> Float[Tensor, "3 height {width}"]:
    """One line, black on white, in the middle; smaller where it would not fit."""
    plain = text.replace(_TILDE, "")
    height = round(size * _LEADING)
    while size > _LEAST_FONT and _font(size).getlength(plain) > width:
        size -= 1
    font = _font(size)
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    left, middle = (width - font.getlength(plain)) / 2, height / 2
    draw.text((left, middle), plain, fill=0, font=font, anchor="lm")
    written = ""
    for part in text.split(_TILDE)[:-1]:
        written += part
        centre = left + font.getlength(written) - font.getlength(written[-1:]) / 2
        draw.text((centre, middle - _TILDE_LIFT * size), _TILDE, fill=0, font=font, anchor="mm")
    grey = torch.from_numpy(np.array(canvas)).float() / 255
    return grey.expand(3, -1, -1).clone()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
