"""A whole sweep of tiny runs with real commands: killed, gone on with, one part broken, mended, compared."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from nl3dmm.checkpoint_io import load_checkpoint
from nl3dmm.evaluation.measures import data_label, measurement_file
from nl3dmm.sweep import main

ROOT = Path(__file__).resolve().parents[2]
FILE = """
method: grid
run_cap: 3
command: ["${env}", "${interpreter}", "-m", "nl3dmm.train", "training.images=64", "${args_no_hyphens}"]
parameters:
  seed: {values: [0, 1]}
  base: {values: [nonlinear.yaml, linear.yaml]}
"""
NAMES = ["nonlinear-seed0", "linear-seed0", "nonlinear-seed1"]
BROKEN = NAMES[-1]
OBSTACLE = Path("out", BROKEN, "checkpoints", "last.shape.world.json")
ARGUMENTS = ["sweep.yaml", "-o", "out", "--jobs", "2", "--measure", "shape", "--faces", "2", "--steps", "3"]
STEPS = 8
pytestmark = pytest.mark.timeout(900)  # eight commands that import torch, on a machine that may be busy


@pytest.fixture(scope="module")
def folder(tiny_config, tmp_path_factory):
    """The working folder with two variants of the tiny run; where the last run's figures belong is a folder."""
    place = tmp_path_factory.mktemp("sweep")
    for kind in ("linear", "nonlinear"):
        (place / f"{kind}.yaml").write_text(f"base: {tiny_config}\nmodel: {{decoder: {{kind: {kind}}}}}\n")
    (place / "sweep.yaml").write_text(FILE)
    (place / OBSTACLE).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # a dozen commands start faster from compiled files
        patch.setenv("PYTHONPYCACHEPREFIX", str(place / "compiled"))
        yield place


@pytest.fixture(scope="module")
def killed(folder) -> int:
    """The step that the first run had saved when the sweep was killed, which was as soon as there was one."""
    command = [sys.executable, "-m", "nl3dmm.sweep", *ARGUMENTS, "--jobs", "1"]
    checkpoint = folder / "out" / NAMES[0] / "checkpoints" / "last.ckpt"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 300
        while not checkpoint.is_file() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(1)  # the training notices
    return load_checkpoint(checkpoint)["global_step"]


@pytest.fixture(scope="module")
def first(killed, folder) -> tuple[int, dict]:
    """Exit code and results of the same command again."""
    return main(ARGUMENTS), results(folder)


@pytest.fixture(scope="module")
def second(first, folder) -> tuple[int, dict]:
    """The same when nothing is in the way any more."""
    (folder / OBSTACLE).rmdir()
    return main(ARGUMENTS), results(folder)


def results(folder: Path) -> dict:
    return json.loads((folder / "out" / "results.json").read_text())


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def commands(folder: Path, name: str) -> list[str]:
    """The modules that a run's log says were called."""
    lines = (folder / "out" / "logs" / f"{name}.log").read_text().splitlines()
    return [line.split()[3].removeprefix("nl3dmm.") for line in lines if line.startswith("$ python -m ")]


def test_a_killed_sweep_goes_on(killed, first, folder):
    assert 0 < killed < STEPS
    assert commands(folder, NAMES[0]) == ["train", "train", "evaluate"]
    assert commands(folder, NAMES[1]) == ["train", "evaluate"]
    for name in NAMES[:2]:
        steps = [int(row["step"]) for row in metrics(folder / "out" / name)]
        assert steps == sorted(set(steps))
        lost = {killed - 1} if name == NAMES[0] else set()  # a step is saved before its row is written
        assert set(range(STEPS)) - set(steps) <= lost


def test_a_failure_is_listed_and_stops_nothing_else(first, folder):
    code, stored = first
    assert code == 1
    (failure,) = stored["failures"]
    assert failure.startswith(f"{BROKEN} shape: output file: got {folder / OBSTACLE}, which cannot be written")
    assert failure.endswith(f"(log: {folder / 'out' / 'logs' / BROKEN}.log)")
    assert [bool(run["metrics"]) for run in stored["runs"]] == [True, True, False]
    assert stored["comparison"]["shape"]["nonlinear"]["nme"]["n"] == 1


