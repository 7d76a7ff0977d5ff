"""Preparing a folder of real photos with our own detector: ``python -m benchmarks.photos FOLDER``.

FOLDER holds photos and ``landmarks.json``, which lists their faces (``nl3dmm.evaluation.landmark_accuracy``). The
photos are copied without the landmark files beside them. Figures only: no photo, and nothing made from one, is kept.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import machine
from nl3dmm.data.prepare import MANIFEST_FILE, REJECTED_FILE
from nl3dmm.evaluation.landmark_accuracy import box_overlap, reference_faces
from nl3dmm.prep import main as prep

_LARGE = 80.0  # px
_SAME_FACE = 0.4  # intersection over union
_RESULT = Path(__file__).parent / "results" / "photos.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=_RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    listed = json.loads((chosen.folder / "landmarks.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        photos, output = Path(temporary) / "photos", Path(temporary) / "out"
        for name in listed:
            (photos / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(chosen.folder / name, photos / name)
        started, cpu = time.perf_counter(), _cpu()
        if prep([str(photos), "-o", str(output), "--jobs", "1"]):
            sys.exit("error: the command failed")
        seconds, cpu = time.perf_counter() - started, _cpu() - cpu
        results = {
            "photos": len(listed),
            "seconds": round(seconds, 1),
            "photos_per_second": round(len(listed) / seconds, 2),
            "photos_per_cpu_second": round(len(listed) / cpu, 2),
            f"faces_over_{_LARGE:.0f}_px": dict(Counter(_fates(listed, output))),
            "all": _totals(output),
        }
    facts = {**machine([]), "command": "python -m benchmarks.photos FOLDER"}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def _fates(listed: dict, output: Path) -> Iterator[str]:
    """What became of every listed face: taken, rejected with a reason, or not found."""
    taken = _by_photo(output / MANIFEST_FILE, _photo_landmarks)
    rejected = _by_photo(output / REJECTED_FILE, lambda line: line["box"] and torch.tensor(line["box"]).view(2, 2))
    for name, sources in listed.items():
        for face in reference_faces(sources):
            if float((face.amax(0) - face.amin(0)).amax()) <= _LARGE:
                continue
            if any(_is_same(face, points) for points, _ in taken.get(name, [])):
                yield "taken"
            else:
                found = [line for box, line in rejected.get(name, []) if box is not None and _is_same(face, box)]
                yield f"rejected: {found[0]['reason']}" if found else "not found"


def _photo_landmarks(line: dict) -> Tensor:
    matrix = torch.tensor(line["photo_from_crop"])
    return torch.tensor(line["landmarks"]) @ matrix[:, :2].T + matrix[:, 2]


def _is_same(face: Tensor, points: Tensor) -> bool:
    """``points``: landmarks, or two corners of a box."""
    corners = torch.stack([points.amin(0), points.amax(0)]).repeat(34, 1)
    return float(box_overlap(face[None], corners[None])) > _SAME_FACE


def _by_photo(path: Path, points) -> dict[str, list[tuple[Tensor | None, dict]]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        name: [(points(line), line) for line in lines if line["photo"] == name]
        for name in {line["photo"] for line in lines}
    }


def _totals(output: Path) -> dict[str, int]:
    with (output / REJECTED_FILE).open(encoding="utf-8") as lines:
        reasons = Counter(f"rejected: {json.loads(line)['reason']}" for line in lines)
    with (output / MANIFEST_FILE).open(encoding="utf-8") as lines:
        return {"taken": sum(1 for _ in lines), **reasons}


def _cpu() -> float:
    """Seconds of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
