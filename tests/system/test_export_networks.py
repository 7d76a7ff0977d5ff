"""``python -m nl3dmm.export_networks``: files of a trained run, used as docs/export.md says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nl3dmm.export_networks import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "export.md"
PHOTO = DOCUMENT.parents[1] / "tests" / "data" / "astronaut.jpg"


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "networks"
    assert main([str(run.folder), "-o", str(folder), "--only", "onnx"]) == 0
    return folder


def test_command_line(folder, run, capsys):
    names = {"encoder.onnx", "decoder.onnx", "mesh.npz", "networks.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert main([str(run.folder), "-o", str(folder), "--only", "pt2"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == f"encoder.pt2, decoder.pt2, mesh.npz, networks.json are in {folder}"
    assert {path.name for path in folder.iterdir()} == names | {"encoder.pt2", "decoder.pt2"}


def test_the_documents_example_is_what_the_model_gives(folder, trained, monkeypatch):
    """Without nl3dmm: only NumPy, Pillow and onnxruntime."""
    (code,) = re.findall(r"```python\n(import json.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    assert "nl3dmm" not in code
    monkeypatch.chdir(folder.parent)
    Path("photo.jpg").write_bytes(PHOTO.read_bytes())
    values: dict = {}
    exec(code, values)
    with torch.no_grad():
        face = trained.cpu_model.encode(torch.from_numpy(values["image"]))
        geometry = trained.cpu_model.decode(face.latents)
    np.testing.assert_allclose(values["decoded"]["vertices_final"], geometry.vertices_final, atol=1e-3)
    from nl3dmm.geometry.camera import project

    points, _ = project(face.camera, geometry.vertices_final)
    np.testing.assert_allclose(values["pixels"], points[0], atol=1e-3)


def test_the_documents_crop_is_ours():
    """Framing and resampling, for the box in the document's example; Pillow rounds to 8 bits and repeats no border."""
    from PIL import Image

    from nl3dmm.data.crop import crop_from_box
    from nl3dmm.data.images import read_image

    (lines,) = re.findall(r"(left, top, right, bottom = .*?)\nimage = ", DOCUMENT.read_text(encoding="utf-8"), re.S)
    values = {"Image": Image, "np": np, "size": 48}
    exec(lines.replace('"photo.jpg"', repr(str(PHOTO))), values)
    box = [float(values[name]) for name in ("left", "top", "right", "bottom")]
    expected = crop_from_box(*box, size=48).image(read_image(PHOTO))
    found = torch.from_numpy(np.asarray(values["crop"], np.float32) / 255).permute(2, 0, 1)
    assert float((found - expected).abs().mean()) < 0.005


def test_a_missing_model_is_refused(tmp_path, error):
    text = error(main([str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]))
    assert text.startswith(f"model: got {tmp_path / 'nothing'}, where no checkpoint is")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(run, tmp_path, error):
    (tmp_path / "out").write_text("")
    assert error(main([str(run.folder), "-o", str(tmp_path / "out"), "--only", "pt2"])).startswith("output folder: got")
