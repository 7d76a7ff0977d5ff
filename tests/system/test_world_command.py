"""``python -m nl3dmm.world``: the sheet holds the faces that training sees."""

import subprocess
import sys

import pytest
import torch

from nl3dmm.data.images import read_image
from nl3dmm.world import main


def test_a_sheet_of_faces(tmp_path, capsys):
    output = tmp_path / "sheets" / "world.png"
    assert main(["--faces", "3", "--first", "2", "-o", str(output), "model.image_size=48", "world.noise=0"]) == 0
    assert "3 faces of seed 0 from index 2" in capsys.readouterr().out
    sheet = read_image(output)
    assert sheet.shape == (3, 2 * 50, 2 * 50)
    assert sheet[:, 50:, 50:].eq(1).all()  # no fourth face
    assert sheet[:, :48, :48].std() > 0.05
    main(["--faces", "1", "--first", "3", "-o", str(output), "model.image_size=48", "world.noise=0"])
    torch.testing.assert_close(read_image(output)[:, :48, :48], sheet[:, :48, 50:98])


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--faces", "0"], "faces: got 0"), (["world.yaw=99"], "world.yaw")]
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_help_is_quick_and_says_what_it_does():
    done = subprocess.run([sys.executable, "-m", "nl3dmm.world", "--help"], capture_output=True, text=True, check=True)
    assert "synthetic faces that a config trains on" in " ".join(done.stdout.split())
