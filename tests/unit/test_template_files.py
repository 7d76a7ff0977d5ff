"""Templates on disk: exact round trip, damage, the one door ``load_template`` and the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nl3dmm.assets import asset_folder, embedded_template, load_template, read_template, save_template
from nl3dmm.assets.__main__ import main
from nl3dmm.errors import AssetError


@pytest.fixture(scope="module")
def template():
    return embedded_template((32, 40))


@pytest.fixture
def saved(template, tmp_path):
    path = tmp_path / "face.safetensors"
    save_template(template, path)
    return path


def test_round_trip_is_bit_exact(template, saved):
    loaded = read_template(saved)
    for name, tensor in template.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor), name
        assert loaded.tensors()[name].dtype == tensor.dtype
    assert loaded.hash == template.hash
    assert (loaded.name, loaded.uv_size, loaded.boxes) == (template.name, template.uv_size, template.boxes)
    assert loaded.expression_names == template.expression_names
    assert loaded.provenance == template.provenance


def test_hash_depends_on_content_only(template):
    assert embedded_template((32, 40)).hash == template.hash
    assert embedded_template((34, 40)).hash != template.hash
    assert template.to("cpu").hash == template.hash


def test_a_flipped_bit_is_found(saved):
    content = bytearray(saved.read_bytes())
    content[-20] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(AssetError, match=r"content hash .* expected a file of nl3dmm.assets"):
        read_template(saved)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_found(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(AssetError, match="a file that cannot be read"):
        read_template(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other/9", "a card of another format"),
        ("uv_size", [40, 32], r"regions.brows: .*not \(\(40, 32\)"),
        ("uv_size", "x", "an incomplete card"),
        ("boxes", {"nose": [0, 0, 80, 8]}, "outside the map"),
        ("boxes", 3, "an incomplete card"),
        ("expression_names", ["jawOpen"], "expression_basis"),
    ],
)
def test_a_wrong_card_is_found(saved, key, value, message):
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {key: value}))
    with pytest.raises(AssetError, match=message):
        read_template(saved)


def test_missing_or_broken_card(saved):
    card = saved.with_suffix(".json")
    card.write_text("{")
    with pytest.raises(AssetError, match="a card that cannot be read"):
        read_template(saved)
    card.unlink()
    with pytest.raises(AssetError, match="a card that cannot be read"):
        read_template(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("triangles", lambda t: t + 10_000, "triangles outside"),
        ("texel_triangle", lambda t: t - 5, "texel_triangle outside"),
        ("vertices", lambda t: t.masked_fill(t > 50, float("nan")), "not finite"),
        ("mirror", lambda t: t[:-1], r"mirror: \(\(1279,\), torch.int64\), not \(\(1280,\)"),
        ("mirror", lambda t: None, "mirror: None, not"),
    ],
)
def test_inconsistent_content_is_found(saved, name, change, message):
    tensors = load_file(saved)
    changed = change(tensors.pop(name))
    save_file({**tensors, **({} if changed is None else {name: changed.contiguous()})}, saved)
    with pytest.raises(AssetError, match=message):
        read_template(saved)


def test_load_template_is_the_one_door(template, saved):
    assert load_template("embedded", uv_size=(32, 40)).hash == template.hash
    assert load_template(saved).hash == load_template("embedded", saved).hash == template.hash
    with pytest.raises(AssetError, match=r"uv_size: got \(64, 80\); expected \(32, 40\)"):
        load_template(saved, uv_size=(64, 80))
    with pytest.raises(AssetError, match="got 'bfm'; expected 'embedded', or a name with a path"):
        load_template("bfm")
    with pytest.raises(AssetError, match=r"expected a name that ends in .safetensors"):
        load_template("embedded", saved.with_suffix(".bin"))


def test_shipped_template_is_what_the_code_builds():
    shipped = load_template("embedded")
    assert shipped.uv_size == (64, 80)
    assert (asset_folder("uv_assets") / "embedded_64x80.safetensors").stat().st_size < 3_200_000
    built = embedded_template((64, 80))
    for name, tensor in built.tensors().items():
        error = (shipped.tensors()[name].float() - tensor.float()).abs().max()
        assert float(error) < 0.02, name
    assert shipped.boxes == built.boxes


def test_asset_folder_names_what_is_missing():
    with pytest.raises(AssetError, match="name: got 'nothing'"):
        asset_folder("nothing")


def test_command_line(tmp_path, capsys):
    path, picture = tmp_path / "t.safetensors", tmp_path / "sheet.png"
    assert main(["build", "--size", "32", "40", "-o", str(path)]) == 0
    assert main(["show", str(path), "-o", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.height == 320
        assert len(np.unique(np.asarray(image))) > 50
    assert main(["build", "--size", "31", "40", "-o", str(path)]) == 1
    assert main(["import", "ict", str(tmp_path / "none.npz"), "-o", str(path)]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("error: ") for line in errors] == [True, True]
