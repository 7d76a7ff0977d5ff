"""Exported encoder and decoder: what the files compute is what the model computes."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from nl3dmm.errors import BackendError, ConfigError
from nl3dmm.export.networks import FORMATS, export_networks
from nl3dmm.model import FaceModel
from nl3dmm.nn.encoder import EncoderConfig
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.types import Latents

BATCHES = (1, 3)
FILES = {"encoder.pt2", "encoder.onnx", "decoder.pt2", "decoder.onnx", "mesh.npz", "networks.json"}
# Largest absolute differences: some ten times those measured on a trained model of 112 px (px and mm are the largest).
TOLERANCES = {
    "encoder": {
        "shape_latent": 2e-5,
        "albedo_latent": 2e-5,
        "rotation": 5e-6,
        "translation": 2e-4,
        "scale": 1e-5,
        "sh_coefficients": 2e-5,
    },
    "decoder": {
        "shape_proxy": 2e-4,
        "shape_final": 2e-4,
        "albedo_proxy": 5e-6,
        "albedo_final": 5e-6,
        "vertices_final": 2e-4,
    },
}


def nonlinear(config, template):
    """The global pathway alone, with proxies and finals."""
    return replace(config, decoder=replace(config.decoder, local_pathways=False)), template


def linear_base(config, template):
    """With local pathways, a spatial encoder, a free camera, and a template whose vertices are not the map's texels."""
    encoder = replace(config.encoder, pooled_heads=False)
    decoder = replace(config.decoder, linear_base=True)
    return replace(config, encoder=encoder, decoder=decoder, camera="free"), replace(template, is_uv_grid=False)


