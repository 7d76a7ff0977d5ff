"""Fitting pictures of which everything is known: ``python -m benchmarks.fitting MODEL --data FOLDER --ict FILE``.

The pictures alone are given to ``fit_latent``: it finds faces and landmarks itself. Per face and number of steps:

* ``photo``: mean colour distance (RGB in [0, 1]) over the true face, where an uncovered pixel counts as black;
  ``photo_model``: the same without the free residual of albedo, which copies the picture;
* ``nme``: mean distance of the inner 51 landmarks over the outer-eye distance, against the truth;
* ``shape_mm``: mean distance of the narrow face's vertices to the true surface after similarity alignment, and
  ``shape_ratio``, its ratio to the mean shape's;
* ``albedo_psnr``: dB over visible skin, up to one colour (a factor per channel); ``detail_recovered``: the part of the
  true high-pass albedo there that the estimate holds (``nl3dmm.evaluation.detail``).
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import trimesh
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.report import machine
from nl3dmm.assets.load import load_template
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.truth import TruthFaces
from nl3dmm.evaluation.accuracy import OUTER_EYES
from nl3dmm.evaluation.detail import detail_region, detail_scores
from nl3dmm.evaluation.latent_search import INNER
from nl3dmm.fitting.photos import FitFailure, fit_latent
from nl3dmm.geometry.similarity import similarity_aligned
from nl3dmm.losses.pixels import masked_mean, pixel_distance
from nl3dmm.reconstruction import Reconstruction
from nl3dmm.release import load
from nl3dmm.render.uv import unwrap_photo
from nl3dmm.types import FaceBatch

_SIZE = 224  # px of the pictures
_CANDIDATES = 24  # triangles with the nearest centres, among which the nearest point lies
_BARS = {"photo": 0.05, "nme": 0.04, "shape_ratio": 0.75, "albedo_psnr": 22.0}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitting", description=__doc__)
    parser.add_argument("model", help="checkpoint, run folder, or 'default'")
    parser.add_argument("--data", type=Path, required=True, help="folder with truth.npz and pictures (ICT topology)")
    parser.add_argument("--ict", type=Path, required=True, help="ICT file of these faces")
    parser.add_argument("--faces", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 50, 100, 200])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    trained = load(chosen.model)
    template = load_template("ict", chosen.ict, trained.template.uv_size)
    results = measure(trained, template, chosen)
    _show(results["mean"])
    if chosen.output:
        numbers = " ".join(map(str, chosen.steps))
        command = f"python -m benchmarks.fitting {Path(chosen.model).name} --faces {chosen.faces} --steps {numbers}"
        facts = {"machine": {**machine([]), "command": command}, "bars": _BARS}
        chosen.output.write_text(json.dumps(facts | results, indent=1) + "\n", encoding="utf-8")


def measure(trained: TrainedSystem, template: FaceTemplate, chosen: argparse.Namespace) -> dict:
    if template.hash != trained.template.hash and len(template.vertices) != len(trained.template.vertices):
        sys.exit("error: model: expected one of the ICT topology.")
    faces = TruthFaces(chosen.data, template, _SIZE)
    indices = torch.arange(min(chosen.faces, len(faces)))
    truth = faces.sample(indices)
    mean_albedo = faces.mean_albedo()
    mean_shape = template.vertices
    rows: dict[str, list[dict | None]] = {}
    seconds = {}
    for steps in chosen.steps:
        started = time.perf_counter()
        results = fit_latent(list(truth.image), model=trained, steps=steps, progress=False)
        seconds[str(steps)] = round((time.perf_counter() - started) / len(results), 2)
        rows[str(steps)] = [
            None if isinstance(result, FitFailure) else _errors(result, truth[index], mean_albedo, mean_shape)
            for index, result in enumerate(results)
        ]
    return {
        "model": _model_facts(trained),
        "seconds_per_face_with_detection": seconds,
        "mean": {steps: _mean(found) for steps, found in rows.items()},
        "faces": rows,
    }


def _model_facts(trained: TrainedSystem) -> dict:
    model = trained.config.model
    sizes = {"image_size": model.image_size, "uv_size": list(trained.template.uv_size)}
    latents = {"shape_latent": model.shape_latent, "albedo_latent": model.albedo_latent}
    return {"template": trained.template.name, "step": trained.step, **sizes, **latents}


@torch.no_grad()
def _errors(
    found: Reconstruction, truth: FaceBatch, mean_albedo: Float[Tensor, "3 rows columns"], mean_shape: Tensor
) -> dict[str, float]:
    """Of one face; ``truth`` is a batch of one."""
    landmarks, camera = truth.landmarks, truth.camera
    assert landmarks is not None
    assert camera is not None
    assert truth.vertices is not None
    assert truth.albedo is not None
    assert truth.mask is not None
    size = (truth.image.shape[-2], truth.image.shape[-1])
    view = replace(found.face, camera=found.camera)
    plain = found.model.decode(view.latents)
    drawn = [found.model.render_final(view, geometry, size).images[:, 0] for geometry in (found.geometry, plain)]
    photo, photo_model = (
        float(masked_mean(pixel_distance(picture.clamp(0, 1), truth.image), truth.mask)) for picture in drawn
    )
    span = (landmarks[0, OUTER_EYES[0]] - landmarks[0, OUTER_EYES[1]]).norm()
    template = found.model.template
    skin = template.regions["skin"] * template.uv_mask
    visible = unwrap_photo(truth.image, camera, truth.vertices, found.model.surface).visible
    albedo = found.albedo[None]
    region = detail_region(skin) & visible
    detail = detail_scores(albedo, truth.albedo, mean_albedo, skin, visible)["detail_recovered"]
    own = surface_distance(found.vertices, truth.vertices[0], template.triangles)
    mean = surface_distance(mean_shape, truth.vertices[0], template.triangles)
    return {
        "photo": photo,
        "photo_model": photo_model,
        "nme": float((found.landmarks - landmarks[0])[INNER].norm(dim=-1).mean() / span),
        "shape_mm": own,
        "mean_shape_mm": mean,
        "shape_ratio": own / mean,
        "albedo_psnr": scaled_psnr(albedo, truth.albedo, region),
        "detail_recovered": float(detail),
    }


def scaled_psnr(albedo: Tensor, truth: Tensor, region: Tensor) -> float:
    """dB over the region's texels after the best factor of each channel."""
    estimate, target = (value[0][:, region[0]] for value in (albedo, truth))
    factor = (estimate * target).sum(1, keepdim=True) / (estimate**2).sum(1, keepdim=True).clamp_min(1e-12)
    return float(-10 * torch.log10(((estimate * factor - target) ** 2).mean().clamp_min(1e-12)))


