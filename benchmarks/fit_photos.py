"""Fitting real photos: ``python -m benchmarks.fit_photos MODEL FOLDER -o FILE --sheets OUT``.

FOLDER holds photos and ``landmarks.json``, which lists their faces (``nl3dmm.evaluation.landmark_accuracy``). Nothing
but the photos is given to ``fit_latent``. Per photo: what became of it, the error of the inner 51 landmarks over the
outer-eye distance against other detectors' or people's points, and the photometric error. ``--clip`` names the
subfolder of one person's frames, which are fitted once more with shared latents. Sheets show input, overlay, shape,
albedo and another light; they show people, so they are for looking at, not for keeping.
"""

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import machine
from nl3dmm.data.crop import Crop
from nl3dmm.data.images import write_png
from nl3dmm.errors import Nl3dmmError
from nl3dmm.evaluation.landmark_accuracy import box_overlap, point_error, reference_faces, yaw_of
from nl3dmm.fitting.photos import BATCH, DEFAULT_STEPS, FitFailure, fit_latent
from nl3dmm.geometry.camera import zoom
from nl3dmm.reconstruction import Reconstruction
from nl3dmm.release import load
from nl3dmm.render.scene import render_geometry

_TILE = 168  # px of a sheet's pictures
_ROWS, _COLUMNS = 8, 2
_SAME_FACE = 0.2  # intersection over union
_FRONTAL = 30.0  # degrees of yaw


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_photos", description=__doc__)
    parser.add_argument("model", help="checkpoint, run folder, or 'default'")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--clip", help="subfolder of frames of one person")
    parser.add_argument("--sheets", type=Path, help="folder for pictures to look at")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    trained = load(chosen.model)
    listed = json.loads((chosen.folder / "landmarks.json").read_text(encoding="utf-8"))
    names, results = list(listed), []
    for start in track(range(0, len(names), BATCH), "fitting", transient=True):
        paths = [chosen.folder / name for name in names[start : start + BATCH]]
        results += fit_latent(paths, model=trained, steps=chosen.steps, progress=False)
    rows = {name: _row(result, listed[name]) for name, result in zip(names, results, strict=True)}
    summary = _summary(list(rows.values()))
    if chosen.clip:
        own = {name: result for name, result in zip(names, results, strict=True) if f"/{chosen.clip}/" in f"/{name}"}
        summary["clip"] = _shared(own, chosen, trained, listed)
    if chosen.sheets:
        fitted = {n: r for n, r in zip(names, results, strict=True) if isinstance(r, Reconstruction)}
        _write_sheets(fitted, rows, chosen.sheets)
    print(json.dumps(summary, indent=1))
    if chosen.output:
        command = f"python -m benchmarks.fit_photos {Path(chosen.model).name} FOLDER --steps {chosen.steps}"
        facts = {"machine": {**machine([]), "command": command}, "summary": summary, "photos": rows}
        chosen.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _row(result: Reconstruction | FitFailure, sources: dict) -> dict:
    if isinstance(result, FitFailure):
        return {"status": result.status}
    row = {
        "status": "ok",
        "photometric": round(result.final_error, 4),
        "model": round(result.model_error, 4),
        "start": round(result.start_error, 4),
        "seconds": round(result.seconds, 2),
        "converged": result.converged,
        "warnings": [text.partition(":")[0] for text in result.warnings],
    }
    references = reference_faces(sources)
    if len(references):
        overlap = box_overlap(references, result.landmarks[None])[:, 0]
        reference = references[overlap.argmax()]
    if len(references) and float(overlap.max()) > _SAME_FACE:
        row |= {"nme": round(point_error(result.landmarks, reference), 4), "yaw": round(yaw_of(reference), 1)}
    return row


