"""Do other people's detectors see faces in the synthetic world? In two steps, as MediaPipe needs another environment.

``python -m benchmarks.human draw FOLDER [TEMPLATE FILE]`` draws 200 random faces of the default world as PNG files;
``python -m benchmarks.human find FOLDER...``, where ``mediapipe`` 0.10.21 is installed (its wheel holds the models),
counts in how many of them a face is found.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

FACES, FIRST, SIZE, UV_SIZE = 200, 5000, 224, (192, 224)
_CONFIDENCE = 0.5  # MediaPipe's default


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.human", description=__doc__)
    parser.add_argument("step", choices=("draw", "find"))
    parser.add_argument("folders", nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "human.json")
    chosen = parser.parse_args()
    if chosen.step == "draw":
        draw(*chosen.folders)
        return
    results = {Path(folder).name: dict(find(Path(folder))) for folder in chosen.folders}
    facts = {"mediapipe": version("mediapipe"), "python": platform.python_version(), "confidence": _CONFIDENCE}
    facts |= {"faces": FACES, "first_index": FIRST, "px": SIZE, "uv": UV_SIZE}
    facts["command"] = "python -m benchmarks.human draw FOLDER [TEMPLATE FILE]; ... find FOLDER..."
    chosen.output.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def draw(folder: str, template: str = "embedded", file: str | None = None) -> None:
    import torch

    from nl3dmm.assets.load import load_template
    from nl3dmm.data.images import write_png
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    Path(folder).mkdir(parents=True, exist_ok=True)
    world = SyntheticWorld(load_template(template, file, UV_SIZE), WorldConfig(), SIZE)
    for indices in torch.arange(FIRST, FIRST + FACES).split(20):
        for index, image in zip(indices.tolist(), world.sample(indices).image, strict=True):
            write_png(image, Path(folder) / f"{index}.png")


def find(folder: Path) -> Iterator[tuple[str, str]]:
    """Name of a detector, and in how many pictures it finds a face."""
    import cv2
    from mediapipe.python import solutions  # pyright: ignore[reportMissingImports]

    detection, mesh = solutions.face_detection.FaceDetection, solutions.face_mesh.FaceMesh
    detectors = {
        "short range": detection(model_selection=0, min_detection_confidence=_CONFIDENCE),
        "full range": detection(model_selection=1, min_detection_confidence=_CONFIDENCE),
        "mesh": mesh(static_image_mode=True, min_detection_confidence=_CONFIDENCE),
    }
    pictures = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(folder.glob("*.png"))]
    for name, detector in detectors.items():
        answers = [detector.process(picture) for picture in pictures]
        faces = [getattr(answer, "multi_face_landmarks" if name == "mesh" else "detections") for answer in answers]
        yield name, f"{sum(bool(each) for each in faces)} of {len(pictures)}"


if __name__ == "__main__":
    main()
