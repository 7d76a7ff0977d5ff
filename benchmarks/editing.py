"""Stickers on faces of which everything is known: ``python -m benchmarks.editing RUN [--data FOLDER] -o FILE``.

Each face is fitted to its picture and landmarks alone and edited. The target is the drawing of the true mesh, camera,
light and albedo with the same sticker. Compared are ways to light what is painted:

* light: the fitted light (what ``editing`` does);
* ratio: the photo times (drawing with the edit / drawing without it);
* tone: the fitted light times photo / drawing, both blurred as wide as half the sticker;
* delta: the photo plus (drawing with the edit - drawing without it);
* drawing: the paper's way, the whole face drawn anew;
* nothing: the photo.

``l21_face``: mean colour distance over the true face. ``l21_sticker``: over the pixels that the sticker covers in
either picture, which also counts where it lies elsewhere. ``l21_inside``: over those it covers in both.
"""

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from benchmarks.report import machine
from nl3dmm.assets.load import load_template
from nl3dmm.assets.places import place_uv
from nl3dmm.checkpoint import TrainedSystem, load_system
from nl3dmm.data.images import write_png
from nl3dmm.data.truth import TruthFaces
from nl3dmm.editing import FaceInPhoto, apply_sticker, fine_surface, photo_layer
from nl3dmm.errors import ImageError
from nl3dmm.evaluation.accuracy import Protocol, test_world
from nl3dmm.fitting.photos import fit_latent
from nl3dmm.geometry.camera import zoom
from nl3dmm.losses.pixels import masked_mean, pixel_distance
from nl3dmm.render.scene import render_textures
from nl3dmm.stickers import Sticker, star, sticker_layer, sticker_plane
from nl3dmm.synthetic.world import SyntheticWorld

