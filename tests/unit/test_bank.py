"""The bank of faces on disk: round trip, reuse, kills, unwritable folders."""

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch

from nl3dmm.data.bank import FaceBank, _bytes, default_cache
from nl3dmm.errors import OutputError
from nl3dmm.synthetic.world import SyntheticWorld

COUNT = 35  # more than one chunk


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bank(small_world, cache) -> FaceBank:
    return FaceBank(small_world, COUNT, cache)


def variant(world: SyntheticWorld, **changes) -> SyntheticWorld:
    other = object.__new__(SyntheticWorld)
    vars(other).update(vars(world) | changes)
    return other


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


def test_round_trip_at_8_bits(bank, small_world):
    indices = torch.tensor([34, 0, 31, 32])
    read, drawn = bank.read(indices), small_world.sample(indices)
    for name in ("image", "albedo"):
        torch.testing.assert_close(getattr(read, name), getattr(drawn, name), atol=0.5 / 255 + 2e-5, rtol=0)
    for name in ("landmarks", "sh_coefficients", "vertices"):
        torch.testing.assert_close(getattr(read, name), getattr(drawn, name), atol=1e-4, rtol=0)
    for name, value in vars(drawn.camera).items():
        torch.testing.assert_close(getattr(read.camera, name), value, atol=1e-4, rtol=1e-5)
    assert read.mask.equal(drawn.mask)
    assert read.index.equal(indices)


def test_reads_do_not_depend_on_the_batch(bank):
    both, single = bank.read(torch.tensor([3, 33])), bank.read(torch.tensor([33]))
    for name in ("image", "albedo", "mask", "landmarks", "sh_coefficients"):
        assert getattr(both, name)[1:].equal(getattr(single, name)), name
    torch.testing.assert_close(both.vertices[1:], single.vertices, atol=2e-5, rtol=0)


def test_what_is_read_may_be_changed(bank):
    first = bank.read(torch.tensor([2]))
    first.landmarks.zero_()
    first.image.zero_()
    assert bank.read(torch.tensor([2])).landmarks.abs().sum() > 0


def test_length_and_card(bank):
    assert len(bank) == COUNT
    card = json.loads((bank.folder / "card.json").read_text())
    assert card["size"] == COUNT
    assert card["world"]["yaw"] == bank.world.config.yaw


def test_a_second_bank_reuses_the_files(bank, small_world, cache):
    drawn = []
    again = FaceBank(small_world, COUNT, cache, lambda done, total: drawn.append(done))
    assert again.folder == bank.folder
    assert drawn == []
    assert again.read(torch.arange(3)).image.equal(bank.read(torch.arange(3)).image)


def test_progress_counts_to_the_end(small_world, tmp_path):
    calls = []
    FaceBank(small_world, 33, tmp_path, lambda done, total: calls.append((done, total)))
    assert calls == [(32, 33), (33, 33)]


@pytest.mark.parametrize("change", ["seed", "image_size", "config"])
def test_another_world_is_another_bank(small_world, tmp_path, change):
    changes = {"seed": 5, "image_size": 32, "config": replace(small_world.config, yaw=1.0)}
    bank = FaceBank(small_world, 2, tmp_path)
    other = FaceBank(variant(small_world, **{change: changes[change]}), 2, tmp_path)
    assert other.folder != bank.folder
    assert not other.read(torch.arange(2)).landmarks.equal(bank.read(torch.arange(2)).landmarks)


def test_another_size_or_template_is_another_bank(bank, small_world, small_template, cache):
    assert FaceBank(small_world, 2, cache).folder != bank.folder
    moved = replace(small_template, vertices=small_template.vertices + 1)
    assert FaceBank(variant(small_world, template=moved), COUNT, cache).folder != bank.folder


def test_a_killed_run_leaves_no_bank(small_world, tmp_path):
    def die(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        FaceBank(small_world, 33, tmp_path, die)
    assert list(tmp_path.iterdir()) == []
    assert len(FaceBank(small_world, 33, tmp_path).read(torch.arange(2)).image) == 2


def test_what_a_hard_kill_leaves_behind_is_not_read(small_world, tmp_path):
    """kill -9 cannot clean up: a partial folder of another process stays, and is no bank."""
    name = FaceBank(small_world, 2, tmp_path / "other").folder.name
    partial = tmp_path / f"{name}.99999.partial"
    partial.mkdir()
    np.save(partial / "image.npy", np.zeros(3))
    bank = FaceBank(small_world, 2, tmp_path)
    assert bank.folder.name == name
    assert bank.read(torch.arange(2)).image.max() > 0


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_bank_is_an_error(small_world, tmp_path, damage):
    path = FaceBank(small_world, 2, tmp_path).folder / "image.npy"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:1000] if damage == "truncated" else b"something else")
    with pytest.raises(OutputError, match=r"data.cache: got a damaged bank file .*image.npy .*Delete its folder"):
        FaceBank(small_world, 2, tmp_path)


def test_unwritable_cache_is_an_error(small_world, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"data.cache: cannot write .*expected a writable folder with room for"):
        FaceBank(small_world, 2, tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_cache_is_an_error(small_world, tmp_path):
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    try:
        with pytest.raises(OutputError, match=r"data.cache: cannot write"):
            FaceBank(small_world, 2, tmp_path)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_the_room_asked_for_is_the_room_taken(small_world, tmp_path):
    files = list(FaceBank(small_world, 3, tmp_path).folder.glob("*.npy"))
    headers = 128 * len(files)
    assert sum(file.stat().st_size for file in files) - headers == _bytes(small_world, 3)


def test_a_bank_that_another_process_finished_first_is_used(small_world, tmp_path):
    folder = FaceBank(small_world, 2, tmp_path).folder
    expected = FaceBank(small_world, 2, tmp_path).read(torch.arange(2)).image
    away = folder.rename(tmp_path / "away")

    def other_process(done: int, total: int) -> None:
        away.rename(folder)

    image = FaceBank(small_world, 2, tmp_path, other_process).read(torch.arange(2)).image
    assert image.equal(expected)
    assert list(tmp_path.iterdir()) == [folder]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NL3DMM_CACHE", raising=False)
    assert default_cache() == tmp_path / "nl3dmm"
    monkeypatch.setenv("NL3DMM_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
