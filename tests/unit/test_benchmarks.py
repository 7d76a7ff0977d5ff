"""The benchmarks run, write valid figures, and time what they say they time."""

import json
import math
import subprocess
import sys
from functools import partial
from importlib import util
from pathlib import Path

import pytest
import torch

from nl3dmm.errors import BackendError

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {"step", "stages", "shading", "four", "peers"}


@pytest.fixture(autouse=True)
def _import_from_the_repository(monkeypatch):
    """Benchmarks are no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))


def test_quick_rendering_writes_figures(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "render", "--quick", "--threads", "1", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "numba" in done.stdout
    report = json.loads((tmp_path / "render-quick.json").read_text(encoding="utf-8"))
    assert report["machine"]["command"].startswith("python -m benchmarks --only render --quick")
    assert {"processor", "cores", "python", "torch", "numba", "commit"} <= set(report["machine"])
    assert set(report["results"]) == SECTIONS
    for section, cases in report["results"].items():
        measured = [case for case in cases if "skipped" not in case]
        assert measured, section
        for case in measured:
            figures = [clock for phase in case["phases"].values() for clock in phase.values()]
            assert all(0 <= each["min"] <= each["median"] < math.inf and each["spread"] >= 0 for each in figures)
            assert all(ratio > 0 for ratio in case["ratio"].values())
    step = report["results"]["step"]
    assert {case["labels"]["backend"] for case in step} == {"numba", "torch"}
    assert set(step[0]["phases"]) == {"forward", "backward", "total"}


def test_bad_arguments_are_refused(capsys):
    from benchmarks.__main__ import arguments

    for command in (["--repetitions", "0"], ["--threads", "1", "0"]):
        with pytest.raises(SystemExit):
            arguments(command)
        assert "expected numbers >= 1" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["none", "exact"])
def test_stages_have_the_gradients_of_the_whole_step(mode):
    from benchmarks.measure import Stopwatch
    from benchmarks.pipeline import timed_stages, timed_step
    from benchmarks.scenes import make_scene

    scene, watch = make_scene(12, 32, 2, texels=16), Stopwatch()
    whole, parts = timed_step(Stopwatch(), scene, mode), timed_stages(watch, scene, mode)
    for one, other in zip(whole, parts, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(other, one)
    stages = ["project", "normals", "rasterize", "interpolate uv", "interpolate normals", "texture", "shade", "loss"]
    stages += ["antialias"] if mode != "none" else []
    expected = {f"{stage} {direction}" for stage in stages for direction in ("forward", "backward")}
    assert set(watch.seconds["wall"]) == expected


def test_compared_cases_take_turns():
    from benchmarks.measure import WARM_UP, Case, Section, measure_group

    calls = []

    def task(watch, name):
        with watch.phase("work"):
            calls.append(name)

    def refuse(watch):
        raise BackendError("not on this machine")

    cases = [Case({"size": size, "way": way}, partial(task, name=f"{size}{way}"), 2) for size in (1, 2) for way in "ab"]
    section = Section("turns", "", [*cases, Case({"size": 2, "way": "c"}, refuse, 1)], "way")
    groups = section.groups()
    assert [len(group) for group in groups] == [2, 3]
    results = measure_group(groups[1], 3)
    assert calls == ["2a"] * WARM_UP + ["2b"] * WARM_UP + ["2a", "2b"] * 3
    assert [result.skipped for result in results] == ["", "", "not on this machine"]
    assert results[0].repetitions == 3
    assert results[0].ratio["wall"] == 1
    assert results[2].as_dict() == {
        "labels": {"size": 2, "way": "c"},
        "repetitions": 0,
        "skipped": "not on this machine",
    }


def test_figures_are_per_item():
    from benchmarks.measure import Stopwatch

    watch = Stopwatch()
    watch.seconds["wall"].update(forward=0.25, backward=0.75)
    assert watch.milliseconds("wall", 10) == {"forward": 25, "backward": 75, "total": 100}


def test_the_face_covers_its_share_of_the_image():
    from benchmarks.scenes import make_scene
    from nl3dmm.render.scene import render_geometry

    scene = make_scene(24, 48, 3, texels=16)
    assert scene.surface.triangles.shape == (2 * 23 * 23, 3)
    picture = render_geometry(scene.vertices, scene.camera, scene.surface, scene.image_size)
    share = (picture.sum(1) > 0).float().mean((1, 2))
    assert ((share > 0.3) & (share < 0.5)).all()


@pytest.mark.skipif(util.find_spec("deodr") is not None, reason="DEODR is installed")
def test_a_missing_peer_says_so():
    from benchmarks.measure import Stopwatch
    from benchmarks.peers import timed_deodr
    from benchmarks.scenes import make_scene

    with pytest.raises(ImportError, match=r"not installed \(pip install deodr trimesh\)"):
        timed_deodr(Stopwatch(), make_scene(12, 32, 2, texels=16))
