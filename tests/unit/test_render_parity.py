"""The CPU backends against nvdiffrast: live where it runs, else against what it once drew."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nl3dmm.geometry.camera import zoom
from nl3dmm.render import backends

ROOT = Path(__file__).resolve().parents[2]
CUDA_USABLE = backends()["nvdiffrast"] == "usable"
GOLDEN = ROOT / "tests" / "data" / "nvdiffrast.npz"
SCENES = ("coarse", "pixel", "sub-pixel", "border")
each_scene = pytest.mark.parametrize("name", SCENES)


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # benchmarks are no part of the package
    from benchmarks import parity

    return parity


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.skipif(not GOLDEN.exists(), reason="no golden arrays yet: python -m benchmarks.parity writes them on CUDA")
@each_scene
def test_cpu_draws_what_nvdiffrast_drew(parity, monkeypatch, name, backend):
    monkeypatch.setenv("NL3DMM_RENDER", backend)
    figures = parity.agreement(parity.rendered(parity.scenes()[name]), parity.load_golden()[name])
    assert parity.shortfalls(figures) == [], figures


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA_USABLE, reason=backends()["nvdiffrast"])
@each_scene
def test_nvdiffrast_draws_what_the_cpu_draws(parity, name):
    scene = parity.scenes()[name]
    figures = parity.agreement(parity.rendered(scene), parity.rendered(parity.on_device(scene, "cuda")))
    assert parity.shortfalls(figures) == [], figures


@each_scene
def test_the_backends_of_the_cpu_agree(parity, monkeypatch, name):
    found = []
    for backend in ("numba", "torch"):
        monkeypatch.setenv("NL3DMM_RENDER", backend)
        found.append(parity.rendered(parity.scenes()[name]))
    assert parity.shortfalls(parity.agreement(*found)) == []


def test_a_shift_of_a_tenth_of_a_pixel_is_noticed(parity):
    scene = parity.scenes()["sub-pixel"]
    moved = replace(scene, camera=zoom(scene.camera, 1.0, torch.tensor([0.1, 0.0])))
    assert {"ids", "vertices"} <= set(parity.shortfalls(parity.agreement(*map(parity.rendered, (scene, moved)))))


@pytest.mark.skipif(CUDA_USABLE, reason="nvdiffrast is usable")
def test_the_command_says_why_it_cannot_run():
    command = [sys.executable, "-m", "benchmarks.parity"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nvdiffrast: ")
