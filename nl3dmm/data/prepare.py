"""A folder of photos to shards: in parallel, and resumable at any moment with the same bytes in the end.

Photos are sorted by name and cut into runs of equal length, one shard each. A shard is written whole and noted in
``parts``; what is noted is not done again. When all are there they move out of ``parts`` and the index is written.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from nl3dmm.data.photo_faces import LANDMARK_SUFFIXES, PhotoFaces, PrepConfig, rejection
from nl3dmm.data.photo_workers import MakeDetector, faces_of_photos
from nl3dmm.data.shards import INDEX_FILE, ShardCard, read_index, write_index, write_shard
from nl3dmm.errors import ImageError, OutputError
from nl3dmm.outputs import atomic_path, prepare_output_folder

MANIFEST_FILE, REJECTED_FILE, SETTINGS_FILE = "manifest.jsonl", "rejected.jsonl", "settings.json"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VERSION = 1  # bump when the same photos give other samples
_PARTS = "parts"
_DEFAULTS = PrepConfig()


@dataclass
class Counts:
    """What a run has done so far."""

    total: int
    photos: int = 0
    faces: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # photos and faces by reason

    def add(self, photos: int, faces: int, rejections: Iterable[dict[str, Any]]) -> None:
        self.photos += photos
        self.faces += faces
        self.rejected.update(line["reason"] for line in rejections)


Progress = Callable[[Counts], None]


def prepare_photos(
    folder: str | Path,
    output: str | Path,
    config: PrepConfig = _DEFAULTS,
    make_detector: MakeDetector | None = None,
    jobs: int = 0,
    progress: Progress = lambda counts: None,
) -> Counts:
    """Write shards, ``manifest.jsonl``, ``rejected.jsonl`` and the index; nothing where they are complete already.

    Args:
        make_detector: called once in each worker, for photos without a landmark file; ``config.detector`` names it.
        jobs: worker processes; 0 works in this one.

    Raises:
        ImageError: no photo in the folder, or a worker process died.
        OutputError: the output cannot be written, is in use, or belongs to other photos or settings.
    """
    photos, folder = find_photos(folder, output), Path(folder)
    output = prepare_output_folder(output)
    counts, length = Counts(len(photos)), config.photos_per_shard
    with _locked(output):
        _check_settings(output, _settings(folder, photos, config))
        if (output / INDEX_FILE).exists():
            _count_finished(output, counts)
        else:
            parts = _Parts(output, [photos[i : i + length] for i in range(0, len(photos), length)])
            missing = parts.missing()
            names = [name for number in missing for name in parts.photos[number]]
            with faces_of_photos(folder, names, config, make_detector, jobs) as results:
                _write_parts(parts, missing, results, counts, progress)
            _publish(parts)
        shutil.rmtree(output / _PARTS, ignore_errors=True)
    return counts


def find_photos(folder: str | Path, output: str | Path) -> list[str]:
    """Names of all photos below a folder, sorted; not those in hidden folders or in ``output``.

    Raises:
        ImageError: there is none.
        OutputError: ``output`` is the folder itself, whose contact sheets would count as photos.
    """
    found, output = [], Path(output).resolve()
    if Path(folder).resolve() == output:
        raise OutputError(f"output folder: got {output}, the folder of the photos; expected another. Choose one.")
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and Path(place, name).resolve() != output]
        photos = [Path(place, name) for name in files if Path(name).suffix.lower() in PHOTO_SUFFIXES and name[0] != "."]
        found += [path.relative_to(folder).as_posix() for path in photos if path.is_file()]
    if not found:
        raise ImageError(
            f"{folder}: got no photo; expected a folder with {', '.join(PHOTO_SUFFIXES)} files. Check the path."
        )
    return sorted(found)


class _Parts:
    """The shards of a run that is not complete: which photos go into each, and what is noted of those written."""

    def __init__(self, output: Path, photos: Sequence[Sequence[str]]):
        self.output, self.photos = output, photos
        self.folder = prepare_output_folder(output / _PARTS)

    def missing(self) -> list[int]:
        return [number for number in range(len(self.photos)) if self.read(number) is None]

    def read(self, number: int) -> dict[str, Any] | None:
        """Card, manifest, rejections and first photos of a shard; None if it is not written."""
        try:
            part = json.loads(self._note(number).read_text(encoding="utf-8"))
            part["card"] = ShardCard.from_json(part["card"])
            is_there = self._shard(number).stat().st_size == part["card"].bytes
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return part if is_there else None

    def write(self, number: int, results: Iterable[PhotoFaces], seen: dict[str, str]) -> None:
        manifest, rejected, first = [], [], {}
        with write_shard(self.folder / _name(number)) as shard:
            for position, photo in enumerate(results):
                for sample in photo.samples:
                    face = sample.record["face"]
                    key = f"{number:06d}{position:06d}-{face:03d}"
                    manifest.append({"key": key, "shard": _name(number), **sample.record})
                    line = _line(manifest[-1]).encode()
                    shard.add(key, {"jpg": sample.image, "mask.png": sample.mask, "json": line})
                rejected += photo.rejections
                if seen.get(photo.sha256) == photo.photo:
                    first[photo.sha256] = photo.photo
            card = shard.finish(_name(number))
        part = {"card": card.to_json(), "manifest": manifest, "rejected": rejected, "first": first}
        with _new_text(self._note(number)) as note:
            json.dump(part, note)

    def move_shard(self, number: int) -> None:
        """To where it belongs, if it is not there."""
        os.replace(self._shard(number), self.output / _name(number))

    def _note(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _shard(self, number: int) -> Path:
        """Where it is: runs that were stopped at the very end have moved some."""
        path = self.folder / _name(number)
        return path if path.exists() else self.output / _name(number)


def _write_parts(
    parts: _Parts, missing: Sequence[int], results: Iterator[PhotoFaces], counts: Counts, progress: Progress
) -> None:
    """Write the missing shards, in order: the first of equal photos is kept."""
    seen: dict[str, str] = {}
    results = _counted(_without_repetitions(results, seen), counts, progress)
    for number, photos in enumerate(parts.photos):
        if number in missing:
            parts.write(number, islice(results, len(photos)), seen)
        elif part := parts.read(number):
            seen.update(part["first"])
            counts.add(len(photos), len(part["manifest"]), part["rejected"])
            progress(counts)


def _without_repetitions(results: Iterable[PhotoFaces], seen: dict[str, str]) -> Iterator[PhotoFaces]:
    """A photo is repeated once the same bytes have given faces; before, its landmark file may be the better one."""
    for photo in results:
        if photo.samples:
            seen.setdefault(photo.sha256, photo.photo)
        if seen.get(photo.sha256, photo.photo) != photo.photo:
            line = rejection(photo.photo, None, photo.sha256, "duplicate", f"same bytes as {seen[photo.sha256]}")
            photo = replace(photo, samples=(), rejections=(line,))
        yield photo


def _counted(results: Iterable[PhotoFaces], counts: Counts, progress: Progress) -> Iterator[PhotoFaces]:
    for photo in results:
        counts.add(1, len(photo.samples), photo.rejections)
        progress(counts)
        yield photo


def _publish(parts: _Parts) -> None:
    """Lists and shards to their places; the index last, it says that all is there."""
    cards = []
    with _new_text(parts.output / MANIFEST_FILE) as manifest, _new_text(parts.output / REJECTED_FILE) as rejected:
        for number in range(len(parts.photos)):
            part = parts.read(number)
            if part is None:
                raise OutputError(
                    f"{parts.folder}: got no shard {number}, which was written; expected nobody else to change this "
                    "folder. Run the command again."
                )
            manifest.writelines(map(_line, part["manifest"]))
            rejected.writelines(map(_line, part["rejected"]))
            cards.append(part["card"])
    for number in range(len(parts.photos)):
        parts.move_shard(number)
    write_index(parts.output, cards)


@contextmanager
def _new_text(path: Path) -> Iterator[TextIO]:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def _count_finished(output: Path, counts: Counts) -> None:
    faces = sum(len(card.samples) for card in read_index(output))
    with (output / REJECTED_FILE).open(encoding="utf-8") as lines:
        counts.add(counts.total, faces, map(json.loads, lines))


def _settings(folder: Path, photos: Sequence[str], config: PrepConfig) -> dict[str, Any]:
    """All that the output is a function of; photos and landmark files by name and size."""
    digest = hashlib.sha256()
    for name in photos:
        for suffix in (Path(name).suffix, *LANDMARK_SUFFIXES):
            path = (folder / name).with_suffix(suffix)
            size = path.stat().st_size if path.is_file() else -1
            digest.update(f"{name}\0{suffix}\0{size}\0".encode("utf-8", "surrogateescape"))
    return {"version": VERSION, **asdict(config), "photos": len(photos), "files": digest.hexdigest()}


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    path = output / SETTINGS_FILE
    if not path.exists():
        with _new_text(path) as text:
            json.dump(settings, text, indent=1)
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{path}: got a damaged file ({error}); expected settings. Delete {output}.") from error
    differing = [name for name in settings if stored.get(name) != settings[name]]
    if differing:
        raise OutputError(
            f"output folder: got {output}, which was made with other {', '.join(differing)}; expected the same photos "
            "and settings to go on with it. Choose another folder or delete that one."
        )


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    try:
        with FileLock(output / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise OutputError(
            f"output folder: got {output}, in which another process works; expected one at a time. Wait for it."
        ) from error


def _name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _line(record: dict[str, Any]) -> str:
    """JSON without line breaks; equal records give equal text."""
    return json.dumps(record, separators=(",", ":")) + "\n"
