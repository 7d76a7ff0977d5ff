"""Shards: samples in plain tar files (WebDataset's layout: ``KEY.jpg``, ``KEY.json``) with an index of where each is.

The index holds what a tar file cannot tell: how many samples there are, where each one lies, and checksums. So any
sample can be read at once, and a damaged one is known before it is decoded, which JPEG itself does not notice.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from nl3dmm.errors import AssetError
from nl3dmm.outputs import atomic_path

INDEX_FILE = "index.json"
FORMAT = "nl3dmm-shards-1"
_ACCEPTABLE_SHARE, _ACCEPTABLE_FEW = 0.001, 3  # damaged samples that a run goes on with
_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_NAME, _SIZE = 100, slice(124, 135)  # of a header; tarfile reads all of it, which takes as long as a mask
_CHUNK = 2**20
_DELETE = "Make the shards again, or restore the file from a copy."


@dataclass(frozen=True)
class Span:
    """Where a sample's members lie in its shard, headers included."""

    key: str
    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True)
class ShardCard:
    """What the index knows of a shard."""

    name: str
    bytes: int
    sha256: str
    samples: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        spans = [[span.key, span.offset, span.bytes, span.crc32] for span in self.samples]
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256, "samples": spans}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ShardCard":
        """Raises: ValueError, TypeError, KeyError: not what ``to_json`` writes."""
        card = cls(
            str(values["name"]),
            int(values["bytes"]),
            str(values["sha256"]),
            tuple(Span(str(key), int(offset), int(size), int(crc)) for key, offset, size, crc in values["samples"]),
        )
        if Path(card.name).name != card.name:
            raise ValueError(f"shard name {card.name!r}")
        if any(
            span.offset < 0 or span.bytes < _BLOCK or span.offset + span.bytes > card.bytes for span in card.samples
        ):
            raise ValueError(f"a sample outside {card.name}")
        return card


class ShardWriter:
    """Appends samples to a stream; equal samples give equal bytes."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self._spans: list[Span] = []

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """One sample; a member ``jpg`` becomes the file ``KEY.jpg``."""
        block = b"".join(_member(f"{key}.{name}", content) for name, content in members.items())
        self._spans.append(Span(key, self._bytes, len(block), crc32(block)))
        self._write(block)

    def finish(self, name: str) -> ShardCard:
        """Write the end of the archive."""
        self._write(bytes(_padding(self._bytes + 2 * _BLOCK, _RECORD) + 2 * _BLOCK))
        return ShardCard(name, self._bytes, self._sha256.hexdigest(), tuple(self._spans))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._sha256.update(data)
        self._bytes += len(data)


@dataclass(frozen=True)
class Sample:
    """``index`` is that of another sample where the one asked for is damaged."""

    index: int
    key: str
    members: dict[str, bytes]


class ShardSet:
    """All samples of a folder's shards, by number; each is checked when it is read.

    A damaged sample is replaced by the next sound one, in every process alike, counted and listed. Copies in other
    processes open the files themselves.
    """

    def __init__(self, folder: str | Path, bad_samples: str | Path | None = None):
        """Read the index and compare the sizes of the files with it.

        Args:
            bad_samples: JSON lines file for what is damaged, shared by all processes that read.

        Raises:
            AssetError: no or a damaged index, no samples, or too many of them in missing or shortened files.
        """
        self.folder = Path(folder)
        self.cards = read_index(self.folder)
        self._log = Path(bad_samples) if bad_samples is not None else None
        self._bad: set[int] = set()
        spans = [(number, *vars(span).values()) for number, card in enumerate(self.cards) for span in card.samples]
        if not spans:
            raise AssetError(f"{self.folder}: got shards without samples; expected at least one. {_DELETE}")
        self._keys = np.array([span[1] for span in spans])
        self._spans = np.array([(span[0], *span[2:]) for span in spans], dtype=np.int64)
        self.cards = [ShardCard(card.name, card.bytes, card.sha256, ()) for card in self.cards]  # arrays are smaller
        sizes = np.array([_size(self.folder / card.name) for card in self.cards])
        shard, offset, size, _ = self._spans.T
        self._report(np.flatnonzero(offset + size > sizes[shard]).tolist(), "its shard is missing or too short")

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def bad(self) -> list[int]:
        """Samples that this process found damaged."""
        return sorted(self._bad)

    def read(self, index: int) -> Sample:
        """The sample, or the next sound one.

        Raises:
            AssetError: more than 0.1 % of the samples, and more than 3, are damaged.
        """
        while True:
            if index not in self._bad:
                try:
                    return Sample(index, str(self._keys[index]), self._members(index))
                except (OSError, ValueError) as problem:
                    self._report([index], str(problem))
            index = (index + 1) % len(self)

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Names of the shards whose bytes are not those that were written."""
        damaged = []
        for number, card in enumerate(self.cards):
            path = self.folder / card.name
            if _size(path) != card.bytes or _sha256(path) != card.sha256:
                damaged.append(card.name)
            progress(number + 1, len(self.cards))
        return damaged

    def _members(self, index: int) -> dict[str, bytes]:
        """Raises: OSError, ValueError: the file cannot be read, or the sample in it is damaged."""
        shard, offset, size, checksum = self._spans[index].tolist()
        with (self.folder / self.cards[shard].name).open("rb") as file:
            file.seek(offset)
            block = file.read(size)
        if len(block) != size or crc32(block) != checksum:
            raise ValueError("its bytes are not those that were written")
        return dict(_split(block))

    def _report(self, indices: Sequence[int], problem: str) -> None:
        """List what was found and stop when it is too much."""
        if not indices:
            return
        self._bad.update(indices)
        count, limit = len(self._bad), max(_ACCEPTABLE_FEW, int(_ACCEPTABLE_SHARE * len(self)))
        if self._log is not None:
            lines = [{"index": i, "key": str(self._keys[i]), "problem": problem} for i in indices]
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            count = len(set(self._log.read_text(encoding="utf-8").splitlines()))
        if count > limit or len(self._bad) >= len(self):  # with none left, reading would look for one for ever
            raise AssetError(
                f"{self.folder}: got {count} damaged samples of {len(self)}, the last {self._keys[indices[-1]]} "
                f"({problem}); expected at most {limit}. {_DELETE}"
            )


