"""The doctor runs anywhere and says of each part whether it is usable, and if not, why."""

import contextlib
import io
import re

import pytest

from nl3dmm.doctor import main

SECTIONS = ("packages", "renderer", "hardware", "assets", "weights", "logging")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Printed in a folder without a trained model, with an empty torch hub cache."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(tmp_path_factory.mktemp("empty"))
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
        assert main([]) == 0
    return printed.getvalue()


def test_all_sections_in_order(report):
    titles = [line for line in report.splitlines() if not line.startswith(" ")]
    assert titles == list(SECTIONS)


@pytest.mark.parametrize(
    "line",
    [
        r"  torch +\d+\.\d+",
        r"  opencv-python +(\d+\.\d+|NOT usable: PackageNotFoundError)",
        r"  torch  +usable",
        r"  numba  +usable",
        r"  nvdiffrast  +\S",
        r"  CPU threads +[1-9]",
        r"  GPU +\S",
        r"  network precision +(float32|bfloat16) ",
        r"  embedded template +usable \(\d+ vertices",
        r"  configs +.*quickstart\.yaml",
        r"  VGG-16 \(perceptual\) +not found in the torch hub cache",
        r"  default model +usable \(step \d+, template ict, default\.safetensors\)",
        r"  W&B +no account: offline runs",
    ],
)
def test_lines(report, line):
    assert re.search(f"^{line}", report, re.MULTILINE), report


def test_every_part_has_a_state_on_one_line(report):
    for line in report.splitlines():
        assert line in SECTIONS or re.fullmatch(r"  \S.{23} \S.*", line)
