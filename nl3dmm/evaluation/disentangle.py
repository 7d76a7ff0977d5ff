"""Does each part of a face end up where it belongs: light out of the albedo, detail in the finals, hidden sides filled.

All on unseen synthetic faces, which can be drawn again in another light, from another side, or as another person.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.errors import ConfigError
from nl3dmm.evaluation.accuracy import Protocol, test_world, training_world
from nl3dmm.evaluation.detail import detail_scores
from nl3dmm.evaluation.representation import fit_texture, known
from nl3dmm.fitting.optimise import optimise_faces
from nl3dmm.fitting.stages import FitConfig
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.geometry.uv import erode
from nl3dmm.losses.pixels import l21, masked_mean, pixel_distance
from nl3dmm.model import Face, FaceModel
from nl3dmm.render.uv import UVObservation, unwrap_photo
from nl3dmm.synthetic.world import SyntheticWorld, mean_face
from nl3dmm.types import FaceBatch

SIDE_YAW = (40.0, 60.0)  # degrees of the residual-symmetry faces, to either side
_SEARCH = 64  # test faces looked through per side face wanted
_OTHER = 500_000  # offset of the faces that lend their light, pose or person

Sums = dict[str, list[Tensor]]


def disentangle(
    trained: TrainedSystem, protocol: Protocol, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict:
    """The four measurements, each by the encoder alone and, but for the last, after the protocol's latent steps."""
    model, world = trained.system.model, test_world(trained, protocol)
    mean = mean_face(training_world(trained))[1].to(model.device)
    side_world, sides = side_faces(trained, protocol)
    values: dict[str, Sums] = {"light_free": {}, "disentangling": {}, "ends": {}, "residual_symmetry": {}}
    started = time.perf_counter()
    for indices in torch.arange(protocol.faces).split(protocol.batch_size):
        _extend(values["light_free"], light_free(model, world, indices, protocol.latent_steps))
        _extend(values["disentangling"], light_against_person(model, world, indices, protocol.latent_steps))
        _extend(values["ends"], end_errors(model, world, indices, protocol.latent_steps, mean))
        _extend(values["residual_symmetry"], residual_energies(model, side_world, sides[indices]))
        progress(int(indices[-1]) + 1, protocol.faces)
    means = {
        name: {key: float(torch.cat(parts).mean()) for key, parts in sums.items()} for name, sums in values.items()
    }
    return {
        "protocol": vars(protocol) | {"data": "world", "side_yaw": SIDE_YAW},
        "checkpoint_step": trained.step,
        "template": trained.template.name,
        "world": vars(trained.config.world),
        "seconds": round(time.perf_counter() - started, 1),
        "errors": means,
        "ratios": _ratios(means),
    }


def light_free(
    model: FaceModel, world: SyntheticWorld, indices: Int[Tensor, " batch"], steps: int
) -> dict[str, Float[Tensor, " batch"]]:
    """One person in two lights and poses: l2,1 between the albedos found, and between the images themselves.

    Both on skin texels that both images show: an albedo map is the face drawn in even white light.
    """
    others = indices + _OTHER
    first = world.sample(indices).to(model.device)
    second = world.sample(indices, light_indices=others, camera_indices=others).to(model.device)
    views = [_unwrap(model, batch) for batch in (first, second)]
    where = views[0].visible & views[1].visible & _skin(model)
    result = {"input": l21(views[0].colour, views[1].colour, where)}
    for stage, (one, two) in zip(
        ("encoder", "fitted"),
        zip(_albedos(model, first, steps), _albedos(model, second, steps), strict=True),
        strict=False,
    ):
        result[stage] = l21(one, two, where)
    return result


def light_against_person(
    model: FaceModel, world: SyntheticWorld, indices: Int[Tensor, " batch"], steps: int
) -> dict[str, Float[Tensor, " batch"]]:
    """How far the albedo found moves (l2,1 on skin) when only the light changes, and when only the person does.

    Camera, background and noise stay. ``true_person``: how far the true albedo moves.
    """
    others = indices + _OTHER
    batches = [
        world.sample(indices),
        world.sample(indices, light_indices=others),
        world.sample(others, light_indices=indices, camera_indices=indices, scenery_indices=indices),
    ]
    batches = [batch.to(model.device) for batch in batches]
    skin = _skin(model).expand(len(indices), -1, -1)
    result = {"true_person": l21(known(batches[0].albedo), known(batches[2].albedo), skin)}
    stages = zip(*(_albedos(model, batch, steps) for batch in batches), strict=True)
    for stage, (base, relit, person) in zip(("encoder", "fitted"), stages, strict=False):
        result |= {f"{stage}_light": l21(base, relit, skin), f"{stage}_person": l21(base, person, skin)}
    return result


def end_errors(
    model: FaceModel,
    world: SyntheticWorld,
    indices: Int[Tensor, " batch"],
    steps: int,
    mean_albedo: Float[Tensor, "3 uv_height uv_width"],
) -> dict[str, Float[Tensor, " batch"]]:
    """What the finals add: photometric error of the four pairs and detail of both albedos, own camera and light."""
    batch = world.sample(indices).to(model.device)
    with torch.no_grad():
        face = model.encode(batch.image)
    result = _end_errors(model, batch, face, mean_albedo, "encoder")
    if steps:
        fitted = optimise_faces(model, FitTarget(batch.image), face, FitConfig(steps=steps)).face
        result |= _end_errors(model, batch, fitted, mean_albedo, "fitted")
    return result