@pytest.fixture(scope="module", params=[nonlinear, linear_base], ids=lambda variant: variant.__name__)
def model(request, small_model_config, small_template) -> FaceModel:
    """As after training: every weight and every running statistic is something, finals are not proxies."""
    torch.manual_seed(0)
    encoder, decoder = EncoderConfig(width=4, stages=2), DecoderConfig(width=4, up_samplings=1)
    shallow = replace(small_model_config, encoder=encoder, decoder=decoder)  # exporting takes time per layer
    model = FaceModel(*request.param(shallow, small_template))
    if model.linear_decoders:
        maps = torch.randn(20, 3, *small_template.uv_size)
        model.fit_linear(lambda: [maps], lambda: [maps.sigmoid()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(10):
            model.decode(model.encode(**inputs("encoder", 8)).latents)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    paths = export_networks(model, folder)
    assert {path.name for path in paths} == {path.name for path in folder.iterdir()} == FILES
    return folder


@pytest.fixture(scope="module")
def card(folder):
    return json.loads((folder / "networks.json").read_text())


def inputs(name: str, batch: int) -> dict[str, torch.Tensor]:
    if name == "encoder":
        return {"image": torch.rand(batch, 3, 1, 1) * torch.rand(batch, 3, 48, 48)}
    return {"shape_latent": torch.randn(batch, 8), "albedo_latent": torch.randn(batch, 8)}


@torch.no_grad()
def eager(model: FaceModel, name: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if name == "encoder":
        face = model.encode(**given)
        camera = face.camera
        assert not camera.inverse_distance.any()  # as networks.json's projection says
        assert (camera.principal_point == 24).all()
        parts = {"rotation": camera.rotation, "translation": camera.translation, "scale": camera.scale}
        return vars(face.latents) | parts | {"sh_coefficients": face.sh_coefficients}
    geometry = model.decode(Latents(**given))
    return vars(geometry.maps) | {"vertices_final": geometry.vertices_final}


@pytest.fixture(scope="module")
def programs(folder):
    return {name: torch.export.load(folder / f"{name}.pt2") for name in TOLERANCES}


def session_of(folder, name):
    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def run_onnx(session, given):
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {key: value.numpy() for key, value in given.items()})
    return {key: torch.from_numpy(value) for key, value in zip(names, values, strict=True)}


def assert_near(found, expected, tolerances):
    assert set(found) == set(expected) == set(tolerances)
    for key, tolerance in tolerances.items():
        assert expected[key].abs().mean() > 20 * tolerance, key  # else equality would mean little
        assert float((found[key] - expected[key]).abs().max()) <= tolerance, key


@pytest.mark.parametrize("name", TOLERANCES)
def test_files_compute_what_the_model_computes(model, folder, programs, name):
    session = session_of(folder, name)
    for batch in BATCHES:
        given = inputs(name, batch)
        expected = eager(model, name, given)
        assert_near(programs[name].module()(*given.values()), expected, TOLERANCES[name])
        assert_near(run_onnx(session, given), expected, TOLERANCES[name])


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_card_says_what_the_files_take_and_give(model, folder, card, name):
    session = session_of(folder, name)
    for kind, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert {node.name: node.shape for node in nodes} == {key: v["shape"] for key, v in card[name][kind].items()}
        assert all(node.type == "tensor(float)" for node in nodes)
    assert card["template"]["hash"] == model.template.hash
    assert (card["image_size"], card["encoding"]) == (48, "srgb")


def test_the_mesh_is_the_templates(model, folder):
    with np.load(folder / "mesh.npz") as mesh:
        assert np.array_equal(mesh["triangles"], model.template.triangles)
        assert np.array_equal(mesh["vertices"], model.template.vertices)


def test_files_hold_their_own_weights_alone_and_no_folder_of_this_machine(folder, programs):
    for name, parts in (("encoder", {"encoder"}), ("decoder", {"shape_decoder", "albedo_decoder"})):
        assert {key.split(".")[1] for key in programs[name].state_dict} == parts
        for suffix in FORMATS:
            assert b"nl3dmm/nn/" not in (folder / f"{name}.{suffix}").read_bytes()


def test_a_linear_model_in_training_stays_as_it_was(small_model_config, small_template, tmp_path):
    """Its proxies and finals are the same tensors; the files are float32 and in evaluation mode all the same."""
    encoder, decoder = EncoderConfig(width=4, stages=1), DecoderConfig(kind="linear")
    model = FaceModel(replace(small_model_config, encoder=encoder, decoder=decoder), small_template)
    model.fit_linear(lambda: [torch.randn(10, 3, 32, 32)], lambda: [torch.rand(10, 3, 32, 32)])
    model.network_dtype = torch.bfloat16
    before = copy.deepcopy(model.state_dict())
    export_networks(model, tmp_path)
    assert model.training
    assert model.network_dtype == torch.bfloat16
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.network_dtype = torch.float32
    given = inputs("decoder", 1)
    expected = eager(model.eval(), "decoder", given)
    assert_near(run_onnx(session_of(tmp_path, "decoder"), given), expected, TOLERANCES["decoder"])


def test_one_format_alone(small_model_config, small_template, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # .pt2 does not ask for it
    encoder = EncoderConfig(width=4, stages=1)
    decoder = DecoderConfig(width=4, up_samplings=1, local_pathways=False)
    model = FaceModel(replace(small_model_config, encoder=encoder, decoder=decoder), small_template)
    assert [path.name for path in export_networks(model, tmp_path, ["pt2"])] == [
        *("encoder.pt2", "decoder.pt2"),
        *("mesh.npz", "networks.json"),
    ]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_onnx_the_error_says_what_to_install(
    small_model_config, small_template, tmp_path, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks a module that cannot be imported
    model = FaceModel(small_model_config, small_template)
    with pytest.raises(BackendError, match=f"onnx: got no package {package}; .* Run: pip install onnx onnxscript"):
        export_networks(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("formats", [[], ["tflite"], ["pt2", "tflite"]])
def test_unknown_formats_are_refused(small_model_config, small_template, tmp_path, formats):
    with pytest.raises(ConfigError, match=r"formats: got \[.*\]; expected some of"):
        export_networks(FaceModel(small_model_config, small_template), tmp_path / "out", formats)
