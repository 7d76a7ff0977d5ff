"""What figures say about the machine and the code that made them."""

import re
import subprocess
from pathlib import Path

import pytest

from nl3dmm.machine import commit, cores, package_version, processor

CHECKOUT = Path(__file__).parents[2]


def test_the_commit_is_that_of_the_checkout():
    try:
        git = ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"]
        expected = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert re.fullmatch(r"[0-9a-f]{12}\+?", commit())
    assert expected.startswith(commit().rstrip("+"))


def test_machine_and_versions():
    assert processor()
    assert cores() >= 1
    assert re.match(r"\d+\.\d+", package_version("torch"))
    assert package_version("no such package") == "not installed"
