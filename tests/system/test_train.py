"""Training from the command line: what a run leaves behind, what it prints, what stops it."""

import csv
import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nl3dmm.checkpoint import load_system
from nl3dmm.checkpoint_io import load_checkpoint
from nl3dmm.config import load_config
from nl3dmm.data.bank import FaceBank, default_cache
from nl3dmm.data.images import read_image
from nl3dmm.evaluation.accuracy import training_world
from nl3dmm.settings import RunConfig
from nl3dmm.train import main

STEPS, PRETRAIN_STEPS = 200, 140


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bank_copy(trained, tmp_path) -> Path:
    """A copy of the tiny run's bank in a cache of its own, to be damaged."""
    bank = FaceBank(training_world(trained), trained.config.data.samples, default_cache())
    return shutil.copytree(bank.folder, tmp_path / "cache" / bank.folder.name)


def test_checkpoints_are_proven_by_their_sha256(run):
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    checkpoints = {"last.ckpt", "step-000100.ckpt", "step-000200.ckpt"}
    assert names == checkpoints | {f"{name}.sha256" for name in checkpoints}
    for name in checkpoints:
        file = run.folder / "checkpoints" / name
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.with_name(f"{name}.sha256").read_text().startswith(digest)


def test_last_checkpoint_is_the_end_of_the_run(run, trained):
    assert trained.step == STEPS
    assert trained.template.hash == load_system(run.folder / "checkpoints" / "step-000200.ckpt").template.hash
    assert not trained.system.training


def test_stored_config_loads_back(run, tiny_config, trained):
    stored = load_config(RunConfig, [run.folder / "config.yaml"])
    assert stored == trained.config
    assert stored.training.images == 1600
    assert stored.output == str(run.folder)


def test_every_step_has_finite_terms_of_its_stage(run):
    rows = metrics(run.folder)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    for row in rows:
        values = {name: float(value) for name, value in row.items() if value}
        assert all(math.isfinite(value) for value in values.values())
        assert ("terms/photo_proxy_final" in values) == (int(row["step"]) >= PRETRAIN_STEPS)
        assert values["gradient_norm"] > 0
        assert values["health/shape_spread"] > 0
        assert ("health/shading_low" in values) == (int(row["step"]) >= PRETRAIN_STEPS)


def test_losses_of_both_stages_fall(run):
    rows = metrics(run.folder)
    loss = [float(row["loss"]) for row in rows]
    assert sum(loss[PRETRAIN_STEPS - 20 : PRETRAIN_STEPS]) < 0.6 * sum(loss[:20])
    photo = [float(row["terms/photo_proxy_final"]) for row in rows[PRETRAIN_STEPS:]]
    assert sum(photo[-10:]) < 0.9 * sum(photo[:10])  # two batches are all 16 faces


def test_the_last_step_is_saved(train, tmp_path):
    """15 steps with a checkpoint every 4: the last three count too."""
    assert train(tmp_path / "run", "training.images=120") == 0
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 15


def test_panels_are_pictures(run):
    files = sorted((run.folder / "panels").iterdir())
    assert [file.name for file in files] == ["step-000100.png", "step-000200.png"]
    picture = read_image(files[-1])
    assert picture.shape[-1] == 8 * (48 + 2)
    assert picture.std() > 0.1
    assert not torch.equal(picture, read_image(files[0]))


def test_last_line_says_what_to_type_next(run):
    last = run.printed.strip().splitlines()[-1]
    assert "python -m nl3dmm.evaluate" in last
    assert "python -m nl3dmm.fit PHOTO --model" in last
    assert str(run.folder) in run.printed


def test_printed_table_keeps_its_columns(run):
    lines = [line for line in run.printed.splitlines() if line.startswith(("mean_face", "encoder"))]
    assert len(lines) == 2
    assert all(len(line) == 12 + 6 * 18 for line in lines)


def test_nothing_temporary_is_left(run):
    names = {path.name for path in run.folder.iterdir()}
    expected = {"checkpoints", "config.yaml", "metrics.csv", "panels", "template.json", "template.safetensors"}
    assert names == expected
    assert not list(run.folder.rglob(".nl3dmm-*"))


def test_print_config_trains_nothing(tiny_config, tmp_path, capsys):
    assert main(["-c", str(tiny_config), "--print-config", f"output={tmp_path / 'run'}"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(RunConfig, [printed]).training.steps == 16
    assert not (tmp_path / "run").exists()


def test_wandb_offline_needs_neither_account_nor_network(train, tmp_path):
    assert train(tmp_path / "run", "logging.wandb=offline", "training.images=16") == 0
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert next(iter(folder.glob("run-*.wandb"))).stat().st_size > 0
    assert len(metrics(tmp_path / "run")) == 2


def test_non_finite_labels_stop_the_run_and_are_named(train, bank_copy, tmp_path, capsys):
    file = bank_copy / "sh_coefficients.npy"
    np.lib.format.open_memmap(file, "r+")[5] = np.nan
    assert train(tmp_path / "run", f"data.cache={bank_copy.parent}") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: loss at step")
    assert "'light': nan" in error
    assert "5" in error.partition("for samples")[2].partition("]")[0]
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_damaged_bank_says_what_to_delete(train, bank_copy, tmp_path, capsys):
    file = bank_copy / "image.npy"
    file.write_bytes(file.read_bytes()[:1000])
    assert train(tmp_path / "run", f"data.cache={bank_copy.parent}") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: data.cache: got a damaged bank file {file}")
    assert "Delete its folder" in error
