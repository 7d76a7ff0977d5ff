"""A sticker on a photo, by the command and by the method of a reconstruction."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from nl3dmm.data.images import read_image, read_sticker, write_png
from nl3dmm.edit import main
from nl3dmm.errors import ConfigError, ImageError
from nl3dmm.fitting.photos import fit_latent
from nl3dmm.stickers import star

DATA = Path(__file__).parents[1] / "data"
PHOTO, LANDMARKS = DATA / "astronaut.jpg", DATA / "astronaut.json"
SAVED = {"edited.png", "albedo.png", "mask.png", "edit.json"}


@pytest.fixture(scope="module")
def face(trained):
    return fit_latent(PHOTO, model=trained, landmarks=LANDMARKS, steps=20)


@pytest.fixture
def star_file(tmp_path) -> Path:
    levels = (star(96) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(tmp_path / "star.png")
    return tmp_path / "star.png"


def command(run, out: Path, *arguments: str) -> int:
    photo = [str(PHOTO), "-o", str(out), "--model", str(run.folder), "--landmarks", str(LANDMARKS), "--steps", "20"]
    return main([*photo, *arguments])


def test_command_line(run, tmp_path, capsys, star_file):
    out = tmp_path / "out"
    assert command(run, out, "--sticker", str(star_file), "--at", "left_cheek", "--size", "28") == 0
    assert {path.name for path in out.iterdir()} == SAVED
    before, after, mask = read_image(PHOTO), read_image(out / "edited.png"), read_image(out / "mask.png")[0] > 0.5
    changed = (before != after).any(0)
    assert before.shape == after.shape
    assert not (changed & ~mask).any()  # of the file's 8 bits
    assert 40 < int(changed.sum()) <= int(mask.sum()) < 400
    rows, columns = changed.nonzero().float().mean(0).tolist()
    assert 230 < columns < 280  # the subject's left
    assert 105 < rows < 150
    facts = json.loads((out / "edit.json").read_text())
    assert facts["at"] == "left_cheek"
    assert facts["pixels"] == int(mask.sum())
    assert f"{int(mask.sum())} pixels edited" in capsys.readouterr().out


def test_command_line_with_a_point_a_light_and_an_occluder(run, tmp_path):
    covered = torch.zeros(3, 512, 512)
    covered[:, :, :225] = 1
    write_png(covered, tmp_path / "occluder.png")
    options = ["--at", "0.6,0.5", "--blend", "multiply", "--rotation", "30", "--light", "1", "0", "1"]
    assert command(run, tmp_path / "out", *options, "--occluder", str(tmp_path / "occluder.png")) == 0
    changed = (read_image(PHOTO) != read_image(tmp_path / "out" / "edited.png")).any(0)
    assert not changed[:, :225].any()
    assert int(changed[:, 225:].sum()) > 1500  # the new light reaches all of the uncovered face


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "left_ear"], "at: got 'left_ear'; expected"),
        (["--at", "0.5,x"], "--at: got '0.5,x'; expected a place or U,V"),
        (["--at", "3,3"], r"at: got \(3.0, 3.0\); expected u, v in"),
        (["--at", "nose", "--size", "900"], "size_mm: got 900; expected at most"),
        (["--at", "nose", "--size", "-1"], "size_mm: got -1"),
        (["--at", "nose", "--blend", "burn"], "blend: got 'burn'; expected one of"),
        (["--at", "nose", "--sticker", "missing.png"], "missing.png: got no such file"),
        (["--at", "nose", "--sticker", __file__], "got data that is no JPEG, PNG or WebP image"),
        (
            ["--at", "nose", "--light", "0", "0", "0"],
            r"light: got \[0.0, 0.0, 0.0\]; expected finite numbers, not all 0",
        ),
        (["--at", "nose", "--light", "1", "0", "up"], "--light: got '1 0 up'; expected a name or three numbers"),
        (["--at", "nose", "--light", "candle"], "light: got 'candle'; expected one of ambient"),
        (["--at", "nose", "--occluder", str(DATA / "missing.png")], "got no such file"),
    ],
)
def test_wrong_arguments(run, tmp_path, error, arguments, message):
    code = command(run, tmp_path / "out", *arguments)
    assert list((tmp_path / "out").iterdir()) == []
    assert re.search(message, error(code))


def test_the_method_is_the_command(face, star_file):
    edit = face.edit_albedo(star_file, "left_cheek", size_mm=28)
    again = face.edit_albedo(read_sticker(star_file), at="left_cheek", size_mm=28.0)
    assert torch.equal(edit.picture, again.picture)
    assert torch.equal(edit.picture[:, ~edit.mask], face.photo[:, ~edit.mask])
    assert edit.visible > 0.5
    relit = face.edit_albedo(star_file, "left_cheek", light=face.face.sh_coefficients[0] * 0.5)
    assert int(relit.mask.sum()) > 3 * int(edit.mask.sum())
    assert relit.picture.mean() < edit.picture.mean()


def test_wrong_calls(face, star_file):
    with pytest.raises(ConfigError, match="at: got 'cheek'"):
        face.edit_albedo(star_file, "cheek")
    with pytest.raises(ImageError, match="got no such file"):
        face.edit_albedo(star_file.with_name("none.png"), "nose")
