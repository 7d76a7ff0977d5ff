"""Sweeps without training: files, grids, arguments."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from nl3dmm.assets.locations import asset_folder
from nl3dmm.config import load_config
from nl3dmm.errors import ConfigError
from nl3dmm.evaluation.measures import Measurement, data_label, measurement_file
from nl3dmm.run_config import run_config
from nl3dmm.settings import RunConfig
from nl3dmm.sweep import _measurements, _parser, _without_folder, main
from nl3dmm.sweeps.plan import SweepRun, plan_sweep, read_sweep, settle
from nl3dmm.train import main as train

CONFIGS = asset_folder("configs")
SHIPPED = {
    "ablation": ["linear", "linear_exact", "nonlinear", "nonlinear_free", "global_local", "proxy"],
    "losses": [
        "proxy", "loss_l21", "loss_gradient", "free_residual", "no_residual_symmetry",
        "pairing_finals", "pairing_without_proxies",
    ],
}  # fmt: skip
COMMAND = '["${env}", "${interpreter}", "-m", "nl3dmm.train", "${args_no_hyphens}"]'
GOOD = f"method: grid\ncommand: {COMMAND}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with two variants."""
    for name in ("small", "large"):
        (tmp_path / f"{name}.yaml").write_text(f"model: {{shape_latent: {len(name)}}}\noutput: runs/{name}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sweep(folder):
    """``sweep(text)``: a sweep file."""

    def write(parameters: str, head: str = GOOD) -> Path:
        (folder / "some.yaml").write_text(f"{head}parameters: {parameters}\n")
        return folder / "some.yaml"

    return write


def planned(file: Path, *extra: str) -> list[SweepRun]:
    return plan_sweep(read_sweep(file), Path("out"), extra)


@pytest.fixture(scope="module", params=list(SHIPPED))
def shipped(request) -> tuple[str, list[SweepRun]]:
    """Name and runs of a sweep file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CONFIGS.parent)
        return request.param, planned(CONFIGS / "sweep" / f"{request.param}.yaml")


def test_every_shipped_sweep_is_tested():
    assert {file.stem for file in (CONFIGS / "sweep").glob("*.yaml")} == set(SHIPPED)


def test_shipped_sweeps_are_grids_of_models_and_seeds(shipped, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    name, runs = shipped
    assert [(run.config.seed, run.setting) for run in runs] == list(itertools.product(range(3), SHIPPED[name]))
    for run in runs:
        assert run.folder.name == f"{run.setting}-seed{run.config.seed}"
        assert run.config.encoder_from == "runs/ablation/encoder"
    for run in runs[-6:]:
        file = CONFIGS / "ablation" / f"{run.setting}.yaml"
        assert run.config == load_config(RunConfig, [file], ["seed=2", f"output={run.folder}"])


def test_shipped_sweeps_are_what_wandb_takes(shipped, monkeypatch, capsys):
    """The keys of W&B's schema, and the command that the functions of its agent make."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    name, runs = shipped
    config = yaml.safe_load((CONFIGS / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config["name"] == name
    assert set(config) == {
        "name", "project", "description", "program", "command", "method", "metric", "parameters",
    }  # fmt: skip
    assert config["metric"].keys() == {"name", "goal"}
    assert all(entry.keys() == {"values"} and entry["values"] for entry in config["parameters"].values())
    assert (CONFIGS.parent / config["program"]).is_file()
    for run in runs:
        given = create_sweep_command_args({"args": {key: {"value": value} for key, value in run.parameters.items()}})
        words = create_sweep_command(config["command"])
        assert words[:4] == ["${env}", "${interpreter}", "-m", "nl3dmm.train"]
        arguments = [part for word in words[4:] for part in given[word[2:-1]]]
        assert tuple(arguments) == run.arguments[: len(arguments)]
    monkeypatch.chdir(CONFIGS.parent)
    assert train([*arguments, "--print-config"]) == 0
    assert "seed: 2" in capsys.readouterr().out


def test_grid(sweep):
    runs = planned(
        sweep("{base: {values: [small.yaml, large.yaml]}, training.beta1: {value: 0.25}, seed: {values: [4, 5]}}")
    )
    assert [run.name for run in runs] == ["small-seed4", "small-seed5", "large-seed4", "large-seed5"]
    assert [run.setting for run in runs] == ["small", "small", "large", "large"]
    assert [run.config.seed for run in runs] == [4, 5, 4, 5]
    assert [run.config.model.shape_latent for run in runs] == [5, 5, 5, 5]
    assert {run.config.training.beta1 for run in runs} == {0.25}
    assert runs[0].parameters == {"base": "small.yaml", "training.beta1": 0.25, "seed": 4}
    assert runs[0].folder == Path("out").absolute() / "small-seed4"


def test_values_are_written_as_the_agent_writes_them(sweep):
    """Python's text: None, True, lists; names stay names of folders."""
    text = "{template_path: {values: [null]}, world.distance_mm: {values: [[300, 900]]}, resume: {value: true}}"
    (run,) = planned(sweep(text), "training.images=640")
    assert run.config.template_path is None
    assert run.config.world.distance_mm == (300.0, 900.0)
    assert run.name == "template_path=None-world.distance_mm=_300_900_-seed0"
    assert run.setting == "template_path=None, world.distance_mm=[300, 900]"
    assert "training.images=640" in run.arguments


def test_values_of_the_command_and_of_all_runs(sweep):
    head = GOOD.replace('"${args', '"training.images=320", "${args')
    file = sweep("{seed: {values: [0, 1]}, training.beta1: {value: 0.25}}", head)
    assert {run.config.training.images for run in planned(file)} == {320}
    runs = planned(file, "training.images=640", "training.beta1=0.75")
    assert {(run.config.training.images, run.config.training.beta1) for run in runs} == {(640, 0.75)}
    assert runs[0].parameters == {"seed": 0}
    assert runs[0].setting == "some"


def test_bases_of_one_name_are_told_apart(sweep, folder):
    (folder / "other").mkdir()
    (folder / "other" / "small.yaml").write_text("")
    names = [run.name for run in planned(sweep("{base: {values: [small.yaml, other/small.yaml, large.yaml]}}"))]
    assert names == ["small-seed0", "other_small-seed0", "large-seed0"]


def test_run_cap(sweep):
    assert len(planned(sweep("{seed: {values: [0, 1, 2]}}", f"{GOOD}run_cap: 2\n"))) == 2


def test_output_folders_may_have_any_name(sweep):
    file = sweep("{seed: {values: [0]}}")
    (run,) = plan_sweep(read_sweep(file), Path("some: #1 folder's"))
    assert run.folder == Path("some: #1 folder's").absolute() / "seed0"
    assert run_config(run.arguments) == run.config
    with pytest.raises(ConfigError, match=r"output folder: got '.*a\{b'; expected braces around nothing only"):
        plan_sweep(read_sweep(file), Path("a{b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no keys; expected a W&B sweep file"),
        ("- 1", "got no keys; expected a W&B sweep file"),
        (f"command: {COMMAND}\nparameters: {{seed: {{values: [0]}}}}", "method: got None; expected 'grid'"),
        ("method: bayes", r"method: got 'bayes'; expected 'grid'.*wandb sweep .*some.yaml, then wandb agent ID"),
        ("method: random", "method: got 'random'; expected 'grid'"),
        (f"{GOOD}paramters: {{}}", "paramters: got a key that is not run here; .*Did you mean 'parameters'"),
        (f"{GOOD}early_terminate: {{}}", "early_terminate: got a key .*or run the file with wandb agent"),
        (GOOD, "parameters: got None; expected key"),
        (f"{GOOD}parameters: {{}}", "parameters: got {}; expected key"),
        (f"{GOOD}parameters: [seed]", r"parameters: got \['seed'\]; expected key"),
        (f"{GOOD}parameters: {{seed: {{values: []}}}}", r"parameters.seed: got {'values': \[\]}; expected values: "),
        (f"{GOOD}parameters: {{seed: {{values: 3}}}}", "parameters.seed: got {'values': 3}"),
        (f"{GOOD}parameters: {{seed: [0, 1]}}", r"parameters.seed: got \[0, 1\]"),
        (f"{GOOD}parameters: {{seed: {{min: 0, max: 3}}}}", "parameters.seed: got {'min': 0, 'max': 3}"),
        (f"{GOOD}parameters: {{seed: {{values: [0], value: 1}}}}", "parameters.seed: got "),
        (f"{GOOD}parameters: {{loss: {{parameters: {{}}}}}}", "parameters.loss: got .*Write nested keys with dots"),
        (f"{GOOD}run_cap: 0\nparameters: {{seed: {{values: [0]}}}}", "run_cap: got 0"),
        ("method: grid\nparameters: {seed: {values: [0]}}", "command: got None; expected "),
        ("method: grid\ncommand: [python, train.py]\nparameters: {seed: {values: [0]}}", "command: got .*'train.py'"),
        (GOOD.replace("_no_hyphens", "") + "parameters: {seed: {values: [0]}}", "command: got '.{args}'; expected"),
        (GOOD.replace('"${args', '"-c", "${args') + "parameters: {seed: {values: [0]}}", "command: got '-c'; .*base="),
        ("method: [", "not valid YAML"),
    ],
)
def test_wrong_files(folder, text, message):
    (folder / "some.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        planned(folder / "some.yaml")
    assert "some.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "extra", "message"),
    [
        (
            "{base: {values: [small.yaml, none.yaml]}}",
            (),
            r"run with base=none.yaml: config file: got none.yaml, which",
        ),
        ("{sed: {values: [0]}}", (), "run with sed=0: sed: Key 'sed' not in 'RunConfig'. Did you mean: 'seed'"),
        ("{seed: {values: [0, -1]}}", (), "run with seed=-1: seed: got -1"),
        ("{seed: {values: [0, 0]}}", (), "parameters: got runs that are equal"),
        ("{seed: {values: [0]}}", ("training.image=3",), "Did you mean: 'images'"),
        ("{seed: {values: [0]}}", ("seed=1",), "^seed: got a value for all runs; .* Take it out of .*some.yaml"),
        ("{seed: {values: [0]}}", ("output=x",), "^output: got a value for all runs; .* Choose the folder with -o"),
        ("{seed: {values: [0]}}", ("resume=false",), "^resume: got a value for all runs"),
        ("{seed: {values: [0]}}", ("images",), "override: got 'images'; expected key=value"),
    ],
)
def test_runs_that_cannot_be(sweep, parameters, extra, message):
    with pytest.raises(ConfigError, match=message):
        planned(sweep(parameters), *extra)


def test_threads_are_shared_unless_given(sweep):
    runs = planned(sweep("{training.threads: {values: [null, 3]}}"))
    settled = [settle(run, 2) for run in runs]
    assert [run.config.training.threads for run, _ in settled] == [2, 3]
    assert [finished for _, finished in settled] == [False, False]


def test_an_encoder_to_start_with_must_be_there(sweep, folder):
    (run,) = planned(sweep("{seed: {values: [3]}}"), "encoder_from=runs/encoder-{seed}")
    assert run.config.encoder_from == "runs/encoder-3"
    with pytest.raises(
        ConfigError, match=r"^encoder_from: got runs/encoder-3, which does not exist; .* Train it first"
    ):
        settle(run, 1)
    (folder / "runs" / "encoder-3").mkdir(parents=True)
    assert settle(run, 1)[1] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--measure", "texture,color"],
            "--measure: got 'color'; expected some of texture,shape,disentangle, or none.",
        ),
        (["--jobs", "0"], "--jobs: got 0; expected at least 1."),
        (["--faces", "0"], "--faces: got 0; expected at least 1."),
        (["--steps", "-1"], "--steps: got -1; expected at least 0."),
        (["model.shape_latents=3"], "Key 'shape_latents' not in 'ModelConfig'"),
    ],
)
def test_wrong_arguments(sweep, folder, capsys, arguments, message):
    assert main([str(sweep("{seed: {values: [0]}}")), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (folder / "runs").exists()


def test_dry_run_writes_nothing(sweep, folder, capsys):
    file = sweep("{base: {values: [small.yaml, large.yaml]}, seed: {values: [0, 1]}}")
    assert main([str(file), "-o", "there", "--measure", "shape", "--steps", "0", "--dry-run", "seed=1"]) == 1
    capsys.readouterr()
    assert main([str(file), "-o", "there", "--measure", "shape", "--steps", "0", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 runs, 8 commands to do"
    assert lines[1].startswith("python -m nl3dmm.train base=small.yaml seed=0 output=")
    assert lines[2].startswith("python -m nl3dmm.evaluate shape ")
    assert lines[2].endswith("--faces 64 --steps 0")
    assert not (folder / "there").exists()


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


def test_measurements_and_their_protocols():
    assert measurements() == [
        Measurement("texture", 64, 200),
        Measurement("shape", 64, 200),
        Measurement("disentangle", 32, 60),
    ]
    assert measurements("--measure", "none") == []
    assert measurements("--measure", "shape", "--steps", "0", "--faces", "3") == [Measurement("shape", 3, 0)]


def test_folders_are_measured_too(data):
    """Textures and shapes of faces, shapes of scans; a folder that is named twice is one, the world is there anyway."""
    names = ("a/truth", "b/truth", "./b/../b/truth", "scan", "world")
    found = measurements("--faces", "9", *(part for name in names for part in ("--data", name)))
    labels = [data_label(name) for name in names]
    assert [each.name for each in found] == [
        *("texture", f"texture {labels[0]}", f"texture {labels[1]}"),
        *("shape", f"shape {labels[0]}", f"shape {labels[1]}", f"shape {labels[3]}"),
        "disentangle",
    ]
    assert found[1].options == ("--faces", "9", "--steps", "200", "--data", "a/truth")
    assert found[0].options == ("--faces", "9", "--steps", "200")


def test_every_measurement_has_its_own_file(data, monkeypatch):
    checkpoint = Path("last.ckpt")
    assert measurement_file(checkpoint, "shape") == Path("last.shape.world.json")
    files = [measurement_file(checkpoint, "shape", name).name for name in ("a/truth", "b/truth", "b/world", "world")]
    assert len(set(files)) == 4
    for file, name in zip(files, ("truth", "truth", "world"), strict=False):
        assert re.fullmatch(rf"last\.shape\.{name}-[0-9a-f]{{6}}\.json", file)
    monkeypatch.chdir(data / "b")
    assert measurement_file(checkpoint, "shape", "truth").name == files[1]
    assert measurement_file(checkpoint, "shape", str(data / "b" / "world")).name == files[2]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--data", "none"], "got none, on which texture,shape,disentangle cannot"),
        (["--data", "scan", "--measure", "texture"], "got scan, on which texture cannot"),
        (["--data", "a/truth", "--measure", "disentangle"], "got a/truth, on which disentangle cannot"),
        (["--data", "a/truth", "--measure", "none"], "got a/truth, on which none cannot"),
    ],
)
def test_folders_on_which_nothing_is_measured(data, arguments, what):
    with pytest.raises(ConfigError, match=f"^--data: {what} be measured; expected a folder with truth.npz"):
        measurements(*arguments)


@pytest.mark.parametrize(
    ("argument", "stated"),
    [
        ("runs/x", "runs/x"),
        ("--data", "--data"),
        ("/some/where/truth", "truth"),
        ("/some/a=b", "a=b"),
        ("--data=/some/truth", "--data=truth"),
        ("template_path=/some/a=b", "template_path=a=b"),
        ("training.images=64", "training.images=64"),
    ],
)
def test_commands_are_stated_without_folders_of_the_machine(argument, stated):
    assert _without_folder(argument) == stated
