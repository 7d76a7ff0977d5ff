"""Measurements of many runs as tables and files."""

import json
import math
from pathlib import Path

import pytest

from nl3dmm.evaluation.measures import Measurement, measurement_file
from nl3dmm.sweep import _measurements, _parser, _Report
from nl3dmm.sweeps.comparison import (
    Measured,
    comparison,
    comparison_text,
    not_finite,
    provenance,
    read_metrics,
    write_comparison,
)
from nl3dmm.sweeps.jobs import Job, Outcome


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(folder) -> Path:
    """Two folders of one name, one of the world's, a scan; one of the faces is inside the working folder."""
    for name in ("a/truth", "b/truth", "b/world"):
        (folder / name).mkdir(parents=True)
        (folder / name / "truth.npz").touch()
    (folder / "scan").mkdir()
    (folder / "scan" / "person.obj").touch()
    return folder


def measurements(*arguments: str) -> list[Measurement]:
    return _measurements(_parser().parse(["some.yaml", *arguments]))


def measured(setting: str, seed: int, **metrics) -> Measured:
    return Measured(f"{setting}-seed{seed}", setting, seed, {"seed": seed}, 16, Path("last.ckpt"), metrics)


RUNS = [
    measured("linear", 0, texture={"l21": 0.5, "detail": 0.0}, shape={"nme": 0.25}),
    measured("linear", 1, texture={"l21": 0.7, "detail": 0.5}),
    measured("proxy", 0, texture={"l21": 0.125}),
    measured("proxy", 1),
]


def test_comparison_is_mean_and_sample_deviation_over_seeds():
    table = comparison(RUNS)
    assert table["texture"]["linear"]["l21"] == {"mean": 0.6, "std": pytest.approx(math.sqrt(0.02)), "n": 2}
    assert table["texture"]["proxy"] == {"l21": {"mean": 0.125, "std": None, "n": 1}}
    assert table["shape"] == {"linear": {"nme": {"mean": 0.25, "std": None, "n": 1}}, "proxy": {}}


def test_comparison_as_text():
    assert comparison_text(comparison(RUNS)).splitlines() == [
        "| texture |        l21 |      detail |   n |",
        "| ------- | ---------: | ----------: | --: |",
        "| linear  | 0.6 ± 0.14 | 0.25 ± 0.35 |   2 |",
        "| proxy   |      0.125 |           - |   1 |",
        "",
        "| shape  |  nme |   n |",
        "| ------ | ---: | --: |",
        "| linear | 0.25 |   1 |",
        "| proxy  |    - |   0 |",
    ]


def test_comparison_on_disk(tmp_path):
    facts = {"sweep": "ablation", **provenance(tmp_path, "python -m nl3dmm.sweep x")}
    write_comparison(tmp_path, RUNS, facts, ["proxy-seed1 training: no luck (log: l)"])
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["comparison"] == comparison(RUNS)
    assert stored["failures"] == ["proxy-seed1 training: no luck (log: l)"]
    assert "cores" in stored["machine"]
    assert {"nl3dmm", "commit"} <= stored.keys()
    assert stored["command"] == "python -m nl3dmm.sweep x"
    expected = {"run": "linear-seed0", "setting": "linear", "seed": 0, "parameters": {"seed": 0}, "step": 16}
    assert stored["runs"][0].items() >= expected.items()
    assert stored["runs"][0]["metrics"]["shape"] == {"nme": 0.25}
    assert stored["runs"][3]["step"] is None
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# ablation\n")
    assert comparison_text(comparison(RUNS)) in text
    assert "- failed: proxy-seed1 training: no luck (log: l)" in text


def test_figures_keep_what_they_come_from(tmp_path):
    """Earlier attempts stay named; one that only reads the figures is not."""

    def attempt(command: str, makes_figures: bool = True) -> str:
        facts = provenance(tmp_path, command, makes_figures)
        write_comparison(tmp_path, RUNS, facts, [])
        return facts["command"]

    assert attempt("first") == "first"
    assert attempt("second") == "first; second"
    assert attempt("first") == "first; second"
    assert attempt("third", makes_figures=False) == "first; second"
    (tmp_path / "results.json").write_text("[]")
    assert attempt("fourth", makes_figures=False) == "fourth"


