"""What is timed: each workload gives named tasks that return how many items one call handled."""

import os
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch

from nl3dmm.assets.load import load_template
from nl3dmm.assets.locations import asset_folder
from nl3dmm.config import load_config
from nl3dmm.render.scene import render_textures
from nl3dmm.settings import RunConfig
from nl3dmm.synthetic.world import SyntheticWorld
from nl3dmm.systems.highfidelity import HighFidelity

Tasks = dict[str, Callable[[], int]]
_BATCH = 16


def _config() -> RunConfig:
    return load_config(RunConfig, [asset_folder("configs") / "quickstart.yaml"])


def _world(config: RunConfig) -> SyntheticWorld:
    return SyntheticWorld(load_template("embedded", None, config.uv_size), config.world, config.model.image_size)


def training_step() -> Tasks:
    """Forward and backward of the quick start, per image."""
    config = _config()
    world = _world(config)
    batch = world.sample(torch.arange(_BATCH))
    system = HighFidelity(config.highfidelity, world.template)

    def step(weights, dtype) -> int:
        system.model.network_dtype = dtype
        system.zero_grad(set_to_none=True)
        system.objective(batch, weights).total.backward()
        return _BATCH

    stages = {"pretrain": config.loss.pretrain, "finetune": config.loss.finetune}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        f"{stage} {name}": lambda weights=weights, dtype=dtype: step(weights, dtype)
        for stage, weights in stages.items()
        for name, dtype in dtypes.items()
    }


def rendering() -> Tasks:
    """Forward and backward of one textured rendering, numba against plain torch, per image."""
    config = _config()
    world = _world(config)
    batch = world.sample(torch.arange(_BATCH))

    def render(backend: str) -> int:
        vertices = batch.vertices.clone().requires_grad_(True)
        albedo = batch.albedo[:, None].clone().requires_grad_(True)
        with mock.patch.dict(os.environ, {"NL3DMM_RENDER": backend}):
            size = (world.image_size, world.image_size)
            drawn = render_textures(vertices, albedo, batch.camera, batch.sh_coefficients, world.surface, size, "srgb")
            drawn.images.square().mean().backward()
        return _BATCH

    return {backend: lambda backend=backend: render(backend) for backend in ("numba", "torch")}


def synthetic_world() -> Tasks:
    """One complete sample: shape, albedo, light, picture."""
    config = _config()
    small = _world(config)
    plain = SyntheticWorld(small.template, replace(config.world, super_sampling=1), small.image_size)

    def draw(world: SyntheticWorld) -> int:
        world.sample(torch.arange(_BATCH))
        return _BATCH

    return {"112 px": lambda: draw(small), "112 px, no super-sampling": lambda: draw(plain)}


WORKLOADS: dict[str, Callable[[], Tasks]] = {
    "training": training_step,
    "rendering": rendering,
    "world": synthetic_world,
}
