"""Models to be passed on: half precision, no linear bases, a card; and the one that comes with the package."""

import json
from pathlib import Path

import pytest
import torch

import nl3dmm
from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.images import read_image
from nl3dmm.errors import CheckpointError
from nl3dmm.release import _SHIPPED, main, read_card, read_release, write_release

PHOTO = Path(__file__).parents[1] / "data" / "astronaut.jpg"
FACTS = {"licence": "Apache-2.0", "data": "synthetic faces"}


@pytest.fixture(scope="module")
def released(trained: TrainedSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "mine.safetensors"
    write_release(trained, path, FACTS)
    return path


def test_a_release_gives_the_same_faces(released: Path, trained: TrainedSystem):
    other = nl3dmm.load(released, "cpu")
    image = torch.rand(2, 3, *[trained.config.model.image_size] * 2)
    with torch.no_grad():
        faces = [system.system.model.encode(image) for system in (trained, other)]
        shapes = [
            system.system.model.decode(face.latents)
            for system, face in zip((trained, other), [faces[0]] * 2, strict=True)
        ]
    torch.testing.assert_close(faces[1].sh_coefficients, faces[0].sh_coefficients, atol=5e-3, rtol=0)
    torch.testing.assert_close(shapes[1].vertices_final, shapes[0].vertices_final, atol=0.1, rtol=0)  # mm
    torch.testing.assert_close(shapes[1].maps.albedo_final, shapes[0].maps.albedo_final, atol=5e-3, rtol=0)


def test_a_release_is_small_and_without_the_linear_bases_of_others(released: Path, trained: TrainedSystem):
    template = read_release(released).template
    assert (len(template.identity_basis), len(template.expression_basis)) == (0, 0)
    assert len(trained.template.identity_basis) > 0
    assert template.landmarks(template.vertices[None]).equal(
        trained.template.landmarks(trained.template.vertices[None])
    )
    assert released.stat().st_size < 3 * sum(value.numel() for value in trained.system.model.state_dict().values())
    card = read_card(released)
    assert card["licence"] == FACTS["licence"]
    assert card["step"] == trained.step
    assert card["template_hash"] == template.hash
    assert str(trained.path.parent) not in json.dumps(card)
    assert card["config"]["output"] == Path(trained.config.output).name


def test_a_damaged_release_is_refused(released: Path, tmp_path: Path):
    copies = {file.name: tmp_path / file.name for file in released.parent.iterdir()}
    for file in released.parent.iterdir():
        copies[file.name].write_bytes(file.read_bytes())
    target = copies[released.name]
    read_release(target)
    content = bytearray(target.read_bytes())
    content[-5] ^= 1
    target.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"content that is not its card's.*Copy all of it again"):
        nl3dmm.load(target)
    card = json.loads(copies["mine.json"].read_text())
    copies["mine.json"].write_text(json.dumps(card | {"format": "other"}))
    with pytest.raises(CheckpointError, match="a card of another format"):
        nl3dmm.load(target)
    copies["mine.json"].unlink()
    with pytest.raises(CheckpointError, match=r"no readable mine\.json"):
        nl3dmm.load(target)


def test_command_line(trained: TrainedSystem, tmp_path: Path, capsys):
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(FACTS))
    target = tmp_path / "out" / "mine.safetensors"
    assert main([str(trained.path), "-o", str(target), "--facts", str(facts)]) == 0
    assert "MB with its template" in capsys.readouterr().out
    assert read_card(target)["data"] == FACTS["data"]
    assert main([str(trained.path), "-o", str(tmp_path / "mine.ckpt")]) == 1
    assert "expected a .safetensors file" in capsys.readouterr().err


def test_the_shipped_model_fits_a_photo_without_any_training():
    """What a new user does first; the figures are those of a face, not of a random network."""
    face = nl3dmm.fit_latent(PHOTO, steps=30, progress=False)
    photo = read_image(PHOTO)
    assert face.final_error < 0.08
    assert face.overlay.shape == photo.shape
    landmarks = nl3dmm.read_landmarks(PHOTO.with_suffix(".json"))
    span = (landmarks[36] - landmarks[45]).norm()
    assert float((face.landmarks - landmarks)[17:].norm(dim=-1).mean() / span) < 0.12


def test_the_shipped_model_is_small_and_says_where_it_comes_from():
    files = list(_SHIPPED.glob("default*"))
    assert sum(file.stat().st_size for file in files) < 30e6
    card = read_card(_SHIPPED / "default.safetensors")
    assert {"licence", "data", "commands", "metrics"} <= set(card)
    assert "ICT" in card["licence"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"config": 3}, "cannot be read"), ({"step": None}, "cannot be read"), ({"template_hash": "0"}, "not its card's")],
)
def test_a_wrong_card_is_refused(released: Path, tmp_path: Path, change: dict, message: str):
    for file in released.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps(card | change))
    with pytest.raises(CheckpointError, match=message):
        nl3dmm.load(tmp_path / released.name)
