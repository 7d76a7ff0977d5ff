"""The work of ``python -m nl3dmm.fit``: which photos, what becomes of each, and where that is written."""

import errno
import glob
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.folders import landmarks_beside, list_photos
from nl3dmm.data.images import ImageSource, read_image
from nl3dmm.data.video import is_video, read_frames
from nl3dmm.errors import ImageError, OutputError, ShapeError
from nl3dmm.fitting.located_face import Box, PhotoInput
from nl3dmm.fitting.photos import BATCH, FitFailure, FitPlan, fit_located, locate_faces
from nl3dmm.machine import peak_memory_gib
from nl3dmm.outputs import atomic_path
from nl3dmm.reconstruction import Reconstruction
from nl3dmm.report import ReportEntry, ReportMesh, write_report

STATUS_FILE, REPORT_FILE = "status.json", "report.html"
_REPORTED = 200  # faces with pictures in the report; all are in the status file


@dataclass(frozen=True)
class NamedPhoto:
    """A photo and the name of what is written of it."""

    name: str
    given: PhotoInput

    def seen_from(self, distance_mm: float) -> "NamedPhoto":
        """Taken at this distance."""
        return replace(self, given=replace(self.given, distance_mm=distance_mm))


def find_photos(
    sources: Sequence[str],
    frames: int,
    output: Path,
    landmarks: Path | None = None,
    box: Box | None = None,
    mask: Path | None = None,
) -> list[NamedPhoto]:
    """Files, folders, patterns and videos -> photos with different names; landmark files beside them are used.

    Args:
        frames: of each video.
        output: what lies in it is left out: it was written by an earlier run.
        landmarks, box, mask: of one photo.

    Raises:
        ImageError: nothing there, or landmarks, box or mask for several photos.
    """
    found = [photo for source in sources for path in _expand(source) for photo in _photos_of(path, frames)]
    photos = [(name, given) for name, given in found if not _lies_in(given.image, output)]
    if not photos:
        raise ImageError(f"photos: got none outside {output}; expected some. Choose another output folder.")
    if landmarks or box or mask:
        if len(photos) != 1:
            raise ImageError(
                f"--landmarks, --box, --mask: got one for {len(photos)} photos; expected one photo. Put landmark files "
                "beside the photos, with their names."
            )
        (name, given), hidden = photos[0], None if mask is None else read_image(mask).mean(0) > 0.5
        if box and not landmarks:
            given = replace(given, landmarks=None)  # what is said counts, not what lies beside the photo
        known = {"landmarks": landmarks, "box": box, "mask": hidden}
        photos = [(name, replace(given, **{key: value for key, value in known.items() if value is not None}))]
    return _with_names(photos)


def _lies_in(image: ImageSource, folder: Path) -> bool:
    return isinstance(image, Path) and folder.absolute() in image.absolute().parents


def _with_names(photos: Sequence[tuple[str, PhotoInput]]) -> list[NamedPhoto]:
    """Different ones, also where capitals do not count."""
    taken, named = {STATUS_FILE, REPORT_FILE}, []
    for stem, given in photos:
        name = next(name for name in _numbered(stem) if name.casefold() not in taken)
        taken.add(name.casefold())
        named.append(NamedPhoto(name, given))
    return named


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in itertools.count(2))


def _expand(source: str) -> list[Path]:
    """A pattern -> what it matches; anything else is the path that it names."""
    if not glob.has_magic(source) or Path(source).exists():
        return [Path(source)]
    found = sorted(glob.glob(source, recursive=True))
    if not found:
        raise ImageError(f"{source}: got no such photos; expected a file, a folder or a pattern. Check the path.")
    return [Path(path) for path in found]


def _photos_of(path: Path, frames: int) -> list[tuple[str, PhotoInput]]:
    if path.is_dir():
        return [(item.photo.stem, PhotoInput(item.photo, item.landmarks)) for item in list_photos(path)]
    if is_video(path):
        return [
            (f"{path.stem}-{number:06d}", PhotoInput(frame, label=f"{path}, frame {number}"))
            for number, frame in read_frames(path, frames)
        ]
    return [(path.stem, PhotoInput(path, landmarks_beside(path)))]


