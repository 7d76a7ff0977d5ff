"""The benchmarks run, write valid figures, and time what they say they time."""

import json
import math
import subprocess
import sys
import time
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


def test_quick_training_writes_figures(tmp_path):
    config = ["--config", "configs/quickstart.yaml", "-o", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", "--only", "training", "--quick", "--threads", "1", *config]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "training-quick.json").read_text(encoding="utf-8"))["results"]
    assert set(report) == {"step", "profile", "parameters"}
    step = [case for case in report["step"] if "skipped" not in case]
    assert {case["labels"]["stage"] for case in step} == {"linear", "pretrain", "finetune"}
    assert all(case["items_per_second"] == 1e3 / case["phases"]["total"]["wall"]["median"] for case in step)
    whole, parts = report["profile"][:2]
    assert [case["labels"]["timing"] for case in (whole, parts)] == ["whole", "parts"]
    networks = ["encoder", "shape decoder", "albedo decoder", "meshes", "renderer", "perceptual network", "losses"]
    expected = {f"{part} {direction}" for part in networks for direction in ("forward", "backward")}
    assert set(parts["shares"]) == expected | {"data", "gradient clip", "optimiser", "other"}
    assert sum(parts["shares"].values()) == pytest.approx(1)
    assert min(parts["shares"].values()) > 0
    assert parts["shares"]["other"] < 0.3
    assert 0.25 < parts["ratio"]["cpu"] < 4  # another process may have come between
    assert report["parameters"][0]["part"] == "encoder"


def test_parameters_are_those_of_the_sheet():
    from benchmarks.options import default_configs
    from benchmarks.sizes import parameters
    from nl3dmm.assets.load import load_template
    from nl3dmm.config import load_config
    from nl3dmm.settings import RunConfig
    from nl3dmm.systems.highfidelity import HighFidelity

    config = load_config(RunConfig, [default_configs()[1]])
    system = HighFidelity(config.highfidelity, load_template("embedded", None, config.uv_size))
    rows = {row["part"]: row for row in parameters({"paper": (config, system)}).rows}
    differing = {part for part, row in rows.items() if row["sheet"] and abs(row["sheet"] - row["as_sheet"]) > 0.01}
    assert differing == {"shape decoder", "shape decoder, mouth", "albedo decoder"}  # its own box of the mouth
    assert rows["encoder"]["parameters"] == 3_701_956


def test_bad_arguments_are_refused(capsys):
    from benchmarks.__main__ import arguments

    for command in (["--repetitions", "0"], ["--threads", "1", "0"], ["--batch", "1"]):
        with pytest.raises(SystemExit):
            arguments(command)
        assert "expected numbers >= " in capsys.readouterr().err


def test_a_bad_config_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "training", "--config", "none.yaml", "-o", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: config file: got none.yaml, which does not exist")


class _Slow(torch.autograd.Function):
    """The identity, taking its time: seconds forward, seconds backward."""

    @staticmethod
    def forward(ctx, value, forward, backward):
        time.sleep(forward)
        ctx.seconds = backward
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None, None


class _Toy:
    """Three parts in a row, the last one inside the second, and a gradient that is taken half-way."""

    def __init__(self, weight):
        self.weight = weight

    def first(self, value):
        return _Slow.apply(value * self.weight, 0.01, 0.02)

    def middle(self, values):
        found = [_Slow.apply(values[0], 0.03, 0.04), values[1]]
        return [*found, self.last(found[0])]

    def last(self, value):
        return _Slow.apply(value * 2, 0.05, 0.06)

    def loss(self, value):
        hidden = self.first(value)
        outputs = self.middle((hidden, hidden))
        total = sum(_Slow.apply(output, 0, 0.01).sum() for output in outputs)
        (halfway,) = torch.autograd.grad(outputs[2].sum(), hidden, retain_graph=True)
        return total + (halfway * hidden).sum()


def test_time_belongs_to_the_part_that_takes_it():
    from benchmarks.measure import Stopwatch, read_clocks
    from benchmarks.parts import Part, PartClock

    toy, watch = _Toy(torch.tensor([1.5, 2.0], requires_grad=True)), Stopwatch()
    value = torch.tensor([3.0, 4.0])
    (expected,) = torch.autograd.grad(toy.loss(value), toy.weight)
    before, clock = read_clocks(), PartClock(watch)
    with clock.watching([Part(name, toy, name) for name in ("first", "middle", "last")]):
        with clock.part("loss forward"):
            loss = toy.loss(value)
        with clock.part("loss backward"):
            loss.backward()
    elapsed = read_clocks()["wall"] - before["wall"]
    assert torch.equal(toy.weight.grad, expected)
    seconds = watch.seconds["wall"]
    least = {"first forward": 0.01, "first backward": 0.02, "middle forward": 0.03, "last forward": 0.05}
    least |= {"middle backward": 2 * 0.04, "last backward": 2 * 0.06, "loss backward": 0.03, "loss forward": 0}
    assert set(seconds) == {*least, "other"}
    assert all(seconds[name] >= time for name, time in least.items())
    assert sum(seconds.values()) == pytest.approx(elapsed, rel=0.25)
    assert "first" not in vars(toy)


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


def test_surface_distance_of_a_displaced_and_scaled_sheet_is_its_own_bend(patch):
    """Alignment takes similarities away; sliding along the surface is no distance."""
    from benchmarks.fitting import surface_distance

    vertices, triangles, _ = patch
    turned = 1.3 * vertices[0].float() + torch.tensor([5.0, -2.0, 9.0])
    assert surface_distance(turned, vertices[0].float(), triangles) < 1e-3
    bent = vertices[0].float().clone()
    bent[5, 2] += 4.0
    assert 0.1 < surface_distance(bent, vertices[0].float(), triangles) < 0.6


def test_scaled_psnr_forgives_one_colour_alone():
    from benchmarks.fitting import scaled_psnr

    truth = torch.rand(1, 3, 8, 8) * 0.5 + 0.2
    region = torch.ones(1, 8, 8, dtype=torch.bool)
    tinted = truth * torch.tensor([0.8, 1.1, 0.6]).view(1, 3, 1, 1)
    assert scaled_psnr(tinted, truth, region) > 80
    noise = 0.1 * torch.randn(1, 3, 8, 8)
    assert 17 < scaled_psnr(truth + noise, truth, region) < 24
