"""Encoder and decoders as files that run without nl3dmm: torch.export's .pt2 and ONNX."""

import copy
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nl3dmm.errors import BackendError, ConfigError
from nl3dmm.export.arrays import write_npz
from nl3dmm.model import FaceModel
from nl3dmm.outputs import atomic_path, prepare_output_folder
from nl3dmm.types import Latents

FORMATS = ("pt2", "onnx")
_BATCH = 2  # of the examples that are traced: torch.export takes 1 for a constant
_MEANINGS = {
    "image": "RGB in [0, 1], row 0 at the top, framed as nl3dmm's crops",
    "shape_latent": "input of the decoder",
    "albedo_latent": "input of the decoder",
    "rotation": "camera frame from object frame",
    "translation": "px, column and row (downwards), of the object's origin from the middle of the image",
    "scale": "px per mm",
    "sh_coefficients": "light: R G B, nine spherical harmonics of the normal in the camera frame",
    "shape_proxy": "mm, x y z, offsets from the mean face",
    "shape_final": "mm, x y z, offsets from the mean face",
    "albedo_proxy": "RGB in [0, 1], encoding as stated",
    "albedo_final": "RGB in [0, 1], encoding as stated",
    "vertices_final": "mm, object frame, of the triangles in mesh.npz",
}
_PROJECTION = (
    "X = rotation @ vertex; column = image_size / 2 + translation[0] + scale * X[0]; "
    "row = image_size / 2 + translation[1] - scale * X[1]"
)


class _EncoderOutputs(nn.Module):
    """``FaceModel.encode`` as one flat dictionary; what it leaves out is constant (``_PROJECTION``)."""

    def __init__(self, model: FaceModel):
        super().__init__()
        self.model = model

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        face = self.model.encode(image)
        return {
            "shape_latent": face.latents.shape_latent,
            "albedo_latent": face.latents.albedo_latent,
            "rotation": face.camera.rotation,
            "translation": face.camera.translation,
            "scale": face.camera.scale,
            "sh_coefficients": face.sh_coefficients,
        }


class _DecoderOutputs(nn.Module):
    """``FaceModel.decode`` as one flat dictionary."""

    def __init__(self, model: FaceModel):
        super().__init__()
        self.model = model

    def forward(
        self, shape_latent: Float[Tensor, "batch shape_latent"], albedo_latent: Float[Tensor, "batch albedo_latent"]
    ) -> dict[str, Tensor]:
        geometry = self.model.decode(Latents(shape_latent, albedo_latent))
        maps = geometry.maps
        return {
            "shape_proxy": maps.shape_proxy,
            "shape_final": maps.shape_final,
            "albedo_proxy": maps.albedo_proxy,
            "albedo_final": maps.albedo_final,
            "vertices_final": geometry.vertices_final,
        }


@dataclass(frozen=True)
class _Network:
    module: nn.Module
    inputs: dict[str, Tensor]  # examples


def export_networks(model: FaceModel, folder: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write ``encoder`` and ``decoder`` (float32, CPU, any batch size), ``mesh.npz`` and ``networks.json``.

    ``networks.json`` names inputs, outputs, shapes, units and template; ``mesh.npz`` has what a viewer needs besides:
    triangles, UV coordinates, the mean face, landmarks. The files name no folder of this machine.

    Args:
        model: on any device; stays as it is.
        formats: of ``pt2`` (torch.export) and ``onnx``.

    Returns:
        The files, ``networks.json`` last.

    Raises:
        ConfigError: unknown format.
        BackendError: ONNX without its packages; nothing has been written.
        OutputError: a file cannot be written.
    """
    if not formats or not set(formats) <= set(FORMATS):
        raise ConfigError(f"formats: got {list(formats)}; expected some of {FORMATS}. Choose some.")
    if "onnx" in formats:
        _check_onnx()
    folder = prepare_output_folder(folder)
    paths, described = [], {}
    for name, network in _networks(model).items():
        program, described[name] = _traced(network)
        for suffix in formats:
            paths.append(folder / f"{name}.{suffix}")
            data = _pt2(program) if suffix == "pt2" else _onnx(program, described[name])
            with atomic_path(paths[-1]) as temporary:
                temporary.write_bytes(data)
    paths += [folder / "mesh.npz", folder / "networks.json"]
    template = model.template
    names = ("vertices", "triangles", "uv", "landmark_vertices", "landmark_weights")
    write_npz(paths[-2], {name: getattr(template, name) for name in names})
    with atomic_path(paths[-1]) as temporary:
        temporary.write_text(json.dumps(_card(model) | described, indent=1), encoding="utf-8")
    return paths


def _check_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"onnx: got no package {error.name}; expected onnx and onnxscript. "
            "Run: pip install onnx onnxscript onnxruntime, or choose --only pt2."
        ) from error


def _networks(model: FaceModel) -> dict[str, _Network]:
    """Copies, each with the weights that it needs alone, and contiguous: files cannot say otherwise."""
    config, size = model.config, model.config.image_size
    copies = [copy.deepcopy(model).cpu().eval().requires_grad_(False) for _ in range(2)]
    for each in copies:
        each.to(memory_format=torch.contiguous_format).network_dtype = torch.float32
    encoder, decoder = copies
    del encoder.shape_decoder, encoder.albedo_decoder, decoder.encoder
    latents = {
        "shape_latent": torch.zeros(_BATCH, config.shape_latent),
        "albedo_latent": torch.zeros(_BATCH, config.albedo_latent),
    }
    return {
        "encoder": _Network(_EncoderOutputs(encoder), {"image": torch.zeros(_BATCH, 3, size, size)}),
        "decoder": _Network(_DecoderOutputs(decoder), latents),
    }


def _traced(network: _Network) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """The program, and its inputs and outputs for ``networks.json``."""
    batch, inputs = torch.export.Dim("batch", min=1), tuple(network.inputs.values())
    with torch.no_grad():
        outputs = network.module(*inputs)
        program = torch.export.export(network.module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
    for node in chain.from_iterable(graph.nodes for graph in graphs):
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program, {"inputs": _described(network.inputs), "outputs": _described(outputs)}


def _described(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"shape": ["batch", *tensor.shape[1:]], "dtype": "float32", "meaning": _MEANINGS[name]}
        for name, tensor in tensors.items()
    }


def _pt2(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, card: dict[str, Any]) -> bytes:
    converted = torch.onnx.export(
        program,
        dynamo=True,
        output_names=list(card["outputs"]),
        dynamic_shapes=(
            {0: "batch"},
            *[None] * (len(card["inputs"]) - 1),
        ),  # named at the first, which all others share
        external_data=False,
        verbose=False,
    )
    if converted is None:
        raise BackendError("onnx: torch.onnx.export gave nothing; expected a program. Try another version of torch.")
    return converted.model_proto.SerializeToString()


def _card(model: FaceModel) -> dict[str, Any]:
    template, config = model.template, model.config
    return {
        "format": 1,
        "template": {"name": template.name, "hash": template.hash, "uv_size": list(template.uv_size)},
        "image_size": config.image_size,
        "encoding": config.encoding,
        "projection": _PROJECTION,
        "torch": torch.__version__,
    }
