"""Shards: plain tar files, exact bytes, random access, and what happens to damaged ones."""

import hashlib
import io
import json
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from nl3dmm.data.shards import INDEX_FILE, ShardSet, read_index, write_index, write_shard
from nl3dmm.errors import AssetError, OutputError

SAMPLES, SHARDS = 24, 4


def members(number: int) -> dict[str, bytes]:
    """Of all lengths: empty, a block long, and others."""
    return {"jpg": bytes([number % 251]) * (number % 40 * 97), "mask.png": b"m" * (512 * (number % 3)), "json": b"{}"}


def write(folder: Path, shards: int = SHARDS, each: int = SAMPLES // SHARDS) -> Path:
    cards = []
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        name = f"shard-{shard}.tar"
        with write_shard(folder / name) as writer:
            for number in range(shard * each, (shard + 1) * each):
                writer.add(f"{number:04d}", members(number))
            cards.append(writer.finish(name))
    write_index(folder, cards)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "shards")


def flip_bit(folder: Path, index: int) -> None:
    """Damage the sample in its middle."""
    card = read_index(folder)[index // (SAMPLES // SHARDS)]
    span = card.samples[index % (SAMPLES // SHARDS)]
    data = bytearray((folder / card.name).read_bytes())
    data[span.offset + span.bytes // 2] ^= 4
    (folder / card.name).write_bytes(data)


def test_shards_are_plain_tar_files_in_the_layout_of_webdataset(folder):
    with tarfile.open(folder / "shard-1.tar") as archive:
        files = archive.getmembers()
        assert [file.name for file in files[:4]] == ["0006.jpg", "0006.mask.png", "0006.json", "0007.jpg"]
        assert len(files) == 3 * SAMPLES // SHARDS
        assert {(file.mtime, file.uid, file.gid, file.uname, file.mode) for file in files} == {(0, 0, 0, "", 0o644)}
        for file in files:
            key, name = file.name.split(".", 1)
            assert archive.extractfile(file).read() == members(int(key))[name]
    assert (folder / "shard-1.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_equal_samples_give_equal_bytes(folder, tmp_path):
    other = write(tmp_path / "other")
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_index_knows_counts_sizes_and_checksums(folder):
    cards = read_index(folder)
    assert [len(card.samples) for card in cards] == [6] * 4
    for card in cards:
        data = (folder / card.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (card.bytes, card.sha256)
    assert json.loads((folder / INDEX_FILE).read_text())["samples"] == SAMPLES


def test_every_sample_is_read_at_once(folder):
    shards = ShardSet(folder)
    assert len(shards) == SAMPLES
    for index in (23, 0, 7, 6, 5):
        sample = shards.read(index)
        assert (sample.index, sample.key, sample.members) == (index, f"{index:04d}", members(index))
    assert shards.verify() == []
    assert shards.bad == []


def test_copies_for_workers_read_the_same(folder):
    shards = ShardSet(folder)
    assert pickle.loads(pickle.dumps(shards)).read(9) == shards.read(9)


@pytest.mark.parametrize("seed", range(8))
def test_any_flipped_bit_is_noticed(folder, seed):
    """JPEG itself decodes most of them without an error."""
    generator = random.Random(seed)
    card = read_index(folder)[2]
    span = card.samples[generator.randrange(6)]
    data = bytearray((folder / card.name).read_bytes())
    data[span.offset + generator.randrange(span.bytes)] ^= 1 << generator.randrange(8)
    (folder / card.name).write_bytes(data)
    index, shards = int(span.key), ShardSet(folder)
    assert shards.read(index).index == index + 1
    assert shards.bad == [index]
    assert shards.verify() == ["shard-2.tar"]


def test_damaged_samples_are_replaced_counted_and_listed(folder, tmp_path):
    log = tmp_path / "bad_samples.jsonl"
    flip_bit(folder, 4)
    flip_bit(folder, 5)
    shards = ShardSet(folder, log)
    for _ in range(3):
        assert [shards.read(index).index for index in (3, 4, 5, 6)] == [3, 6, 6, 6]
    assert shards.bad == [4, 5]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["index"], line["key"]) for line in lines] == [(4, "0004"), (5, "0005")]
    assert {line["problem"] for line in lines} == {"its bytes are not those that were written"}


def test_the_last_sample_is_replaced_by_the_first(folder):
    flip_bit(folder, SAMPLES - 1)
    assert ShardSet(folder).read(SAMPLES - 1).index == 0


def test_replacements_do_not_depend_on_what_was_read_before(folder):
    flip_bit(folder, 8)
    fresh, used = ShardSet(folder), ShardSet(folder)
    for index in range(SAMPLES):
        used.read(index)
    assert fresh.read(8) == used.read(8)


def test_too_many_damaged_samples_stop(folder, tmp_path):
    for index in (1, 7, 13, 19):
        flip_bit(folder, index)
    shards = ShardSet(folder, tmp_path / "bad.jsonl")
    for index in (1, 7, 13):
        shards.read(index)
    with pytest.raises(AssetError, match=r"got 4 damaged samples of 24, the last 0019 .*expected at most 3"):
        shards.read(19)


def test_processes_count_together(folder, tmp_path):
    """Each worker meets a part of the samples; what is too much is decided on all."""
    for index in (1, 7, 13, 19):
        flip_bit(folder, index)
    shards = ShardSet(folder, tmp_path / "bad.jsonl")
    workers = [pickle.loads(pickle.dumps(shards)) for _ in range(2)]
    for index in (1, 7, 13):
        for worker in workers:
            worker.read(index)  # the same sample twice counts once
    with pytest.raises(AssetError, match="got 4 damaged"):
        workers[0].read(19)


def test_one_in_a_thousand_may_be_damaged(tmp_path):
    folder = write(tmp_path / "many", 8, 1000)
    shards = ShardSet(folder)
    for index in range(8):
        shards._report([index], "for the test")
    with pytest.raises(AssetError, match="expected at most 8"):
        shards._report([8], "for the test")


def test_a_missing_shard_is_known_at_the_start(folder):
    (folder / "shard-2.tar").unlink()
    with pytest.raises(AssetError, match=r"got 6 damaged samples of 24, .*its shard is missing or too short"):
        ShardSet(folder)


def test_a_missing_shard_of_few_samples_is_replaced(tmp_path):
    folder = write(tmp_path / "small", 10, 2)
    (folder / "shard-3.tar").unlink()
    shards = ShardSet(folder, tmp_path / "bad.jsonl")
    assert shards.bad == [6, 7]
    assert shards.read(6).index == 8
    assert shards.verify() == ["shard-3.tar"]
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_a_shortened_shard_loses_only_its_end(folder):
    span = read_index(folder)[1].samples[4]
    with (folder / "shard-1.tar").open("r+b") as file:
        file.truncate(span.offset)  # at the border of two samples: tar readers see nothing wrong
    shards = ShardSet(folder)
    assert shards.bad == [10, 11]
    assert [shards.read(index).index for index in (9, 10, 11)] == [9, 12, 12]


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(AssetError, match=r"got no index.json; expected a folder of finished shards"):
        ShardSet(tmp_path)


def test_shards_without_samples_are_refused(tmp_path):
    with pytest.raises(AssetError, match="got shards without samples"):
        ShardSet(write(tmp_path / "none", 1, 0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "other", "samples": 0, "shards": []}',
        '{"format": "nl3dmm-shards-1", "samples": 1, "shards": []}',
        '{"format": "nl3dmm-shards-1", "samples": 0, "shards": [{"name": "a.tar"}]}',
        '{"format": "nl3dmm-shards-1", "samples": 1, "shards": '
        '[{"name": "../a.tar", "bytes": 9999, "sha256": "", "samples": [["k", 0, 600, 1]]}]}',
        '{"format": "nl3dmm-shards-1", "samples": 1, "shards": '
        '[{"name": "a.tar", "bytes": 9999, "sha256": "", "samples": [["k", 9500, 600, 1]]}]}',
        '{"format": "nl3dmm-shards-1", "samples": 1, "shards": '
        '[{"name": "a.tar", "bytes": 9999, "sha256": "", "samples": [["k", -1, 600, 1]]}]}',
        '{"format": "nl3dmm-shards-1", "samples": 1, "shards": '
        '[{"name": "a.tar", "bytes": 1e999, "sha256": "", "samples": [["k", 0, 600, 1]]}]}',
        "[" * 100_000,
    ],
)
def test_damaged_indices_are_refused(tmp_path, text):
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(AssetError, match="got a damaged index"):
        read_index(tmp_path)


def test_an_interrupted_shard_leaves_no_file(tmp_path):
    def interrupted() -> None:
        with write_shard(tmp_path / "shard-0.tar") as writer:
            writer.add("0", members(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"), write_shard(tmp_path / "missing" / "s.tar"):
        pass


def test_what_other_tools_need_is_the_tar_file_alone(folder, tmp_path):
    """Samples group by the name up to its first dot."""
    shutil.copy(folder / "shard-0.tar", tmp_path / "alone.tar")
    groups: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "alone.tar").read_bytes()), mode="r|") as stream:
        for file in stream:
            key, name = file.name.split(".", 1)
            groups.setdefault(key, {})[name] = stream.extractfile(file).read()
    assert groups == {f"{number:04d}": members(number) for number in range(6)}


def test_with_no_sound_sample_left_reading_ends(tmp_path):
    """Few damaged samples are replaced by others; where there are none, that is an error and no endless search."""
    with write_shard(tmp_path / "shard-000000.tar") as writer:
        writer.add("0", {"jpg": b"picture", "json": b"{}"})
        card = writer.finish("shard-000000.tar")
    write_index(tmp_path, [card])
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssetError, match="got 1 damaged samples of 1"):
        ShardSet(tmp_path).read(0)
