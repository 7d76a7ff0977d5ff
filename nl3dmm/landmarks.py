"""``python -m nl3dmm.landmarks train|detect|measure``: our own face and landmark detector."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nl3dmm.cli import Parser, report_errors
from nl3dmm.errors import Nl3dmmError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from nl3dmm.data.detected_faces import DetectedFaces

_COMMANDS = {
    "train": "train on the synthetic world alone; writes landmarks.safetensors and its card",
    "detect": "find the faces of photos; writes NAME.json for read_landmarks and NAME.landmarks.png",
    "measure": "compare with the landmarks.json of a folder of photos",
}


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in ([], ["-h"], ["--help"]):
        print(f"{__doc__}\n" + "\n".join(f"  {name:8} {text}" for name, text in _COMMANDS.items()))
        return 0
    if words[0] not in _COMMANDS:
        raise Nl3dmmError(f"arguments: got {words[0]!r}; expected one of {', '.join(_COMMANDS)}. Choose one.")
    return {"train": _train, "detect": _detect, "measure": _measure}[words[0]](words[1:])


def _parser(command: str) -> Parser:
    return Parser(f"python -m nl3dmm.landmarks {command}", _COMMANDS[command])


def _add_detector(parser: Parser) -> None:
    text = "own, mediapipe:PATH.task, dlib:PATH.dat, or weights of own training, PATH.safetensors (default: own)"
    parser.add_argument("--detector", default="own", help=text)
    parser.add_argument("--min-size", type=float, default=40.0, help="px of the smallest faces (default: 40)")


def _train(words: list[str]) -> int:
    parser = _parser("train")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; a stopped run there goes on")
    text = "embedded, or the path of a template or ICT file; may be repeated (default: embedded)"
    parser.add_argument("--template", action="append", metavar="NAME", help=text)
    parser.add_argument("--faces", type=int, default=12_000, help="synthetic faces (default: 12000)")
    parser.add_argument("--pictures", type=int, default=14_000, help="dressed pictures of them (default: 14000)")
    parser.add_argument("--steps", type=int, default=2900, help="training steps (default: 2900)")
    parser.add_argument("--batch-size", type=int, default=96, help="crops per step (default: 96)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse(words)
    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.data.bank import default_cache
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.training.landmark_run import LandmarkRun, run_landmark_training
    from nl3dmm.training.landmarks import LandmarkTraining

    training = LandmarkTraining(
        steps=options.steps, batch_size=options.batch_size, seed=options.seed, workers=options.workers
    )
    templates = tuple(options.template or ["embedded"])
    run = LandmarkRun(templates, options.faces, options.pictures, training=training)
    folder, console = prepare_output_folder(options.output), Console()
    with Progress(console=console) as bar:
        task = bar.add_task("")
        path = run_landmark_training(
            run,
            folder,
            default_cache(),
            f"python -m nl3dmm.landmarks train {_portable(options, templates)}",
            lambda stage, done, total, text: bar.update(
                task, description=f"{stage} {text}", completed=done, total=total
            ),
        )
    console.print(f"weights: {path}\nNext: python -m nl3dmm.landmarks detect PHOTO -o OUT --detector {path}")
    return 0


def _portable(options: Namespace, templates: tuple[str, ...]) -> str:
    """The options without folders of this machine."""
    names = " ".join(f"--template {Path(name).name}" for name in templates)
    numbers = f"--faces {options.faces} --pictures {options.pictures} --steps {options.steps}"
    return f"-o OUT {names} {numbers} --batch-size {options.batch_size} --seed {options.seed}"


def _detect(words: list[str]) -> int:
    parser = _parser("detect")
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    _add_detector(parser)
    options = parser.parse(words)
    from nl3dmm.data.detection import detect_landmarks
    from nl3dmm.data.images import read_image, write_png
    from nl3dmm.outputs import atomic_path, prepare_output_folder

    stems = [photo.stem for photo in options.photos]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise OutputError(f"photos: got several of the name {repeated[0]!r}; expected different names. Split the call.")
    detector = _detector(options)
    folder = prepare_output_folder(options.output)
    for photo in options.photos:
        image = read_image(photo)
        faces = detect_landmarks(image, detector, options.min_size)
        with atomic_path(folder / f"{photo.stem}.json") as temporary:
            temporary.write_text(json.dumps(_as_json(faces)), encoding="utf-8")
        write_png(_drawn(image, faces), folder / f"{photo.stem}.landmarks.png")  # never the photo's own name
        print(f"{photo.name}: {len(faces)} face(s)")
    print(f"landmarks and pictures are in {folder}")
    return 0


def _measure(words: list[str]) -> int:
    parser = _parser("measure")
    parser.add_argument("folder", type=Path, help="photos with landmarks.json")
    _add_detector(parser)
    options = parser.parse(words)
    from nl3dmm.evaluation.landmark_accuracy import measure_folder

    measured = measure_folder(options.folder, _detector(options))
    for face in measured.faces:
        if face.size > 80 and face.error is None:
            print(f"not found: {face.photo}, {face.size:.0f} px, yaw {face.yaw:.0f}")
    for photo, count in measured.false_positives.items():
        if count:
            print(f"made up: {count} in {photo}")
    print("\nfaces with boxes over 80 px; errors in % of the outer eye corners' distance, inner 51 points")
    for name, value in measured.summary().items():
        print(f"{name:26} {value:.4g}")
    return 0


def _detector(options: Namespace):
    from nl3dmm.data.detection import load_detector
    from nl3dmm.data.own_detector import OwnDetector, load_network

    if options.detector.endswith(".safetensors"):
        return OwnDetector(load_network(Path(options.detector)), options.min_size)
    return load_detector(options.detector, options.min_size)


def _as_json(faces: "DetectedFaces") -> dict:
    """For ``read_landmarks``, which counts JSON from the first pixel's centre."""
    return {
        "landmarks": (faces.landmarks - 0.5).round(decimals=2).tolist(),
        "boxes": (faces.boxes - 0.5).round(decimals=2).tolist(),
        "confidence": faces.confidence.tolist(),
        "source": faces.source,
    }


def _drawn(image: "Tensor", faces: "DetectedFaces") -> "Tensor":
    import cv2
    import torch

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    for points, box in zip(faces.landmarks, faces.boxes.tolist(), strict=True):
        radius = max(1, round((box[2] - box[0]) / 80))
        for column, row in points.tolist():
            cv2.circle(pixels, (int(column), int(row)), radius, (0, 255, 0), -1, cv2.LINE_AA)
        left, top, right, bottom = (int(value) for value in box)
        cv2.rectangle(pixels, (left, top), (right, bottom), (255, 60, 0), radius)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    sys.exit(main())
