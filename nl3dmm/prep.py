"""``python -m nl3dmm.prep FOLDER -o OUT``: photos to training data.

Finds the faces of all photos below FOLDER and writes their crops, landmarks and masks as tar shards, a list of what
was taken (manifest.jsonl) and of what was not, with reasons (rejected.jsonl), and a contact sheet of each. Landmark
files beside the photos (same name; .pts, .json or .npy, 68 points) are used before the detector. Stop it at any time,
the same command goes on and ends with the same files.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nl3dmm.cli import Parser, report_errors
from nl3dmm.machine import cores

if TYPE_CHECKING:
    from rich.progress import Progress

    from nl3dmm.data.photo_workers import MakeDetector
    from nl3dmm.data.prepare import Counts

_NO_DETECTOR = "none"
_UNSURE = 0.5  # confidence
_SMALLEST = 8.0  # px


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.prep", __doc__)
    parser.add_argument("folder", type=Path, help="photos (JPEG, PNG, WebP), also in folders below it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for shards, lists and contact sheets")
    text = "own, mediapipe:FILE.task, dlib:FILE.dat, or none: landmark files only (default: own)"
    parser.add_argument("--detector", default="own", help=text)
    parser.add_argument("--size", type=int, default=256, help="side of the stored crops, px (default: 256)")
    parser.add_argument("--min-face", type=float, default=64.0, help="least size of a face, px (default: 64)")
    text = "of the detector; less sure faces down to 0.5 are listed as rejected (default: 0.9 for our own, else 0.5)"
    parser.add_argument("--min-confidence", type=float, help=text)
    parser.add_argument("--min-quality", type=float, default=0.0, help="0 to 1 (default: 0, take all)")
    parser.add_argument("--max-pixels", type=int, default=40_000_000, help="of a photo (default: 40 million)")
    parser.add_argument("--photos-per-shard", type=int, default=512, help="(default: 512)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: all cores)")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from rich.console import Console

    from nl3dmm.config import check_range
    from nl3dmm.data.photo_faces import PrepConfig
    from nl3dmm.data.prepare import prepare_photos

    check_range("--jobs", options.jobs, 1, 1024)
    identity, make_detector = _detector(options)
    config = PrepConfig(
        detector=identity,
        size=options.size,
        min_face=options.min_face,
        min_confidence=_least_confidence(options),
        min_quality=options.min_quality,
        max_pixels=options.max_pixels,
        photos_per_shard=options.photos_per_shard,
    )
    console = Console()
    with _bar(console) as bar:
        task = bar.add_task("preparing", total=None, faces=0, rejected=0)

        def show(counts: "Counts") -> None:
            done, total = counts.photos, counts.total
            bar.update(task, completed=done, total=total, faces=counts.faces, rejected=counts.rejected.total())

        counts = prepare_photos(options.folder, options.output, config, make_detector, options.jobs, show)
    sheets = _draw_sheets(options.folder, options.output, counts)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.rejected.most_common())
    console.print(
        f"{counts.total} photos: {counts.faces} faces taken, {counts.rejected.total()} photos or faces rejected"
        f"{f' ({reasons})' if reasons else ''}\n"
        f"shards, index.json, manifest.jsonl, rejected.jsonl{sheets} are in {options.output.absolute()}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _detector(options: Namespace) -> "tuple[str, MakeDetector | None]":
    """Its name with the hash of its weights, and how to make it.

    It looks for smaller faces and returns less sure ones than are taken, so that these are listed with reasons.
    """
    if options.detector == _NO_DETECTOR:
        return _NO_DETECTOR, None
    from nl3dmm.data.detected_faces import MIN_SIZE
    from nl3dmm.data.detection import detector_identity, load_detector

    smallest, unsure = min(MIN_SIZE, options.min_face), min(_UNSURE, _least_confidence(options))
    make = partial(load_detector, options.detector, max(smallest, _SMALLEST), unsure)
    return detector_identity(options.detector), make


def _least_confidence(options: Namespace) -> float:
    from nl3dmm.data.detected_faces import OWN_CONFIDENCE

    default = OWN_CONFIDENCE if options.detector == "own" else _UNSURE
    return default if options.min_confidence is None else options.min_confidence


def _bar(console) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    found = TextColumn("{task.fields[faces]} faces, {task.fields[rejected]} rejected")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), found, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _draw_sheets(photos: Path, output: Path, counts: "Counts") -> str:
    """Contact sheets of what there is, unless they are there; returns their names."""
    from nl3dmm.data.images import write_png
    from nl3dmm.data.prepare import REJECTED_FILE
    from nl3dmm.data.shards import ShardSet
    from nl3dmm.figures.contacts import accepted_sheet, rejected_sheet

    draw = {}
    if counts.faces:
        draw["accepted.png"] = lambda: accepted_sheet(ShardSet(output))
    if counts.rejected:
        draw["rejected.png"] = lambda: rejected_sheet(photos, output / REJECTED_FILE)
    for name in draw:
        if not (output / name).exists():
            write_png(draw[name](), output / name)
    return "".join(f", {name}" for name in draw)


if __name__ == "__main__":
    sys.exit(main())