_SIZE, _SAMPLES = 224, 3  # px; per pixel and axis of the drawings
_PLACES = ("left_cheek", "forehead", "right_cheek", "chin")
_TRUTH_UV = (192, 224)
_WAYS = ("light", "ratio", "tone", "delta", "drawing", "nothing")
_LARGEST_GAIN = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.editing", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint or run folder")
    parser.add_argument("--data", type=Path, help="folder with truth.npz (ICT); default: the synthetic world")
    parser.add_argument("--ict", type=Path, help="ICT file of that folder's faces")
    parser.add_argument("--faces", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size-mm", type=float, default=30.0)
    parser.add_argument("--sheet", type=Path, help="PNG to look at: photo, edited, target")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file; other data's figures in it stay")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # a sticker that is half hidden is measured like any other
    trained = load_system(chosen.model)
    source = _source(trained, chosen)
    rows, pictures = [], []
    for index in track(range(chosen.faces), "editing", transient=True):
        row, picture = measure(trained, source, index, chosen)
        rows.append(row)
        pictures.append(picture)
    if chosen.sheet:
        write_png(torch.cat([torch.cat(pictures[k : k + 4], 2) for k in range(0, len(pictures), 4)], 1), chosen.sheet)
    names = [name for name in rows[0] if name.startswith("l21")]
    mean = {name: {way: _mean([row[name].get(way) for row in rows]) for way in rows[0][name]} for name in names}
    label = "world" if chosen.data is None else chosen.data.name
    old = json.loads(chosen.output.read_text()) if chosen.output.is_file() else {}
    data = "" if chosen.data is None else f" --data {label} --ict {chosen.ict.name}"
    command = f"python -m benchmarks.editing {chosen.model.name}{data} --faces {chosen.faces} --steps {chosen.steps}"
    config = trained.config
    facts = {"machine": {**machine([]), "command": command}, "template": trained.template.name}
    facts["model"] = {"decoder": config.model.decoder.kind, "images": config.training.images, "step": trained.step}
    facts |= {"size_mm": chosen.size_mm, "picture_px": _SIZE, "mean": mean, "faces": rows}
    chosen.output.write_text(json.dumps(old | {label: facts}, indent=1) + "\n", encoding="utf-8")
    Console().print_json(data=mean)


def _source(trained: TrainedSystem, chosen: argparse.Namespace) -> SyntheticWorld | TruthFaces:
    """Of pictures larger than the model's."""
    if chosen.data is None:
        world = test_world(trained, Protocol())
        return SyntheticWorld(world.template, world.config, _SIZE, world.seed, world.encoding)
    if chosen.ict is None:
        sys.exit("error: --ict: expected the ICT file of the folder's faces.")
    return TruthFaces(chosen.data, load_template("ict", chosen.ict, _TRUTH_UV), _SIZE)


def measure(trained: TrainedSystem, source: SyntheticWorld | TruthFaces, index: int, chosen) -> tuple[dict, Tensor]:
    batch = source.sample(torch.tensor([index]))
    fitted = fit_latent(batch.image[0], model=trained, landmarks=batch.landmarks[0], steps=chosen.steps)
    truth = FaceInPhoto(
        batch.image[0], source.template, batch.vertices, batch.camera, batch.sh_coefficients, batch.albedo, "srgb"
    )
    estimate = fitted.in_photo()
    for place in (_PLACES[(index + k) % len(_PLACES)] for k in range(len(_PLACES))):
        sticker = Sticker(star(), place_uv(trained.template, place), chosen.size_mm)
        try:
            apply_sticker(truth, sticker)
            edit = apply_sticker(estimate, sticker)
            break
        except ImageError:
            continue
    target, plain = drawn_with(truth, sticker), drawn_with(truth, None)
    pictures = {"light": edit.picture, **_other_ways(estimate, sticker)}
    best = apply_sticker(truth, sticker)
    lit = apply_sticker(replace(truth, sh_coefficients=fitted.face.sh_coefficients), sticker)
    face = batch.mask[0]
    regions = {"face": face, "sticker": (best.mask | edit.mask) & face, "inside": best.mask & edit.mask & face}
    row: dict = {"index": index, "place": place, "visible": round(edit.visible, 3)}
    for name, region in regions.items():
        row[f"l21_{name}"] = {way: _distance(pictures[way], target, region) for way in _WAYS}
    row["l21_floor"] = {
        "face: photo to drawing, both without sticker": _distance(batch.image[0], plain, face),
        "sticker: true mesh and light": _distance(best.picture, target, best.mask & face),
        "sticker: true mesh, fitted light": _distance(lit.picture, target, best.mask & face),
    }
    return row, torch.cat([batch.image[0], edit.picture, torch.where(face, target, batch.image[0])], 2)


def drawn_with(face: FaceInPhoto, sticker: Sticker | None) -> Tensor:
    """The mesh with its albedo, or the albedo with the sticker on it, drawn with smooth edges."""
    surface = fine_surface(face.template)
    albedo = F.interpolate(face.albedo, surface.uv_size, mode="bilinear", align_corners=False)
    if sticker is not None:
        plane = sticker_plane(face.template, face.vertices, sticker)
        points = surface.to_uv_map(plane[None].nan_to_num(1e6)).permute(0, 2, 3, 1)
        rgba = sticker.picture
        linear = torch.cat([face.to_linear(rgba[:3]) * rgba[3:], rgba[3:]])
        linear = F.interpolate(linear[None], (64, 64), mode="bilinear", antialias=True)[0]
        albedo = face.from_linear(sticker_layer(sticker, linear, points).on(face.to_linear(albedo)))
    size = (face.photo.shape[1] * _SAMPLES, face.photo.shape[2] * _SAMPLES)
    view = zoom(face.camera, _SAMPLES)
    drawn = render_textures(
        face.vertices, albedo[:, None], view, face.sh_coefficients, surface, size, face.encoding, "vertex"
    )
    return F.avg_pool2d(drawn.images[:, 0].clamp(0, 1), _SAMPLES)[0]


def _other_ways(face: FaceInPhoto, sticker: Sticker) -> dict[str, Tensor]:
    layer = photo_layer(face, sticker, sticker_plane(face.template, face.vertices, sticker))
    rows, columns = layer.part
    plain, with_edit = drawn_with(face, None), drawn_with(face, sticker)
    old, drawn = (face.to_linear(picture[:, rows, columns]) for picture in (face.photo, plain))
    covered = (drawn.sum(0, keepdim=True) > 0).float()
    width = max(min(old.shape[1:]) // 4, 1)
    blur = [F.avg_pool2d(value[None], 2 * width + 1, 1, width)[0] for value in (old * covered, drawn)]
    gains = {"ratio": old / drawn.clamp_min(1e-3), "tone": blur[0] / blur[1].clamp_min(1e-3)}
    linear = {
        name: layer.keep * old + layer.paint * gain.clamp(1 / _LARGEST_GAIN, _LARGEST_GAIN)
        for name, gain in gains.items()
    }
    linear["delta"] = old + (layer.keep - 1) * drawn + layer.paint
    pictures = {"drawing": with_edit, "nothing": face.photo}
    for name, value in linear.items():
        pictures[name] = face.photo.clone()
        edited = face.from_linear(value).clamp(0, 1)
        pictures[name][:, rows, columns] = torch.where(layer.mask, edited, face.photo[:, rows, columns])
    return pictures


def _distance(picture: Tensor, target: Tensor, region: Tensor) -> float:
    return round(float(masked_mean(pixel_distance(picture[None], target[None]), region[None])), 5)


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 5)


if __name__ == "__main__":
    main()