def surface_distance(
    vertices: Float[Tensor, "vertices 3"], truth: Float[Tensor, "vertices 3"], triangles: Tensor
) -> float:
    """mm from the vertices that the triangles use to the nearest point of the true surface, after alignment."""
    used = triangles.unique()
    points = similarity_aligned(vertices[None, used], truth[None, used])[0]
    corners, count = truth[triangles], min(_CANDIDATES, len(triangles))
    near = torch.cdist(points, corners.mean(1)).topk(count, largest=False).indices
    repeated = points[:, None].expand(-1, count, -1)
    closest = trimesh.triangles.closest_point(corners[near].flatten(0, 1).numpy(), repeated.flatten(0, 1).numpy())
    gaps = (torch.from_numpy(closest).view(repeated.shape) - repeated).norm(dim=-1)
    return float(gaps.amin(1).mean())


def _mean(rows: list[dict | None]) -> dict[str, float]:
    found = [row for row in rows if row is not None]
    means = {name: sum(row[name] for row in found) / len(found) for name in found[0]} if found else {}
    if found:
        means["shape_ratio"] = means["shape_mm"] / means["mean_shape_mm"]
    return {"found": len(found), **{name: round(value, 4) for name, value in means.items()}}


def _show(means: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(means.values())))
    table = Table("steps", *names)
    for steps, row in means.items():
        table.add_row(steps, *(f"{row[name]:g}" for name in names))
    Console().print(table)


if __name__ == "__main__":
    main()