UNSOUND = [
    measured("proxy", 0, texture={"l21": 0.5, "detail": math.nan}),
    measured("proxy", 1, texture={"l21": math.nan, "detail": -math.inf}),
    measured("proxy", 2, texture={"l21": 0.25, "detail": math.nan}),
]


def test_figures_that_are_not_finite_are_named_and_not_averaged():
    assert not_finite(RUNS) == []
    assert not_finite(UNSOUND) == [
        "proxy-seed0: got nan for texture detail",
        "proxy-seed1: got nan for texture l21",
        "proxy-seed1: got -inf for texture detail",
        "proxy-seed2: got nan for texture detail",
    ]
    row = comparison(UNSOUND)["texture"]["proxy"]
    assert row["l21"] == {"mean": 0.375, "std": pytest.approx(0.125 * 2**0.5), "n": 2}
    assert row["detail"] == {"mean": None, "std": None, "n": 0}
    assert comparison_text({"texture": {"proxy": row}}).splitlines()[2] == "| proxy   | 0.375 ± 0.18 | - (n=0) |   2 |"


def store(checkpoint: Path, measurement: Measurement, l21: float) -> None:
    protocol = {"faces": 3, "faces_asked": measurement.faces, "latent_steps": measurement.steps}
    stored = {"protocol": protocol, "checkpoint_step": 16, "errors": {"final": {"l21": l21}}}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    measurement_file(checkpoint, measurement.measure, measurement.data).write_text(json.dumps(stored))


def test_report_holds_every_data_set_and_every_seed(data):
    """Two seeds, texture on the world and on two folders of one name, of which one has fewer faces than asked for."""
    asked = measurements("--measure", "texture", "--data", "a/truth", "--data", "b/truth")
    runs = [Measured(f"x-seed{i}", "x", i, {"seed": i}, 16, data / str(i) / "last.ckpt") for i in range(2)]
    values = [[1.0, 2.0, 3.0], [3.0, math.nan, 5.0]]
    for run, row in zip(runs, values, strict=True):
        for measurement, value in zip(asked, row, strict=True):
            store(run.checkpoint, measurement, value)
    report = _Report(runs, asked, data, {"sweep": "some"})
    report.add(Outcome(Job("x-seed0", asked[1].name, (), data / "log"), 1.0, 1.0, None))
    names = [measurement.name for measurement in asked]
    assert report.failures == [f"x-seed1: got nan for {names[1]} l21"]
    text = (data / "results.json").read_text()
    stored = json.loads(text)
    assert "NaN" not in text
    assert stored["failures"] == report.failures
    assert [list(run["metrics"]) for run in stored["runs"]] == [names, names]
    assert stored["runs"][1]["metrics"][names[1]] == {"l21": None}
    assert {name: row["x"]["l21"]["mean"] for name, row in stored["comparison"].items()} == dict(
        zip(names, (2.0, 2.0, 4.0), strict=True)
    )
    assert stored[names[1]] == "at most 64 unseen faces, 200 latent steps"
    table = (data / "results.md").read_text()
    assert all(f"| {name} " in table for name in names)


def test_measurements_count_only_for_their_checkpoint_and_protocol(tmp_path):
    checkpoint = tmp_path / "last.ckpt"

    def read(measure: str, protocol: tuple[int, int], step: int) -> dict[str, float] | None:
        return read_metrics(checkpoint, Measurement(measure, *protocol), step)

    assert read("texture", (4, 6), 16) is None
    stored = {"protocol": {"faces": 4, "latent_steps": 6}, "checkpoint_step": 16}
    stored |= {"errors": {"proxy": {"l21": 2.0}, "final": {"l21": 1.0}}, "ratios": {"a": 3.0}}
    for measure in ("texture", "disentangle"):
        measurement_file(checkpoint, measure).write_text(json.dumps(stored))
    assert read("texture", (4, 6), 16) == {"l21": 1.0}
    assert read("disentangle", (4, 6), 16) == {"a": 3.0}
    assert read("texture", (5, 6), 16) is None
    assert read("texture", (4, 7), 16) is None
    assert read("texture", (4, 6), 17) is None
    wrong = ({"errors": {}}, {"errors": {"final": 3}}, {"errors": {"final": {"l21": None}}}, {"protocol": []})
    for text in ("", "[]", "{}", *(json.dumps(stored | change) for change in wrong)):
        measurement_file(checkpoint, "texture").write_text(text)
        assert read("texture", (4, 6), 16) is None