class FitJob:
    """Fits photos batch by batch; each is written as soon as it is done, and the status with it."""

    def __init__(self, photos: Sequence[NamedPhoto], folder: Path, trained: TrainedSystem, plan: FitPlan):
        self._photos, self._folder, self._trained, self._plan = photos, folder, trained, plan
        self._console = Console()
        self._status: list[dict[str, Any]] = []
        self._entries: list[ReportEntry] = []
        self._is_full = False  # the disk

    @property
    def fitted(self) -> int:
        return sum(line["status"] == "ok" for line in self._status)

    @property
    def only_failure(self) -> str | None:
        """What is wrong with the only photo, if anything is."""
        return self._status[0].get("message") if len(self._photos) == 1 and self._status else None

    def run(self) -> None:
        """Fit all photos; what is wrong with one is in the status.

        Raises:
            OutputError: the disk is full, or the status cannot be written.
        """
        self._write_status()  # an earlier run's is no longer true, nor is its report
        (self._folder / REPORT_FILE).unlink(missing_ok=True)
        size = len(self._photos) if self._plan.shared else BATCH
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("fitting", total=len(self._photos))
            for start in range(0, len(self._photos), size):
                chunk = self._photos[start : start + size]

                def advance(step: int, steps: int, loss: float, start: int = start, count: int = len(chunk)) -> None:
                    bar.update(task, completed=start + count * step / steps)

                faces = locate_faces([photo.given for photo in chunk], self._trained)
                done = len(self._status)
                for position, result in fit_located(faces, self._trained, self._plan, advance):
                    self._keep(chunk[position].name, result)
                order = {photo.name: number for number, photo in enumerate(chunk)}
                self._status[done:] = sorted(self._status[done:], key=lambda line: order[line["name"]])
                bar.update(task, completed=start + len(chunk))
                self._write_status()

    def close(self) -> None:
        """Status, report and last lines of what has been done."""
        if not self._status:
            return
        for line in self._status if not self.only_failure else ():
            self._console.print(_printed(line), highlight=False, soft_wrap=True, markup=False)
        self._write_status()
        left_out = len(self._status) - len(self._entries)
        title = f"nl3dmm fit: {len(self._entries)} of {len(self._status)} photos" if left_out else "nl3dmm fit"
        with suppress(OutputError) if self._is_full else nullcontext():  # then it may be too large, and run() says why
            write_report(self._folder / REPORT_FILE, title, self._entries)
        if self.only_failure:
            return
        written = [name for name in (REPORT_FILE, STATUS_FILE) if (self._folder / name).is_file()]
        self._console.print(
            f"{self.fitted} of {len(self._photos)} fitted, peak memory {peak_memory_gib():.2f} GiB\n"
            f"{', '.join(written)} and the faces' files are in {self._folder}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )

    def _keep(self, name: str, result: Reconstruction | FitFailure) -> None:
        """Write a face, and note what became of it.

        Raises:
            OutputError: the disk is full.
        """
        if isinstance(result, Reconstruction):
            folder = self._folder if len(self._photos) == 1 else self._folder / name
            try:
                result.save_folder(folder)
            except (ShapeError, OutputError) as error:  # one face is no reason to lose all others
                kind = "not_finite" if isinstance(error, ShapeError) else "not_written"
                result = FitFailure(result.source, kind, str(error), result.warnings)
                self._is_full = _is_full_disk(error)
        line: dict[str, Any] = {"name": name, "source": result.source, "status": result.status}
        line |= {"warnings": list(result.warnings)}
        if isinstance(result, FitFailure):
            line |= {"message": result.message}
        else:
            line |= {
                "folder": "." if len(self._photos) == 1 else name,
                "photometric_l21_start": result.start_error,
                "photometric_l21": result.final_error,
                "photometric_l21_model": result.model_error,
                "landmark_source": result.landmark_source,
                "converged": result.converged,
                "seconds": round(result.seconds, 2),
            }
        self._status.append(line)
        if len(self._entries) < _REPORTED:
            self._entries.append(_entry(line, result))
        if self._is_full and isinstance(result, FitFailure):
            raise OutputError(result.message)  # no other face would find room

    def _write_status(self) -> None:
        facts = {"model": str(self._trained.path), "steps": self._plan.steps, "shared": list(self._plan.shared)}
        facts |= {"photos": len(self._photos), "done": len(self._status), "fitted": self.fitted}
        with atomic_path(self._folder / STATUS_FILE) as temporary:
            temporary.write_text(json.dumps({**facts, "results": self._status}, indent=1) + "\n", encoding="utf-8")


def _is_full_disk(error: Exception) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def _entry(line: Mapping[str, Any], result: Reconstruction | FitFailure) -> ReportEntry:
    """What the report shows of a photo."""
    name, warned = line["name"], tuple(line["warnings"])
    if isinstance(result, FitFailure):
        return ReportEntry(name, result.status, result.message, warned, {}, None, {}, None)
    numbers = {
        "photometric": result.final_error,
        "of the encoder": result.start_error,
        "seconds": result.seconds,
        "converged": "yes" if result.converged else "no",
    }
    encoding = result.model.config.shading_space
    mesh = ReportMesh(result.vertices, result.triangles, result.uv, result.albedo, result.vertex_shading, encoding)
    return ReportEntry(name, result.status, "", warned, numbers, result.panel, result.losses, mesh)


def _printed(line: dict[str, Any]) -> str:
    if line["status"] != "ok":
        return f"{line['name']}: {line['status']}: {line['message']}"
    names = {"encoder": "photometric_l21_start", "model": "photometric_l21_model", "with detail": "photometric_l21"}
    errors = ", ".join(f"{line[key]:.3f} ({name})" for name, key in names.items())
    errors = f"mean colour error {errors}, landmarks {line['landmark_source']}"
    warned = "".join(f"; warning: {warning}" for warning in line["warnings"])
    return f"{line['name']}: {errors}, {line['seconds']:.1f} s{warned}"
