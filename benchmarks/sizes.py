"""Parameters of each part, next to those of the paper's layer tables."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from benchmarks.measure import Facts
from nl3dmm.model import ModelConfig
from nl3dmm.nn.encoder import count_parameters
from nl3dmm.nn.uv_decoder import DecoderConfig, UVDecoder
from nl3dmm.settings import RunConfig
from nl3dmm.systems.highfidelity import HighFidelity

_PAPER_UV = (192, 224)
# Row, column, height, width; a template's own boxes follow from its landmarks.
_PAPER_BOXES = {
    "left_eye": (38, 116, 40, 48),
    "right_eye": (38, 60, 40, 48),
    "nose": (46, 88, 56, 48),
    "mouth": (96, 63, 64, 96),
}
# Millions, at 224 px, UV 192 x 224 and latents of 320. The released albedo decoder has no pathway for the nose and a
# first layer half as wide; the paper's is equal to the shape decoder.
_SHEET = {
    "encoder": 3.70,
    "shape decoder": 12.68,
    "shape decoder, global": 3.08,
    "shape decoder, left_eye": 1.59,
    "shape decoder, right_eye": 1.59,
    "shape decoder, nose": 2.09,
    "shape decoder, mouth": 4.31,
    "albedo decoder": 12.68,
    "decoder, the paper's boxes": 12.68,
    "released albedo decoder, the paper's boxes": 10.39,
}


def parameters(systems: Mapping[str, tuple[RunConfig, HighFidelity]]) -> Facts:
    """``as_sheet`` counts as the sheet does: without scale and shift of the norms behind the linear layers."""
    rows = []
    for name, (config, system) in systems.items():
        for part, module in _parts(config, system).items():
            sheet = _SHEET.get(part) if _is_paper(config) else None
            count, as_sheet = count_parameters(module), _as_sheet(module)
            rows.append({"config": name, "part": part, "parameters": count, "as_sheet": as_sheet, "sheet": sheet})
    return Facts("parameters", "trainable; as_sheet, sheet: millions", rows)


def _parts(config: RunConfig, system: HighFidelity) -> dict[str, nn.Module]:
    model = system.model
    parts = {"encoder": model.encoder, "shape decoder": model.shape_decoder}
    if isinstance(model.shape_decoder, UVDecoder):
        pathways = {"global": model.shape_decoder.global_pathway, **model.shape_decoder.local_pathways}
        parts |= {f"shape decoder, {name}": pathway for name, pathway in pathways.items()}
    parts["albedo decoder"] = model.albedo_decoder
    parts["linear decoders"] = nn.ModuleList([system.linear_shape, system.linear_albedo])
    return parts | _with_paper_boxes() if _is_paper(config) else parts


def _with_paper_boxes() -> dict[str, nn.Module]:
    latent, without_nose = ModelConfig().shape_latent, {**_PAPER_BOXES}
    del without_nose["nose"]
    with torch.device("meta"):
        paper = UVDecoder(DecoderConfig(), latent, _PAPER_UV, _PAPER_BOXES)
        released = UVDecoder(DecoderConfig(first_layer=5), latent, _PAPER_UV, without_nose)
    return {"decoder, the paper's boxes": paper, "released albedo decoder, the paper's boxes": released}


def _is_paper(config: RunConfig) -> bool:
    paper = ModelConfig()
    model = replace(config.model, camera=paper.camera, encoding=paper.encoding)
    return model == paper and config.uv_size == _PAPER_UV


def _as_sheet(module: nn.Module) -> float:
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    return round((count_parameters(module) - sum(map(count_parameters, norms))) / 1e6, 3)