def _summary(rows: list[dict]) -> dict:
    frontal = [row["nme"] for row in rows if "nme" in row and abs(row["yaw"]) < _FRONTAL]
    turned = [row["nme"] for row in rows if "nme" in row and abs(row["yaw"]) >= _FRONTAL]
    return {
        "photos": len(rows),
        "status": dict(Counter(row["status"] for row in rows)),
        "frontal_faces": len(frontal),
        "frontal_nme_median": _median(frontal),
        "turned_faces": len(turned),
        "turned_nme_median": _median(turned),
        "photometric_median": _median([row["photometric"] for row in rows if "photometric" in row]),
        "model_photometric_median": _median([row["model"] for row in rows if "model" in row]),
        "converged": sum(row.get("converged", False) for row in rows),
        "start_photometric_median": _median([row["start"] for row in rows if "start" in row]),
        "seconds_per_photo": _median([row["seconds"] for row in rows if "seconds" in row]),
    }


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _shared(own: dict, chosen: argparse.Namespace, trained, listed: dict) -> dict:
    """The frames once more, with both latents in common."""
    found = {name: result for name, result in own.items() if isinstance(result, Reconstruction)}
    paths = [chosen.folder / name for name in found]
    results = {}
    for shared in (("albedo",), ("shape", "albedo")):
        together = fit_latent(paths, model=trained, steps=chosen.steps, shared=shared, progress=False)
        alone, joint = ([result.final_error for result in each] for each in (found.values(), together))
        own_model, joint_model = ([result.model_error for result in each] for each in (found.values(), together))
        same = all(
            getattr(result.face.latents, f"{name}_latent").equal(getattr(together[0].face.latents, f"{name}_latent"))
            for result in together
            for name in shared
        )
        results["+".join(shared)] = {
            "frames": len(joint),
            "photometric_alone": round(statistics.mean(alone), 4),
            "photometric_shared": round(statistics.mean(joint), 4),
            "ratio": round(statistics.mean(joint) / statistics.mean(alone), 3),
            "model_ratio": round(statistics.mean(joint_model) / statistics.mean(own_model), 3),
            "identical_latents": same,
            "silhouette_iou": round(statistics.mean(map(_overlap, found.values(), together)), 4),
            "nme_alone": _median([row["nme"] for row in (_row(r, listed[n]) for n, r in found.items())]),
            "nme_shared": _median([_row(r, listed[n])["nme"] for n, r in zip(found, together, strict=True)]),
        }
        if chosen.sheets:
            kept = dict(zip(found, together, strict=True))
            _write_sheets(kept, {n: _row(r, listed[n]) for n, r in kept.items()}, chosen.sheets / "-".join(shared))
    return results


def _overlap(first: Reconstruction, second: Reconstruction) -> float:
    """Intersection over union of what is drawn in the crop."""
    a, b = (result.renderings.final_mask[0] for result in (first, second))
    return float((a & b).sum() / (a | b).sum())


def _write_sheets(results: dict[str, Reconstruction], rows: dict[str, dict], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    strips = [_strip(result, f"{name.rsplit('/')[-1]} {rows[name].get('nme', '')}") for name, result in results.items()]
    page = _ROWS * _COLUMNS
    for number, start in enumerate(range(0, len(strips), page)):
        part = strips[start : start + page]
        part += [torch.ones_like(strips[0])] * (-len(part) % _COLUMNS)
        lines = [torch.cat(part[k : k + _COLUMNS], 2) for k in range(0, len(part), _COLUMNS)]
        write_png(torch.cat(lines, 1), folder / f"sheet{number}.png")


def _strip(result: Reconstruction, title: str) -> Tensor:
    factor = _TILE / result.crop.size
    crop = Crop(result.crop.left, result.crop.top, result.crop.scale * factor, _TILE)
    clay = render_geometry(
        result.geometry.vertices_final, zoom(result.face.camera, factor), result.model.surface, (_TILE, _TILE)
    )[0]
    albedo = F.interpolate(result.albedo[None], (_TILE, _TILE), mode="bilinear", antialias=True)[0]
    try:
        relit = crop.image(result.relight("image_left"))
    except Nl3dmmError:
        relit = torch.zeros_like(clay)
    pictures = [crop.image(result.photo), crop.image(result.overlay), clay, albedo, relit]
    strip = torch.cat(pictures, 2).clamp(0, 1)
    levels = np.ascontiguousarray((strip * 255).byte().permute(1, 2, 0).numpy())
    cv2.putText(levels, title, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 0), 1, cv2.LINE_AA)
    return torch.from_numpy(levels).permute(2, 0, 1).float() / 255


if __name__ == "__main__":
    main()
