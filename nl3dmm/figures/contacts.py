"""Contact sheets of prepared photos: what was taken, with landmarks and mask, and what was not, with the reason."""

import io
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from nl3dmm.data.crop import crop_from_box
from nl3dmm.data.images import read_image
from nl3dmm.data.shards import ShardSet
from nl3dmm.errors import Nl3dmmError
from nl3dmm.figures.sheets import Cell, Column, fitted, sheet

_COLUMNS, _SIDE = 10, 144  # px
_MOST = 60  # pictures of a sheet, evenly spread over all
_MARK = (60, 255, 60)
_GREY = 0.6


def accepted_sheet(shards: ShardSet) -> Float[Tensor, "3 height width"]:
    """Crops, darker outside their masks; below each its quality."""
    cells = []
    for index in _spread(len(shards)):
        members = shards.read(index).members
        record = json.loads(members["json"])
        levels, mask = (np.array(Image.open(io.BytesIO(members[name])).convert("RGB")) for name in ("jpg", "mask.png"))
        image = Image.fromarray(np.where(mask > 0, levels, levels // 2))
        draw, radius = ImageDraw.Draw(image), image.width / 200
        for x, y in record["landmarks"]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_MARK)
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        cells.append(Cell(fitted(picture[None], _SIDE)[0], f"{record['quality']['score']:.2f}"))
    return _sheet(cells)


def rejected_sheet(photos: str | Path, rejected: str | Path) -> Float[Tensor, "3 height width"]:
    """Photos or faces, grey where they cannot be read; below each its line in the file ``rejected`` and the reason."""
    with Path(rejected).open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    cells, chosen = [], set(_spread(count))
    with Path(rejected).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number in chosen:
                entry = json.loads(line)
                picture = _thumbnail(Path(photos) / entry["photo"], entry["box"])
                cells.append(Cell(picture, f"{number + 1}: {entry['reason']}"))
    return _sheet(cells)


def _thumbnail(path: Path, box: Sequence[float] | None) -> Float[Tensor, "3 _ _"]:
    """The photo, or the face in it."""
    try:
        photo = read_image(path)
        return crop_from_box(*box, size=_SIDE).image(photo) if box else fitted(photo[None], _SIDE)[0]
    except Nl3dmmError:
        return torch.full((3, _SIDE, _SIDE), _GREY)


def _spread(count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, _MOST)).tolist()})


def _sheet(cells: Sequence[Cell]) -> Float[Tensor, "3 height width"]:
    rest = iter(cells)
    rows: list[list[Cell | None]] = []
    while row := list(islice(rest, _COLUMNS)):
        rows.append([*row, *[None] * (min(_COLUMNS, len(cells)) - len(row))])
    return sheet([Column("")] * len(rows[0]), rows)
