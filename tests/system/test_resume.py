"""A run that was stopped and continued is the run that was never stopped, bit for bit."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback
from photo_folders import synthetic_faces, write_photo

import nl3dmm.training.run
from nl3dmm.checkpoint import load_system
from nl3dmm.checkpoint_io import load_checkpoint
from nl3dmm.data.photo_faces import PrepConfig
from nl3dmm.data.prepare import prepare_photos
from nl3dmm.training.module import build_trainer

STEPS, BORDER = 16, 6  # pre-training ends after step 6; checkpoints are written every 4 steps
Order = dict[int, list[int]]


class Watch(Callback):
    """Notes which samples each step sees; presses Ctrl-C after step ``stop_after``."""

    def __init__(self, order: Order, stop_after: int | None):
        self.order, self.stop_after = order, stop_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.order[trainer.global_step] = batch.index.tolist()
        if trainer.global_step == self.stop_after:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def watched(train) -> Callable[..., tuple[int, Order]]:
    """Train without the figures at the end; returns the exit code and the samples of the steps that were done."""

    def run(folder: Path, *overrides: str, stop_after: int | None = None) -> tuple[int, Order]:
        order: Order = {}

        def build(config, callbacks, first_step):
            return build_trainer(config, [*callbacks, Watch(order, stop_after)], first_step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nl3dmm.training.run, "build_trainer", build)
            patch.setattr(nl3dmm.training.run, "_summarise", lambda *_: None)
            return train(folder, *overrides), order

    return run


@pytest.fixture(scope="module")
def straight(watched, tmp_path_factory) -> tuple[Path, Order]:
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    code, order = watched(folder)
    assert code == 0
    assert sorted(order) == list(range(1, STEPS + 1))
    return folder, order


def last_step(folder: Path) -> int:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def differences(left, right, name: str = "") -> list[str]:
    """Names of the values in two nested states that are not equal, bit for bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = list(left.keys() | right.keys())
        return [found for key in keys for found in differences(left.get(key), right.get(key), f"{name}.{key}")]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if torch.equal(left, right) else [name]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            found for i, pair in enumerate(zip(left, right, strict=True)) for found in differences(*pair, f"{name}.{i}")
        ]
    return [] if left == right else [name]


def test_stopped_twice_equals_never_stopped(straight, watched, tmp_path, capsys):
    """Stops before and after the border of the stages, each one step after a checkpoint."""
    folder, order = straight
    code, first = watched(tmp_path, stop_after=5)
    assert code == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")
    assert last_step(tmp_path) == 4 < BORDER
    code, second = watched(tmp_path, stop_after=9)
    assert code == 130
    assert last_step(tmp_path) == 8 > BORDER
    code, third = watched(tmp_path)
    assert code == 0
    assert (min(first), min(second), min(third)) == (1, 5, 9)
    assert first | second | third == order
    assert second[5] == first[5]
    stopped, expected = (load_checkpoint(path / "checkpoints" / "last.ckpt") for path in (tmp_path, folder))
    assert stopped["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(stopped[part], expected[part]) == []
    assert metrics(tmp_path) == metrics(folder)


def test_photos_join_in_fine_tuning_and_go_on(watched, small_template, tmp_path):
    """Half of the fine-tuning steps see prepared photos, which have no labels; stopped or not; all are augmented."""
    faces, folder = synthetic_faces(small_template, 5, size=96), tmp_path / "photos"
    for index in range(5):
        write_photo(folder / f"{index}.jpg", faces.image[index], faces.landmarks[index : index + 1])
    prepare_photos(folder, tmp_path / "prepared", PrepConfig(size=64, min_face=32.0))
    options = (f"data.photos={tmp_path / 'prepared'}", "data.photo_share=0.5")
    options += ("augment.synthetic.mirror=0.5", "augment.synthetic.objects=0.5", "augment.photos.blur=0.5")
    assert watched(tmp_path / "straight", *options)[0] == 0
    labelled = [row["terms/shape"] != "nan" for row in metrics(tmp_path / "straight")]
    assert labelled == [True] * BORDER + [True, False] * ((STEPS - BORDER) // 2)
    assert all(float(row["terms/landmark"]) > 0 for row in metrics(tmp_path / "straight"))
    assert watched(tmp_path / "stopped", *options, stop_after=9)[0] == 130
    assert watched(tmp_path / "stopped", *options)[0] == 0
    stopped, expected = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("stopped", "straight")
    )
    assert differences(stopped["state_dict"], expected["state_dict"]) == []
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_averages_and_both_optimisers_go_on(watched, tmp_path):
    """With EMA and the encoder's own step: averaged and raw weights, both Adams and what was warned of."""
    options = ("training.ema=0.9", "training.encoder_step=true", "loss.landmark_reaches=encoder")
    options += ("training.images=80",)  # 10 steps, checkpoints after 4 and 8
    code, order = watched(tmp_path / "straight", *options)
    assert (code, sorted(order)) == (0, list(range(1, 11)))  # steps are batches, however often an optimiser steps
    assert watched(tmp_path / "stopped", *options, stop_after=6)[0] == 130
    assert last_step(tmp_path / "stopped") == 4
    code, rest = watched(tmp_path / "stopped", *options)
    assert (code, min(rest)) == (0, 5)
    stopped, expected = (
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("stopped", "straight")
    )
    for part in ("state_dict", "raw_weights", "optimizer_states", "encoder_optimizer_state", "lr_schedulers"):
        assert differences(stopped[part], expected[part]) == []
    assert stopped["callbacks"]["HealthMonitor"] == expected["callbacks"]["HealthMonitor"]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    used = dict(load_system(tmp_path / "stopped").system.named_parameters())
    averages = {name: stopped["state_dict"][f"system.{name}"] for name in used}
    assert differences({name: value.detach() for name, value in used.items()}, averages) == []
    assert len(differences(averages, {name: stopped["raw_weights"][f"system.{name}"] for name in used})) > len(used) / 2
    drawn, again = (sorted((tmp_path / name / "panels").iterdir()) for name in ("straight", "stopped"))
    assert [file.name for file in drawn] == ["step-000010.png"]
    assert drawn[0].read_bytes() == again[0].read_bytes()


def test_interrupt_leaves_the_process_able_to_be_interrupted():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_comparison_notices_one_bit(straight):
    folder, _ = straight
    state, other = (load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for _ in range(2))
    name = next(name for name, value in other.items() if value.is_floating_point() and value.dim() == 1)
    other[name].view(torch.int32)[0] ^= 1
    assert differences(state, other) == [f".{name}"]


def test_finished_run_is_not_trained_again(straight, watched):
    folder, _ = straight
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, order = watched(folder)
    assert (code, order) == (0, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_config_in_the_same_folder_is_refused(straight, watched, capsys):
    folder, _ = straight
    before = (folder / "config.yaml").read_bytes()
    code, order = watched(folder, "seed=3", "training.learning_rate=0.01")
    assert (code, order) == (1, {})
    error = capsys.readouterr().err
    assert error.startswith(f"error: output: got {folder}, which holds a run with other values of seed, training;")
    assert (folder / "config.yaml").read_bytes() == before


def test_used_folder_with_resume_false_is_refused(straight, watched, capsys):
    folder, _ = straight
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    code, order = watched(folder, "resume=false")
    assert (code, order) == (1, {})
    assert "which holds a run; expected an empty folder with resume=false" in capsys.readouterr().err
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
