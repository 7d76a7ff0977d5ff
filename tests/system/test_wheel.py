"""The wheel: holds what nl3dmm needs at run time, nothing else, and works from where it is unpacked."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("nl3dmm", "configs", "uv_assets", "tests", "benchmarks", "docs")
FILES = ("pyproject.toml", "setup.py", "LICENSE", "README.md")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None
    or int(importlib.metadata.version("setuptools").partition(".")[0]) < 77,
    reason="needs setuptools >= 77 to build",
)
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
USE = """
from pathlib import Path
import nl3dmm
from nl3dmm.assets.locations import asset_folder
template = nl3dmm.load_template()
print(Path(nl3dmm.__file__).parent, nl3dmm.__version__, asset_folder("uv_assets"), template.hash)
"""


def python(code: str, *arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing is written into the checkout."""
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    name = python(BUILD, str(target), folder=copy).splitlines()[-1]
    return target / name


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_and_resource_is_in_it(names):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "nl3dmm").rglob("*.py")} | {"nl3dmm/py.typed"}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "nl3dmm" / "weights").iterdir()}
    expected |= {"nl3dmm/page/report.css", "nl3dmm/page/report.js"}
    for folder in ("configs", "uv_assets"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        expected |= {f"nl3dmm/_resources/{folder}/{path.relative_to(ROOT / folder)}" for path in files}
    assert {name for name in names if not name.startswith("nl3dmm-")} == expected


def test_nothing_else_is_in_it(names):
    assert all(name.startswith(("nl3dmm/", "nl3dmm-")) for name in names)
    assert not [name for name in names if "test" in name or "benchmark" in name]


def test_metadata_and_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert "nl3dmm-train = nl3dmm.train:main" in commands
    assert "nl3dmm-fit = nl3dmm.fit:main" in commands


def test_unpacked_wheel_finds_its_template_and_configs(wheel, tmp_path):
    package = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    place, version, assets, digest = python(USE, folder=tmp_path, PYTHONPATH=str(package)).split()
    assert Path(place) == package / "nl3dmm"
    assert Path(assets) == package / "nl3dmm" / "_resources" / "uv_assets"
    assert version == "0.1.0"
    assert len(digest) == 64
    show = "from nl3dmm.train import main; main(['--print-config'])"
    printed = python(show, folder=tmp_path, PYTHONPATH=str(package))
    assert "output: runs/quickstart" in printed
