"""One training step of the renderer as a row of stages, timed as a whole or stage by stage."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Stopwatch
from benchmarks.scenes import Scene, leaf
from nl3dmm.geometry.camera import clip_from_object, rotate
from nl3dmm.render import antialias, interpolate, rasterize, texture, vertex_normals
from nl3dmm.render.scene import shade_pixels

ANTIALIAS = ("none", "exact", "edge")
Run = Callable[..., Any]  # calls a named stage: run(name, function, *tensors)


def draw(scene: Scene, mode: str, leaves: tuple[Tensor, ...], run: Run) -> Tensor:
    """Vertices, texture and light -> loss: five attribute channels (UV and normal), spherical harmonics per pixel."""
    vertices, tex, light = leaves
    triangles = scene.surface.triangles
    clip = run("project", lambda v: clip_from_object(scene.camera, v, scene.image_size), vertices)
    normals = run("normals", lambda v: rotate(scene.camera, vertex_normals(v, triangles)), vertices)
    rast = run("rasterize", lambda c: rasterize(None, c, triangles, scene.image_size)[0], clip)
    uv = run("interpolate uv", lambda r: interpolate(scene.surface.uv[None], r, triangles)[0], rast)
    normals = run("interpolate normals", lambda n, r: interpolate(n, r, triangles)[0], normals, rast)
    albedo = run("texture", _fetch, tex, uv, rast)
    colour = run("shade", lambda a, n, c: a * shade_pixels(n, c), albedo, normals, light)
    if mode != "none":
        colour = run("antialias", lambda i, r, c: antialias(i, r, c, triangles, mode=mode), colour, rast, clip)
    return run("loss", lambda i: (i - 0.5).square().mean(), colour)


def _fetch(tex: Tensor, uv: Tensor, rast: Tensor) -> Tensor:
    return texture(tex, uv, boundary_mode="clamp", mask=rast[..., 3] > 0)


def leaves_of(scene: Scene) -> tuple[Tensor, ...]:
    return leaf(scene.vertices), leaf(scene.texture), leaf(scene.light)


def timed_step(watch: Stopwatch, scene: Scene, mode: str) -> tuple[Tensor, ...]:
    """Gradients of the leaves; the whole step in two phases."""
    leaves = leaves_of(scene)
    with watch.phase("forward"):
        loss = draw(scene, mode, leaves, lambda _, function, *tensors: function(*tensors))
    with watch.phase("backward"):
        return torch.autograd.grad(loss, leaves)


def timed_stages(watch: Stopwatch, scene: Scene, mode: str) -> tuple[Tensor, ...]:
    """Gradients of the leaves; forward and backward of each stage are phases."""
    leaves, stages = leaves_of(scene), Stages(watch)
    return stages.gradients(draw(scene, mode, leaves, stages), leaves)


class Stages:
    """Cuts the autograd graph between stages, so that the backward of each one can be timed alone."""

    def __init__(self, watch: Stopwatch):
        self._watch = watch
        self._done: list[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]] = []

    def __call__(self, name: str, function: Callable, *inputs: Tensor) -> Any:
        cut = tuple(value.detach().requires_grad_(value.requires_grad) for value in inputs)
        with self._watch.phase(f"{name} forward"):
            result = function(*cut)
        self._done.append((name, inputs, cut, result if isinstance(result, tuple) else (result,)))
        return result

    def gradients(self, loss: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Chain rule from stage to stage."""
        known = {id(loss): torch.ones_like(loss)}
        for name, inputs, cut, outputs in reversed(self._done):
            reached = [value for value in outputs if value.requires_grad and id(value) in known]
            wanted = {id(whole): part for whole, part in zip(inputs, cut, strict=True) if part.requires_grad}
            arrived = [known[id(value)] for value in reached]
            with self._watch.phase(f"{name} backward"):
                found = torch.autograd.grad(reached, [*wanted.values()], arrived, allow_unused=True)
            for key, gradient in zip(wanted, found, strict=True):
                if gradient is not None:
                    known[key] = known[key] + gradient if key in known else gradient
        return tuple(known[id(value)] for value in leaves)