def test_what_is_finished_is_not_done_again(second, folder):
    code, stored = second
    assert (code, stored["failures"]) == (0, [])
    assert commands(folder, BROKEN) == ["train", "evaluate", "evaluate"]
    assert commands(folder, NAMES[1]) == ["train", "evaluate"]
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    assert main(ARGUMENTS) == 0
    after = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    assert after == before


def test_comparison_is_of_what_is_stored_beside_the_checkpoints(second, folder, capsys):
    _, stored = second
    assert [run["run"] for run in stored["runs"]] == NAMES
    values: dict[str, list[float]] = {"linear": [], "nonlinear": []}
    for run in stored["runs"]:
        checkpoint = folder / "out" / run["run"] / "checkpoints" / "last.ckpt"
        assert (run["checkpoint"], run["step"]) == (str(checkpoint), STEPS)
        measured = json.loads(measurement_file(checkpoint, "shape").read_text())
        assert run["metrics"]["shape"]["nme"] == measured["errors"]["final"]["nme"]
        assert run["parameters"] == {"seed": run["seed"], "base": f"{run['setting']}.yaml"}
        values[run["setting"]].append(measured["errors"]["final"]["nme"])
    means = {setting: row["nme"] for setting, row in stored["comparison"]["shape"].items()}
    (linear,), (one, other) = values["linear"], values["nonlinear"]
    assert means["linear"] == {"mean": pytest.approx(linear), "std": None, "n": 1}
    deviation = pytest.approx(abs(one - other) / 2**0.5)
    assert means["nonlinear"] == {"mean": pytest.approx((one + other) / 2), "std": deviation, "n": 2}
    assert main(ARGUMENTS) == 0
    printed = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][2:] == [
        "nonlinear",
        "linear",
    ]
    text = (folder / "out" / "results.md").read_text()
    assert all(line in text for line in printed.splitlines() if line.startswith("|"))


def test_other_measurements_are_done_without_training(second, folder, capsys):
    assert main([*ARGUMENTS[:-1], "4", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 runs, 3 commands to do"
    assert all(line.startswith("python -m nl3dmm.evaluate shape") for line in lines[1:])


def test_another_config_in_the_same_folder_is_refused(second, folder, error):
    message = error(main([*ARGUMENTS, "training.images=80"]))
    assert f"got {folder / 'out' / NAMES[0]}, which holds a run with other values of training; expected" in message
    assert results(folder) == second[1]


def test_a_scan_is_measured_too(second, folder, small_template, capsys):
    """Without training, with the figures on the world beside those on the scan."""
    (folder / "scan").mkdir()
    vertices = small_template.vertices
    (folder / "scan" / "person.obj").write_text("\n".join(f"v {x} {y} {z}" for x, y, z in vertices.tolist()))
    numpy.save(folder / "scan" / "marks.npy", small_template.landmarks(vertices[None])[0].numpy())
    arguments = [*ARGUMENTS, "--data", str(folder / "scan")]
    assert main(arguments) == 0
    printed, name = capsys.readouterr().out, f"shape {data_label(str(folder / 'scan'))}"
    assert [line.split("|")[1].strip() for line in printed.splitlines() if " n |" in line] == ["shape", name]
    stored = results(folder)
    for run in stored["runs"]:
        file = measurement_file(Path(run["checkpoint"]), "shape", str(folder / "scan"))
        assert run["metrics"][name] == json.loads(file.read_text())["errors"]["final"]
    assert [run["metrics"]["shape"] for run in stored["runs"]] == [run["metrics"]["shape"] for run in second[1]["runs"]]
    assert stored["command"].endswith("--steps 3 --data scan")
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == "3 runs, 0 commands to do\n"