@torch.no_grad()
def residual_energies(
    model: FaceModel, world: SyntheticWorld, indices: Int[Tensor, " batch"]
) -> dict[str, Float[Tensor, " batch"]]:
    """Mean squared depth residual (mm^2): of hidden skin, of the mirror images of these texels, of all visible skin.

    Hidden and visible are the truth's; a hidden texel counts where its mirror image is visible.
    """
    batch = world.sample(indices).to(model.device)
    maps = model.decode(model.encode(batch.image).latents).maps
    energy = (maps.shape_final - maps.shape_proxy)[:, 2] ** 2
    visible, skin = _unwrap(model, batch).visible, _skin(model)
    hidden = hidden_skin(model, visible)
    return {
        "hidden": masked_mean(energy, hidden),
        "mirrored": masked_mean(energy.flip(-1), hidden),
        "visible": masked_mean(energy, visible & skin),
        "hidden_share": hidden.float().mean((1, 2)) / skin.float().mean(),
    }


def side_faces(trained: TrainedSystem, protocol: Protocol) -> tuple[SyntheticWorld, Int[Tensor, " faces"]]:
    """A test world that turns further than the run's, and its first faces whose yaw lies in ``SIDE_YAW``."""
    low, high = SIDE_YAW
    config = replace(trained.config.world, yaw=high)
    world = test_world(replace(trained, config=replace(trained.config, world=config)), protocol)
    found: list[Tensor] = []
    for indices in torch.arange(_SEARCH * protocol.faces).split(_SEARCH):
        yaw = torch.rad2deg(torch.asin(world.camera(indices).rotation[:, 2, 0].clamp(-1, 1))).abs()
        found.append(indices[yaw >= low])
        if sum(len(part) for part in found) >= protocol.faces:
            return world, torch.cat(found)[: protocol.faces]
    raise ConfigError(f"world.yaw: got no {protocol.faces} faces beyond {low} degrees; expected a third. Raise faces.")


def _end_errors(model: FaceModel, batch: FaceBatch, face: Face, mean: Tensor, stage: str) -> dict[str, Tensor]:
    with torch.no_grad():
        geometry = model.decode(face.latents)
        drawn = model.render_four(face, geometry, (batch.image.shape[-2], batch.image.shape[-1]))
        mask = known(batch.mask)
        result = {
            f"{stage}_{pair}": masked_mean(pixel_distance(getattr(drawn, pair).clamp(0, 1), batch.image), mask)
            for pair in ("proxy_proxy", "proxy_final", "final_proxy", "final_final")
        }
        skin = model.template.regions["skin"] * model.template.uv_mask
        visible = _unwrap(model, batch).visible
        for end in ("proxy", "final"):
            albedo = getattr(geometry.maps, f"albedo_{end}")
            scores = detail_scores(albedo, known(batch.albedo), mean, skin, visible)
            result |= {f"{stage}_{end}_{name}": score for name, score in scores.items()}
    return result


def _albedos(model: FaceModel, batch: FaceBatch, steps: int) -> list[Tensor]:
    """Final albedo of the encoder and, with steps, of the best texture under the true shape and camera."""
    with torch.no_grad():
        start = model.encode(batch.image)
        albedos = [model.decode(start.latents).maps.albedo_final]
    return [*albedos, fit_texture(model, batch, start, steps).albedo] if steps else albedos


def _unwrap(model: FaceModel, batch: FaceBatch) -> UVObservation:
    return unwrap_photo(batch.image, known(batch.camera), known(batch.vertices), model.surface)


def hidden_skin(
    model: FaceModel, visible: Bool[Tensor, "batch uv_height uv_width"]
) -> Bool[Tensor, "batch uv_height uv_width"]:
    """Skin texels that cannot be seen while their mirror images can."""
    skin = _skin(model)
    return ~visible & visible.flip(-1) & skin & skin.flip(-1)


def _skin(model: FaceModel) -> Bool[Tensor, "uv_height uv_width"]:
    """Skin without the texels at its edges."""
    return erode((model.template.regions["skin"] > 0.5) & model.template.uv_mask)


def _extend(sums: Sums, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        sums.setdefault(name, []).append(value)


def _ratios(means: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures that the measurements are about, of means over all faces; none where there is nothing below."""
    free, moved, both, residual = (means[name] for name in ("light_free", "disentangling", "ends", "residual_symmetry"))
    ratios: dict[str, tuple[float, float]] = {}
    for stage in ("encoder", "fitted"):
        if stage in free:
            ratios[f"{stage}: albedo over input difference"] = (free[stage], free["input"])
            ratios[f"{stage}: light over person"] = (moved[f"{stage}_light"], moved[f"{stage}_person"])
            ratios[f"{stage}: photo of final over proxy"] = (both[f"{stage}_final_final"], both[f"{stage}_proxy_proxy"])
            detail = (both[f"{stage}_final_detail_recovered"], both[f"{stage}_proxy_detail_recovered"])
            ratios[f"{stage}: detail of final over proxy"] = detail
    ratios["residual: hidden over mirrored"] = (residual["hidden"], residual["mirrored"])
    ratios["residual: hidden over visible"] = (residual["hidden"], residual["visible"])
    return {name: above / below for name, (above, below) in ratios.items() if below}


def ratios_table(results: dict) -> str:
    """Aligned text: the ratios, then what they are made of."""
    rows = [(name, value) for name, value in results["ratios"].items()]
    for name, values in results["errors"].items():
        rows += [("", None), (name.replace("_", " "), None), *((f"  {key}", value) for key, value in values.items())]
    return "\n".join(f"{name:48}" + ("" if value is None else f"{value:12.4g}") for name, value in rows)
