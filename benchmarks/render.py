"""The renderer: whole steps, their stages, shading domains, four renderings at once, other rasterisers."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import get_args

import torch
from torch import Tensor

from benchmarks.measure import Case, Section, Stopwatch
from benchmarks.options import Options
from benchmarks.peers import PEERS, timed_nl3dmm
from benchmarks.pipeline import ANTIALIAS, timed_stages, timed_step
from benchmarks.scenes import Scene, leaf, make_scene
from nl3dmm.assets.embedded import embedded_template
from nl3dmm.model import Face, FaceModel, Geometry, ModelConfig
from nl3dmm.nn.encoder import EncoderConfig
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.render.scene import ShadingDomain, render_textures
from nl3dmm.types import Latents, UVMaps

BACKENDS = ("numba", "torch")
FOUR = ("one batch", "four calls")
_SIDES = {"18k": 97, "77k": 198, "tiny": 24}  # triangles -> vertices along each side of the mesh


def sections(options: Options) -> Iterator[Section]:
    """Small scenes with ``quick``: they show that everything runs, not how fast it is."""
    meshes, pixels, batches = (("tiny",), (48,), (2,)) if options.quick else (("18k", "77k"), (224, 256), (1, 8))
    yield _steps(meshes, pixels, batches, options.threads)
    sizes = {"px": pixels[0], "batch": batches[-1], "threads": options.threads[0]}
    yield _stages(meshes, sizes)
    yield _shading(meshes, sizes)
    yield _four(meshes, sizes)
    yield _peers(meshes, sizes)


def _steps(
    meshes: tuple[str, ...], pixels: tuple[int, ...], batches: tuple[int, ...], threads: tuple[int, ...]
) -> Section:
    cases = [
        _scene_case(partial(timed_step, mode=mode), mesh, size, antialias=mode, backend=backend)
        for mesh, px, batch, count, mode in product(meshes, pixels, batches, threads, ANTIALIAS)
        for size in [{"px": px, "batch": batch, "threads": count}]
        for backend in BACKENDS
    ]
    return Section("step", "project .. loss, ms per image", cases, "backend")


def _stages(meshes: tuple[str, ...], size: dict[str, int]) -> Section:
    cases = [
        _scene_case(partial(timed_stages, mode=mode), mesh, size, antialias=mode, backend=backend)
        for mesh, mode, backend in product(meshes, ANTIALIAS, BACKENDS)
    ]
    return Section("stages", "where the step's time goes, ms per image", cases, "backend")


def _shading(meshes: tuple[str, ...], size: dict[str, int]) -> Section:
    cases = [
        _scene_case(partial(_timed_shading, domain=domain), mesh, size, encoding="srgb", shading=domain)
        for mesh, domain in product(meshes, get_args(ShadingDomain))
    ]
    return Section("shading", "render_textures with one texel per vertex, ms per image", cases, "shading")


def _four(meshes: tuple[str, ...], size: dict[str, int]) -> Section:
    cases = [
        _scene_case(partial(_timed_four, is_batched=way == FOUR[0]), mesh, size, encoding="srgb", way=way)
        for mesh, way in product(meshes, FOUR)
    ]
    return Section("four", "render_four against four renderings, ms per face", cases, "way")


def _peers(meshes: tuple[str, ...], size: dict[str, int]) -> Section:
    own = {f"nl3dmm {mode}": partial(timed_nl3dmm, mode=mode) for mode in ANTIALIAS if mode != "none"}
    cases = [
        _scene_case(task, mesh, size, rasteriser=name)
        for mesh, (name, task) in product(meshes, {**own, **PEERS}.items())
    ]
    return Section("peers", "other rasterisers: vertex shading x texture, ms per image", cases, "rasteriser")


def _scene_case(
    task: Callable[[Stopwatch, Scene], object], mesh: str, size: dict[str, int], **labels: str | int
) -> Case:
    def run(watch: Stopwatch) -> None:
        task(watch, make_scene(_SIDES[mesh], size["px"], size["batch"]))

    return Case({"mesh": mesh, **size, **labels}, run, size["batch"])


def _timed_shading(watch: Stopwatch, scene: Scene, domain: ShadingDomain) -> None:
    side = scene.surface.uv_size[0]
    albedo = leaf(scene.light.new_full((len(scene.vertices), 1, 3, side, side), 0.6))
    vertices, light = leaf(scene.vertices), leaf(scene.light)
    with watch.phase("forward"):
        drawn = render_textures(
            vertices, albedo, scene.camera, light, scene.surface, scene.image_size, "srgb", shading=domain
        )
        loss = drawn.images.square().mean()
    with watch.phase("backward"):
        torch.autograd.grad(loss, (vertices, albedo, light))


def _timed_four(watch: Stopwatch, scene: Scene, is_batched: bool) -> None:
    side, batch = scene.surface.uv_size[0] // 2 * 2, len(scene.vertices)
    model = _model(max(side, 32), scene.image_size[0])
    face = Face(Latents(torch.zeros(batch, 1), torch.zeros(batch, 1)), scene.camera, leaf(scene.light))
    shapes = [leaf((size * model.template.vertices).expand(batch, -1, -1)) for size in (1.0, 1.01)]
    albedos = [leaf(torch.full((batch, 3, *model.template.uv_size), value)) for value in (0.4, 0.6)]
    with watch.phase("forward"):
        if is_batched:
            drawn = model.render_four(face, _geometry(shapes, albedos), scene.image_size)
            images = [drawn.proxy_proxy, drawn.proxy_final, drawn.final_proxy, drawn.final_final]
        else:
            images = [
                model.render(face, shape, albedo[:, None], scene.image_size).images
                for shape, albedo in product(shapes, albedos)
            ]
        loss = torch.stack([image.square().mean() for image in images]).sum()
    with watch.phase("backward"):
        torch.autograd.grad(loss, (*shapes, *albedos, face.sh_coefficients))


def _geometry(shapes: list[Tensor], albedos: list[Tensor]) -> Geometry:
    """Only what rendering reads of it differs: the shape maps are those of no face."""
    none = torch.zeros_like(albedos[0])
    return Geometry(UVMaps(none, none, *albedos), *shapes)


@lru_cache(maxsize=1)
def _model(side: int, pixels: int) -> FaceModel:
    """A model with the smallest networks: only its renderer is used."""
    encoder, decoder = EncoderConfig(width=1, stages=1), DecoderConfig(width=1, up_samplings=1, local_pathways=False)
    config = ModelConfig(pixels, shape_latent=1, albedo_latent=1, encoder=encoder, decoder=decoder)
    return FaceModel(config, embedded_template((side, side)))
