"""The bank of faces on disk: round trip, reuse, several processes, kills, unwritable folders."""

import json
import multiprocessing
import os
import pickle
import shutil
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

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


class SlowWorld(SyntheticWorld):
    """Notes in a file how often anybody draws, and takes its time for all but the first chunk."""

    def __init__(self, world: SyntheticWorld, log: Path, seconds: float):
        vars(self).update(vars(world))
        self.log, self.seconds = log, seconds

    def sample(self, indices, *others):
        time.sleep(self.seconds if indices[0] else 0)
        with self.log.open("a") as file:
            file.write(f"{int(indices[0])}\n")
        return super().sample(indices, *others)

    def drawn(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]


def start_drawing(world: SyntheticWorld, cache: Path, barrier=None, seen: Path | None = None):
    """A process that opens a bank of 70 faces, three chunks, and notes what it reads there."""
    process = multiprocessing.get_context("spawn").Process(target=draw, args=(world, cache, barrier, seen), daemon=True)
    process.start()
    return process


def draw(world: SyntheticWorld, cache: Path, barrier, seen: Path | None) -> None:
    torch.set_num_threads(1)
    if barrier is not None:
        barrier.wait(120)
    batch = FaceBank(world, 70, cache).read(torch.arange(70))
    if seen is not None:
        np.savez(seen, image=batch.image, albedo=batch.albedo, mask=batch.mask, vertices=batch.vertices)


def folders(cache: Path) -> list[str]:
    """Without the lock files, which stay."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


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


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Killed])
def test_a_stopped_run_leaves_nothing(small_world, tmp_path, stop):
    def die(done: int, total: int) -> None:
        assert len(folders(tmp_path)) == 1  # partial
        raise stop

    with pytest.raises(stop):
        FaceBank(small_world, 33, tmp_path, die)
    assert folders(tmp_path) == []
    assert len(FaceBank(small_world, 33, tmp_path).read(torch.arange(2)).image) == 2


def test_what_killed_processes_left_vanishes_and_what_living_ones_draw_stays(small_world, tmp_path):
    bank = FaceBank(small_world, 33, tmp_path / "other")
    own, abandoned, drawn = (tmp_path / f"{name}.partial" for name in (bank.folder.name, "bank-0", "bank-1"))
    for partial in (own, abandoned, drawn):
        partial.mkdir()
        np.save(partial / "image.npy", np.zeros(3))
    with FileLock(tmp_path / "bank-1.lock"):
        assert FaceBank(small_world, 33, tmp_path).read(torch.tensor([0])).image.max() > 0
    assert folders(tmp_path) == sorted([bank.folder.name, drawn.name, "other"])


def test_processes_that_start_together_draw_once_and_read_the_same(small_world, tmp_path):
    world, cache = SlowWorld(small_world, tmp_path / "log", 0.7), tmp_path / "cache"
    barrier = multiprocessing.get_context("spawn").Barrier(2)
    files = [tmp_path / f"{number}.npz" for number in range(2)]
    processes = [start_drawing(world, cache, barrier, file) for file in files]
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    assert world.drawn() == [0, 32, 64]
    bank = FaceBank(world, 70, cache)
    assert folders(cache) == [bank.folder.name]
    first, second = (np.load(file) for file in files)
    for name in ("image", "albedo", "mask", "vertices"):
        assert first[name].tobytes() == second[name].tobytes(), name
    assert first["image"].tobytes() == bank.read(torch.arange(70)).image.numpy().tobytes()
    assert world.drawn() == [0, 32, 64]


def test_when_the_drawer_is_killed_another_process_draws(small_world, tmp_path):
    world, cache = SlowWorld(small_world, tmp_path / "log", 1000), tmp_path / "cache"
    drawer = start_drawing(world, cache)
    while not world.log.exists():
        assert drawer.is_alive()
        time.sleep(0.05)
    threading.Timer(0.5, drawer.kill).start()
    bank = FaceBank(small_world, 70, cache)
    drawer.join()
    assert drawer.exitcode not in (0, None)
    assert folders(cache) == [bank.folder.name]
    assert bank.read(torch.tensor([69])).image.max() > 0


def test_a_pickled_bank_is_small_and_opens_its_files_again(bank):
    content = pickle.dumps(bank)
    assert len(content) < len(pickle.dumps(bank.world)) + 1000 < 5e6
    again, rows = pickle.loads(content), torch.tensor([34, 0])
    for name in ("image", "albedo", "mask", "landmarks", "vertices"):
        assert getattr(again.read(rows), name).equal(getattr(bank.read(rows), name)), name


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


def test_a_full_disk_is_an_error(small_world, tmp_path):
    faces = shutil.disk_usage(tmp_path).free // _bytes(small_world, 1) * 2
    with pytest.raises(OutputError, match=r"data.cache: cannot write .*No space left .*with room for \d+ MB"):
        FaceBank(small_world, faces, tmp_path)
    assert folders(tmp_path) == []


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
    assert folders(tmp_path) == [folder.name]


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NL3DMM_CACHE", raising=False)
    assert default_cache() == tmp_path / "nl3dmm"
    monkeypatch.setenv("NL3DMM_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
