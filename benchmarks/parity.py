"""``python -m benchmarks.parity``: nvdiffrast against the CPU backend, on a machine with a GPU; writes golden arrays.

The figures go to ``benchmarks/results/parity.json``, what nvdiffrast drew to ``tests/data/nvdiffrast.npz``: from then
on the CPU backend is held to it on machines without a GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pipeline import draw, leaves_of
from benchmarks.report import machine
from benchmarks.scenes import Scene, make_scene
from nl3dmm.geometry.camera import clip_from_object, zoom
from nl3dmm.render import antialias, backends, interpolate, rasterize, texture

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "nvdiffrast.npz"
RESULTS = ROOT / "benchmarks" / "results" / "parity.json"
IDS_LEAST, COSINE_LEAST, ATTRIBUTES_MOST, BLENDED_MOST = 0.999, 0.999, 1e-4, 1e-3
_GRADIENTS = ("vertices", "texture", "light")


def scenes() -> dict[str, Scene]:
    """Coarse, of about a pixel per triangle, with triangles below a pixel, and over the image's border."""
    coarse = make_scene(24, 64, 2, texels=64)
    large = zoom(coarse.camera, 2.5, torch.tensor([20.0, 30.0]))
    return {
        "coarse": coarse,
        "pixel": make_scene(97, 112, 1, texels=64),
        "sub-pixel": make_scene(198, 96, 1, texels=64),
        "border": replace(coarse, camera=large),
    }


def on_device(scene: Scene, device: str) -> Scene:
    return Scene(
        *(tensor.to(device) for tensor in (scene.vertices, scene.texture, scene.light)),
        scene.camera.to(device),
        scene.surface.to(device),
        scene.image_size,
    )


def rendered(scene: Scene) -> dict[str, Tensor]:
    """What each operation gives, and the gradients of one training step through all of them; on the CPU."""
    triangles, clip = scene.surface.triangles, clip_from_object(scene.camera, scene.vertices, scene.image_size)
    rast, _ = rasterize(None, clip, triangles, scene.image_size)
    uv, _ = interpolate(scene.surface.uv[None], rast, triangles)
    colour = texture(scene.texture, uv, boundary_mode="clamp", mask=rast[..., 3] > 0)
    smooth = antialias(colour, rast, clip, triangles)
    leaves = leaves_of(scene)
    loss = draw(scene, "exact", leaves, lambda _, function, *tensors: function(*tensors))
    gradients = dict(zip(_GRADIENTS, torch.autograd.grad(loss, leaves), strict=True))
    found = {"rast": rast, "uv": uv, "colour": colour, "smooth": smooth, **gradients}
    return {name: value.detach().cpu() for name, value in found.items()}


def agreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """Of two renderings of one scene: share of equal ids on covered pixels, largest difference there, cosines."""
    ids, covered = [part["rast"][..., 3] for part in (one, other)], one["rast"][..., 3] + other["rast"][..., 3] > 0
    same = (ids[0] == ids[1]) & covered
    figures = {"ids": float(same.sum() / covered.sum())}
    for name in ("uv", "colour"):
        figures[name] = float((one[name] - other[name]).abs().amax(-1)[same].quantile(0.999))
    figures["depth"] = float((one["rast"][..., 2] - other["rast"][..., 2]).abs()[same].quantile(0.999))
    blended = (one["smooth"] != one["colour"]).any(-1) | (other["smooth"] != other["colour"]).any(-1)
    figures["smooth"] = float((one["smooth"] - other["smooth"]).abs().amax(-1)[blended].quantile(0.99))
    for name in _GRADIENTS:
        figures[name] = float(torch.cosine_similarity(one[name].flatten(), other[name].flatten(), dim=0))
    return figures


def shortfalls(figures: Mapping[str, float]) -> list[str]:
    """The figures that miss their bar."""
    low = [name for name in _GRADIENTS if not figures[name] > COSINE_LEAST]
    high = [name for name in ("uv", "colour", "depth") if not figures[name] < ATTRIBUTES_MOST]
    high += ["smooth"] if not figures["smooth"] < BLENDED_MOST else []
    return [*(["ids"] if not figures["ids"] >= IDS_LEAST else []), *high, *low]


def load_golden() -> dict[str, dict[str, Tensor]]:
    with np.load(GOLDEN) as stored:
        return {
            name: {key.partition("/")[2]: torch.from_numpy(stored[key]) for key in stored if key.startswith(f"{name}/")}
            for name in scenes()
        }


def milliseconds(scene: Scene, repetitions: int = 20) -> float:
    """Per image of a whole step on the GPU, median."""
    samples = []
    for _ in range(repetitions + 3):
        leaves = leaves_of(scene)
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.autograd.grad(draw(scene, "exact", leaves, lambda _, f, *tensors: f(*tensors)), leaves)
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - started) * 1e3 / len(scene.vertices))
    return float(np.median(samples[3:]))


def main() -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__).parse_args()
    obstacle = backends()["nvdiffrast"]
    if obstacle != "usable":
        print(f"error: nvdiffrast: {obstacle}", file=sys.stderr)
        return 1
    golden = {name: rendered(on_device(scene, "cuda")) for name, scene in scenes().items()}
    figures = {name: agreement(rendered(scene), golden[name]) for name, scene in scenes().items()}
    speed = {
        name: milliseconds(on_device(make_scene(side, 224, 64), "cuda"))
        for name, side in {"18k": 97, "77k": 198}.items()
    }
    arrays = {f"{name}/{key}": value.numpy() for name, part in golden.items() for key, value in part.items()}
    np.savez_compressed(GOLDEN, **arrays)  # type: ignore[arg-type]  # numpy's stub takes these for its own options
    gpu = {"gpu": torch.cuda.get_device_name(), "step of 64 images of 224 px, ms per image": speed}
    result = {"machine": machine(["parity"]), **gpu, "agreement with the CPU backend": figures}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    missed = {name: found for name, part in figures.items() if (found := shortfalls(part))}
    print(f"missed: {missed}" if missed else "all scenes agree")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
