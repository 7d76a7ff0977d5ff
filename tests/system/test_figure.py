"""The paper's figures from the command line: files, tables, photos, and what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from nl3dmm.data.images import read_image
from nl3dmm.figure import main

DATA = Path(__file__).parents[1] / "data"
COLUMNS = {4: 3, 5: 9, 6: 7, 7: 3}


def table_head(printed: str) -> list[str]:
    lines = printed.splitlines()
    return lines[[line.startswith("figure") for line in lines].index(True) + 1].split()


@pytest.fixture
def draw(run, tmp_path, capsys):
    """``draw(number, ..., checkpoints=2)``: the picture and what was printed."""

    def call(number: int, *arguments: str, checkpoints: int = 2) -> tuple[torch.Tensor, str]:
        output = tmp_path / f"of {number}" / "picture.png"
        models = [str(run.folder)] * checkpoints
        assert main([str(number), *models, "-o", str(output), *arguments]) == 0
        return read_image(output), capsys.readouterr().out

    return call


@pytest.fixture
def refused(run, tmp_path, error):
    """``refused("4", ...)``: the message; proves that nothing was written."""

    def call(*arguments: str) -> str:
        output = tmp_path / "out" / "picture.png"
        code = main([*arguments, *([] if "-o" in arguments else ["-o", str(output)])])
        assert not list(tmp_path.glob("out/*.png"))
        return error(code)

    return call


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_every_figure_is_a_picture_and_a_table(draw, run, number):
    count = 1 if number == 5 else 2
    picture, printed = draw(number, "--faces", "2", "--steps", "2", checkpoints=count)
    assert picture.shape[2] == 8 + COLUMNS[number] * 232
    groups, bar = number in (5, 6), number == 6
    captions, heading = 27, 33
    rows = 2 * (224 + captions + 8) + bar * (16 + captions + 8)
    assert picture.shape[1] == 8 + heading * (1 + groups) + rows
    assert f"figure {number}: 2 unseen synthetic face(s), 2 latent steps; " in printed
    assert "picture.png" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines if line[:1] in (["face"], ["mean"])] == ["face", "face", "mean"]


def test_the_same_command_draws_the_same_picture(draw):
    first, again = (draw(4, "--faces", "1", "--steps", "2", checkpoints=1)[0] for _ in range(2))
    other, _ = draw(4, "--faces", "1", "--steps", "2", "--seed", "5", checkpoints=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_checkpoints_are_named(draw):
    _, printed = draw(4, "--faces", "1", "--steps", "0")
    assert table_head(printed) == ["run", "run", "(2)"]
    _, printed = draw(4, "--faces", "1", "--steps", "0", "--labels", "without, with")
    assert table_head(printed) == ["without", "with"]


def test_a_chosen_checkpoint_is_named(run, tmp_path, capsys):
    file = run.folder / "checkpoints" / "last.ckpt"
    assert main(["4", str(file), "-o", str(tmp_path / "a.png"), "--faces", "1", "--steps", "0"]) == 0
    assert table_head(capsys.readouterr().out) == ["run", "last"]


@pytest.mark.parametrize("number", [4, 5, 6])
def test_photos_in_place_of_synthetic_faces(draw, number):
    _, printed = draw(number, "--steps", "4", "--photos", str(DATA), checkpoints=1)
    assert f"figure {number}: 1 photo(s), 4 latent steps" in printed


def test_photos_by_name_and_by_folder_are_the_same(draw, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut.jpg", "astronaut.json"):
        shutil.copy(DATA / name, folder / name)
    Image.new("RGB", (40, 40)).save(folder / "no landmarks.png")
    by_folder, printed = draw(4, "--steps", "0", "--photos", str(folder), checkpoints=1)
    by_name, _ = draw(4, "--steps", "0", "--photos", str(DATA / "astronaut.jpg"), checkpoints=1)
    assert "1 photo(s)" in printed
    assert torch.equal(by_folder, by_name)


def test_the_default_name_is_in_the_current_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["4", str(run.folder), "--faces", "1", "--steps", "0"]) == 0
    assert (tmp_path / "figure4.png").is_file()
    assert "figure4.png" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_refused(refused, run, tmp_path):
    model, photo = str(run.folder), str(DATA / "astronaut.jpg")
    assert "invalid choice: 8" in refused("8", model)
    assert "CHECKPOINT" in refused("4")
    assert refused("5", model, model).startswith("checkpoints: got 2 for figure 5; expected one.")
    assert refused("4", model, "--labels", "a,b").startswith("labels: got 'a,b'; expected 1 different name(s).")
    assert refused("4", model, model, "--labels", "a,a").startswith("labels: got 'a,a'; expected 2 different")
    assert refused("4", model, "--faces", "0").startswith("faces: got 0; expected")
    assert refused("4", model, "--steps", "-1").startswith("steps: got -1; expected")
    assert refused("4", model, "--seed", "-1").startswith("seed: got -1; expected")
    assert refused("7", model, "--photos", photo).startswith("photos: got some for figure 7, which needs true shapes;")
    assert "got face.jpg; expected a name that ends in .png" in refused("4", model, "-o", str(tmp_path / "face.jpg"))
    assert "where no checkpoint is" in refused("4", str(tmp_path / "nothing"))


def test_photos_need_landmarks(refused, run, tmp_path):
    photo = tmp_path / "face.png"
    Image.new("RGB", (64, 64)).save(photo)
    assert "face.png: got no landmark file beside it; expected face with .pts, .npy, .json." in refused(
        "4", str(run.folder), "--photos", str(photo)
    )
    assert "a folder without photos that have landmarks" in refused("4", str(run.folder), "--photos", str(tmp_path))
