"""Templates on disk: ``x.safetensors`` for tensors, ``x.json`` for the rest (the card), tied by a content hash."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nl3dmm.assets.template import Box, FaceTemplate
from nl3dmm.errors import AssetError
from nl3dmm.outputs import atomic_path

FORMAT = "nl3dmm.template/1"


def save_template(template: FaceTemplate, path: str | Path) -> None:
    """Write ``path`` (.safetensors) and its card; smaller number types are used where they lose nothing."""
    path = _checked_name(path)
    tensors = {name: _narrow(tensor.detach().cpu().contiguous()) for name, tensor in template.tensors().items()}
    card = {
        "format": FORMAT,
        "name": template.name,
        "hash": template.hash,
        "uv_size": template.uv_size,
        "is_uv_grid": template.is_uv_grid,
        "boxes": template.boxes,
        "expression_names": template.expression_names,
        "provenance": template.provenance,
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors))
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_template(path: str | Path) -> FaceTemplate:
    """Read a saved template and verify that it is complete, consistent and the one of its card.

    Raises:
        AssetError: a file is missing, damaged or changed.
    """
    path = _checked_name(path)
    card, tensors = _read_card(path.with_suffix(".json")), _read_tensors(path)
    try:
        rest: dict[str, Any] = {
            "name": str(card["name"]),
            "uv_size": (int(card["uv_size"][0]), int(card["uv_size"][1])),
            "is_uv_grid": bool(card["is_uv_grid"]),
            "boxes": {str(name): Box(*(int(value) for value in box)) for name, box in card["boxes"].items()},
            "expression_names": tuple(str(name) for name in card["expression_names"]),
            "provenance": {str(key): str(value) for key, value in card["provenance"].items()},
        }
        _check_layout(tensors, rest["uv_size"], len(rest["expression_names"]), path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise error if isinstance(error, AssetError) else _damaged(path, f"an incomplete card ({error!r})") from error
    _check_values(tensors, path)
    regions = {name[8:]: tensors.pop(name) for name in sorted(tensors) if name.startswith("regions.")}
    values: dict[str, Any] = {**rest, **tensors}
    template = FaceTemplate(regions=regions, **values)
    for name, box in template.boxes.items():
        if min(box) < 0 or box.row + box.height > template.uv_size[0] or box.column + box.width > template.uv_size[1]:
            raise _damaged(path, f"box {name} {tuple(box)} outside the map {template.uv_size}")
    if template.hash != card["hash"]:
        raise _damaged(path, f"content hash {template.hash[:12]}, not the card's {card['hash'][:12]}")
    return template


def _check_layout(tensors: dict[str, Tensor], uv_size: tuple[int, int], num_expressions: int, path: Path) -> None:
    """Exactly the tensors of a template, each with its shape and type."""
    count, real, index = _length(tensors, "vertices"), torch.float32, torch.int64
    expected = {
        "vertices": ((count, 3), real),
        "triangles": ((_length(tensors, "triangles"), 3), index),
        "uv": ((count, 2), real),
        "uv_mask": (uv_size, torch.bool),
        "texel_triangle": (uv_size, index),
        "texel_barycentric": ((*uv_size, 3), real),
        "landmark_vertices": ((68, 3), index),
        "landmark_weights": ((68, 3), real),
        "mirror": ((count,), index),
        "identity_basis": ((_length(tensors, "identity_basis"), count, 3), real),
        "expression_basis": ((num_expressions, count, 3), real),
    } | {name: (uv_size, real) for name in tensors if name.startswith("regions.")}
    if {"albedo_mean", "albedo_basis"} & tensors.keys():
        expected["albedo_mean"] = ((count, 3), real)
        expected["albedo_basis"] = ((_length(tensors, "albedo_basis"), count, 3), real)
    for name in sorted(expected.keys() | tensors.keys()):
        got = (tuple(tensors[name].shape), tensors[name].dtype) if name in tensors else None
        if got != expected.get(name):
            raise _damaged(path, f"{name}: {got}, not {expected.get(name)}")


def _length(tensors: dict[str, Tensor], name: str) -> int:
    return len(tensors[name]) if name in tensors and tensors[name].dim() else 0


def _check_values(tensors: dict[str, Tensor], path: Path) -> None:
    """Numbers are finite and indices exist."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise _damaged(path, f"{name} with values that are not finite")
    num_vertices, num_triangles = len(tensors["vertices"]), len(tensors["triangles"])
    lowest, limits = {"texel_triangle": -1}, {"texel_triangle": num_triangles}
    for name in ("triangles", "landmark_vertices", "mirror", "texel_triangle"):
        low, high, index = lowest.get(name, 0), limits.get(name, num_vertices), tensors[name]
        if index.numel() and not (low <= int(index.min()) and int(index.max()) < high):
            raise _damaged(path, f"{name} outside {low}..{high - 1}")


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.int64:
        return tensor.to(torch.int32)
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half()
    return tensor


def _widen(tensor: Tensor) -> Tensor:
    wider = {torch.int32: torch.int64, torch.float16: torch.float32}
    return tensor.to(wider.get(tensor.dtype, tensor.dtype))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return {name: _widen(tensor) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"a file that cannot be read ({error})") from error


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"a card that cannot be read ({error})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or not isinstance(card.get("hash"), str):
        raise _damaged(path, "a card of another format")
    return card


def _checked_name(path: str | Path) -> Path:
    if Path(path).suffix != ".safetensors":
        raise AssetError(f"path: got {path}; expected a name that ends in .safetensors. Rename the file.")
    return Path(path)


def _damaged(path: str | Path, got: str) -> AssetError:
    return AssetError(f"template {path}: got {got}; expected a file of nl3dmm.assets. Build or import it again.")
