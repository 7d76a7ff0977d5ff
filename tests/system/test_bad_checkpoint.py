"""Bad checkpoints and bad command lines: one line on stderr, exit code 1, and nothing changed on disk."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nl3dmm import doctor, evaluate, fit
from nl3dmm import train as train_command
from nl3dmm.assets.storage import save_template
from nl3dmm.checkpoint import load_system
from nl3dmm.checkpoint_io import load_checkpoint, save_checkpoint
from nl3dmm.errors import CheckpointError

PHOTO = Path(__file__).parents[1] / "data" / "astronaut.jpg"
COMMANDS = ("train", "fit", "evaluate", "doctor", "export_networks")


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_missing_checkpoint_says_how_to_train(fit_error, tmp_path, error):
    missing = tmp_path / "nothing"
    expected = f"model: got {missing}, where no checkpoint is"
    for text in (fit_error(PHOTO, model=missing), error(evaluate.main([str(missing)]))):
        assert text.startswith(expected)
        assert text.endswith("Train one with: python -m nl3dmm.train")


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [_flip_bit, _truncate])
def test_damaged_checkpoint(damaged_run, fit_error, train, error, damage):
    last = damaged_run / "checkpoints" / "last.ckpt"
    damage(last)
    before = files_in(damaged_run)
    for text in (
        fit_error(PHOTO, model=damaged_run),
        error(evaluate.main([str(damaged_run)])),
        error(train(damaged_run)),
    ):
        assert text.startswith(f"checkpoint: got {last} with sha256")
        assert "The file is damaged: copy it again or use the previous checkpoint." in text
    assert files_in(damaged_run) == before


def test_checkpoint_without_its_sha256(damaged_run, fit_error):
    (damaged_run / "checkpoints" / "last.ckpt.sha256").unlink()
    assert "without a valid last.ckpt.sha256" in fit_error(PHOTO, model=damaged_run)


def test_checkpoint_that_is_none(fit_error, tmp_path):
    file = tmp_path / "face.ckpt"
    shutil.copy(PHOTO, file)
    assert "without a valid face.ckpt.sha256" in fit_error(PHOTO, model=file)


def test_checkpoint_of_another_template(damaged_run, trained, fit_error, error):
    other = replace(trained.template, vertices=trained.template.vertices * 1.01)
    save_template(other, damaged_run / "template.safetensors")
    for text in (fit_error(PHOTO, model=damaged_run), error(evaluate.main([str(damaged_run)]))):
        assert f"got a checkpoint of template 'embedded' ({trained.template.hash[:12]})" in text
        assert f"({other.hash[:12]})" in text
        assert "Use the template it was trained with" in text
    with pytest.raises(CheckpointError, match="got a checkpoint of template"):
        load_system(damaged_run, template=other)


def _without_hash(card: dict) -> None:
    del card["template_hash"]


def _future_config(card: dict) -> None:
    card["config"]["colour_depth"] = 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_hash, "without nl3dmm's description of format 1"),
        (_future_config, "its config is not one of this version (stored config: Key 'colour_depth'"),
    ],
)
def test_checkpoint_of_another_version(damaged_run, fit_error, change, message):
    last = damaged_run / "checkpoints" / "last.ckpt"
    state = load_checkpoint(last)
    change(state["nl3dmm"])
    save_checkpoint(state, last)
    text = fit_error(PHOTO, model=damaged_run)
    assert text.startswith(str(last))
    assert message in text


def test_damaged_template_of_a_run(damaged_run, fit_error):
    _flip_bit(damaged_run / "template.safetensors")
    assert fit_error(PHOTO, model=damaged_run).startswith(f"template {damaged_run / 'template.safetensors'}: got")


def test_run_without_its_template_copy_builds_it_again(damaged_run, trained):
    (damaged_run / "template.safetensors").unlink()
    assert load_system(damaged_run).template.hash == trained.template.hash


@pytest.mark.parametrize("command", [train_command, fit, evaluate, doctor])
def test_unknown_option(command, error):
    text = error(command.main(["--colour"]))
    assert "--colour" in text or "required" in text
    assert text.endswith("--help.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faces", "0"], "faces: got 0"),
        (["--steps", "-1"], "latent steps: got -1"),
        (["--faces", "some"], "invalid int value: 'some'"),
        (["--camera", "fisheye"], "invalid choice: 'fisheye'"),
    ],
)
def test_wrong_evaluation(run, error, arguments, message):
    assert message in error(evaluate.main([str(run.folder), *arguments]))


HELP = """
import runpy, sys
module = sys.argv[1]
sys.argv = [module, "--help"]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as stop:
    heavy = sorted({"torch", "lightning", "numba", "omegaconf", "wandb", "cv2"} & sys.modules.keys())
    print("exit", stop.code, heavy)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_instant(command, tmp_path):
    """Exit code 0 and none of the imports that take seconds."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, f"nl3dmm.{command}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.startswith(f"usage: python -m nl3dmm.{command}"), done.stderr
    assert done.stdout.splitlines()[-1] == "exit 0 []"