@contextmanager
def write_shard(path: str | Path) -> Iterator[ShardWriter]:
    """A shard at ``path``, complete or absent; call ``finish`` inside the block.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        yield ShardWriter(stream)


def write_index(folder: str | Path, cards: Sequence[ShardCard]) -> None:
    """Raises: OutputError: the file cannot be written."""
    samples = sum(len(card.samples) for card in cards)
    rows = ",\n".join(json.dumps(card.to_json(), separators=(",", ":")) for card in cards)
    with atomic_path(Path(folder) / INDEX_FILE) as temporary:
        temporary.write_text(
            f'{{"format": "{FORMAT}", "samples": {samples}, "shards": [\n{rows}\n]}}\n', encoding="utf-8"
        )


def read_index(folder: str | Path) -> list[ShardCard]:
    """Raises: AssetError: no index, or not one that ``write_index`` wrote."""
    path = Path(folder) / INDEX_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        cards = [ShardCard.from_json(card) for card in values["shards"]]
        if sum(len(card.samples) for card in cards) != values["samples"]:
            raise ValueError("another number of samples than it says")
    except FileNotFoundError as error:
        raise AssetError(
            f"{folder}: got no {INDEX_FILE}; expected a folder of finished shards. "
            "Run python -m nl3dmm.prep PHOTOS -o FOLDER, again if it was stopped."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise AssetError(f"{path}: got a damaged index ({error}); expected format {FORMAT}. {_DELETE}") from error
    return cards


def _member(name: str, content: bytes) -> bytes:
    """Header, content and padding of a file in a tar archive; nothing in them depends on time, user or machine."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(_padding(len(content), _BLOCK))


def _split(block: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of a sample, named without its key."""
    position = 0
    while position < len(block):
        start = position + _BLOCK
        name, size = block[position:start][:_NAME].rstrip(b"\0").decode(), int(block[position:start][_SIZE], 8)
        yield name.partition(".")[2], block[start : start + size]
        position = start + size + _padding(size, _BLOCK)


def _padding(length: int, unit: int) -> int:
    return -length % unit


def _size(path: Path) -> int:
    """Bytes; -1 without the file."""
    return path.stat().st_size if path.is_file() else -1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
