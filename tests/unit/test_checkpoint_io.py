import hashlib
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from nl3dmm.checkpoint_io import VerifiedCheckpointIO, load_checkpoint, save_checkpoint
from nl3dmm.errors import CheckpointError, OutputError


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def state(step: int) -> dict:
    return {"step": step, "weights": {"a": torch.full((50,), float(step))}, "config": {"size": [64, 80]}}


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def write_with_sidecar(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    sidecar(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "run" / "step=1.ckpt"
    save_checkpoint(state(1), path)
    return path


def test_round_trip(path):
    loaded = load_checkpoint(path)
    assert loaded["step"] == 1
    assert loaded["config"] == {"size": [64, 80]}
    assert torch.equal(loaded["weights"]["a"], torch.ones(50))
    assert load_checkpoint(str(path), map_location="meta")["weights"]["a"].is_meta


def test_sidecar_is_what_sha256sum_reads(path):
    assert sidecar(path).read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  step=1.ckpt\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["step=1.ckpt", "step=1.ckpt.sha256"]


def test_overwrite_and_link(path):
    save_checkpoint(state(2), path)
    link = path.parent.parent / "last.ckpt"
    link.symlink_to(path)
    assert load_checkpoint(link)["step"] == 2
    assert len(sidecar(path).read_text().splitlines()) == 1


def test_every_bit_flip_is_noticed(path):
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(data), (200,), generator=generator).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"with sha256 .*; expected .*The file is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncation_is_noticed(path, keep):
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(CheckpointError, match="The file is damaged: copy it again"):
        load_checkpoint(path)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint: got .*none\.ckpt, which cannot be read.*Check the path"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"not a hash", b"\xff\xfe", b"0" * 63 + b"  step=1.ckpt\n"])
def test_missing_or_damaged_sidecar(path, content):
    sidecar(path).unlink() if content is None else sidecar(path).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"without a valid step=1\.ckpt\.sha256.*Copy both files"):
        load_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_is_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Hostile()}, "made.ckpt", _use_new_zipfile_serialization=not legacy)
    path = write_with_sidecar(tmp_path / "a.ckpt", Path("made.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match=r"no plain checkpoint or contains code \(\w+\.mkdir\).*Do not use"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="contains code"):
        VerifiedCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps(Hostile()), b"PK\x03\x04"])
def test_file_that_is_no_checkpoint(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no plain checkpoint or contains code"):
        load_checkpoint(write_with_sidecar(tmp_path / "a.ckpt", content))
    assert not Path("executed").exists()


def test_checkpoint_must_be_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / "made")
    path = write_with_sidecar(tmp_path / "a.ckpt", (tmp_path / "made").read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.ckpt with a list; expected a dict"):
        load_checkpoint(path)


class Config:
    pass


@pytest.mark.parametrize("value", [Config(), lambda: None])
def test_content_that_would_not_load_again_is_refused(path, value):
    with pytest.raises(CheckpointError, match=r"that would not load again \(.*(Config|lambda).*\).*Convert configs"):
        save_checkpoint(state(2) | {"config": value}, path)
    assert load_checkpoint(path)["step"] == 1


def test_folder_that_cannot_be_written(path):
    target = path / "below" / "step=2.ckpt"
    with pytest.raises(OutputError, match=r"output folder: got .*cannot be used"):
        save_checkpoint(state(2), target)
    assert load_checkpoint(path)["step"] == 1


def test_full_disk_keeps_the_old_checkpoint(path):
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"checkpoint: got .*step=1\.ckpt, which cannot be written"):
            save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert load_checkpoint(path)["step"] == 1
    assert len(list(path.parent.iterdir())) == 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(9))
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_interrupted_save_leaves_a_checkpoint_that_loads(path, tmp_path, monkeypatch, function, call):
    """Stop before the n-th flush or rename, with the folder frozen as a kill would leave it."""
    original, calls = getattr(os, function), []

    def stop(*args, **kwargs):
        if len(calls) == call:
            shutil.copytree(path.parent, tmp_path / "frozen")
            raise Killed
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(os, function, stop)
    try:
        save_checkpoint(state(2), path)
        total = {"fsync": 6, "replace": 3}[function]
        assert len(calls) == total <= call
        return
    except Killed:
        monkeypatch.undo()
    frozen = tmp_path / "frozen" / path.name
    assert load_checkpoint(frozen)["step"] in (1, 2)
    save_checkpoint(state(3), frozen)
    assert load_checkpoint(frozen)["step"] == 3
    assert len(sidecar(frozen).read_text().splitlines()) == 1


def test_plugin_saves_loads_and_removes(tmp_path):
    plugin, path = VerifiedCheckpointIO(), tmp_path / "a.ckpt"
    plugin.save_checkpoint(state(4), str(path))
    assert plugin.load_checkpoint(path)["step"] == 4
    plugin.remove_checkpoint(str(path))
    plugin.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"size": [64, 80]})
        self.layer = torch.nn.Linear(3, 1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(12.0).reshape(4, 3), batch_size=2)

    def training_step(self, batch, _index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def trainer(folder: Path, steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=1, monitor="step", mode="max", save_last=True)
        ],
        plugins=[VerifiedCheckpointIO()],
    )


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|exists and is not empty|LeafSpec)")  # Lightning's
def test_trainer_saves_prunes_and_resumes(tmp_path):
    trainer(tmp_path, 4).fit(Line())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=1-step=4.ckpt", "last.ckpt"]
    assert len(list(tmp_path.iterdir())) == 4
    resumed, model = trainer(tmp_path, 6), Line()
    resumed.fit(model, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.global_step == 6
    os.truncate(tmp_path / "last.ckpt", 1000)
    with pytest.raises(CheckpointError, match="The file is damaged"):
        trainer(tmp_path, 8).fit(Line(), ckpt_path=tmp_path / "last.ckpt")
