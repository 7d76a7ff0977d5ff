"""The pictures of the paper's section 4, figures 4 to 7, for any checkpoints, and the numbers that belong to them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.errors import ConfigError
from nl3dmm.evaluation.disentangle import hidden_skin
from nl3dmm.evaluation.representation import fit_texture, known, texture_l21
from nl3dmm.figures.sheets import Cell, Column, diverging, fitted, fitted_map, sheet
from nl3dmm.fitting.optimise import optimise_faces
from nl3dmm.fitting.stages import FitConfig, photo_config
from nl3dmm.fitting.terms import FitTarget
from nl3dmm.losses.pixels import masked_mean, pixel_distance
from nl3dmm.losses.shape import residual_soft_symmetry
from nl3dmm.model import Face, FaceModel, Geometry
from nl3dmm.panels import clay, clay_map, drawn_over, on_white
from nl3dmm.render.uv import unwrap_photo
from nl3dmm.types import FaceBatch

CELL = 224  # px: smaller pictures are enlarged to it
_BATCH = 4  # faces at a time
_LEAST_LIMIT = 0.1  # mm: less than this on a face is nothing to be shown
_SMOOTH = 1 / 16  # of a map's width: what is smaller in the line around hidden texels is not drawn
_SIDE_YAW = 45.0  # degrees by which the hidden side is turned to the viewer
_ENDS = ("proxy", "final")
_PAIRS = {"proxy_proxy": "I(S~, A~)", "final_proxy": "I(S, A~)", "proxy_final": "I(S~, A)", "final_final": "I(S, A)"}
_MAPS = {"shading_proxy": "shading of S~", "shading_final": "shading of S", "albedo_proxy": "A~", "albedo_final": "A"}
_WHOLE = "l2,1 over the face, uncovered pixels black"  # over the truth's mask, or the landmarks' hull
_VISIBLE = "l2,1 over the visible face"

Systems = Mapping[str, TrainedSystem]
Progress = Callable[[int, int], None]
Drawn = dict[str, Tensor]
Draw = Callable[[FaceModel, FaceBatch], tuple[Drawn, Drawn]]


def no_progress(done: int, total: int) -> None:
    """Shown to nobody."""


@dataclass(frozen=True)
class Figure:
    """A picture, and what was measured: per face and their mean."""

    picture: Float[Tensor, "3 height width"]
    numbers: dict[str, dict[str, float]]
    measure: str  # what the numbers are


def reconstruction(systems: Systems, batch: FaceBatch, steps: int, progress: Progress = no_progress) -> Figure:
    """Figure 4: the input beside (S, A) of every system on it, with l2,1 over the batch's mask."""

    def draw(model: FaceModel, part: FaceBatch) -> tuple[Drawn, Drawn]:
        face, geometry = _estimate(model, part, steps)
        over = drawn_over(model, face, geometry.vertices_final, geometry.maps.albedo_final[:, None], part.image)
        with torch.no_grad():
            drawn = model.render_final(face, geometry, _size(part))
        return {"over": over[:, 0]}, {"l21": _whole_l21(drawn.images[:, 0], part)}

    return _beside_input(systems, batch, draw, progress, _WHOLE)


def texture(systems: Systems, batch: FaceBatch, steps: int, progress: Progress = no_progress) -> Figure:
    """Figure 7: the input beside the best texture of every system on the true shape, with l2,1 over the visible face.

    Raises:
        ShapeError: the batch does not know its truth.
    """

    def draw(model: FaceModel, part: FaceBatch) -> tuple[Drawn, Drawn]:
        with torch.no_grad():
            start = model.encode(part.image)
        fit = fit_texture(model, part, start, steps)
        face = Face(start.latents, known(part.camera), fit.sh_coefficients)
        over = drawn_over(model, face, known(part.vertices), fit.albedo[:, None], part.image)
        return {"over": over[:, 0]}, {"l21": texture_l21(model, part, fit)}

    return _beside_input(systems, batch, draw, progress, _VISIBLE)


def pairing(systems: Systems, batch: FaceBatch, steps: int, progress: Progress = no_progress) -> Figure:
    """Figure 5: the four pairs on the input with their l2,1, then in UV space what each is made of.

    A shape is shown by its shading in one light for all, from the viewer's upper left.

    Raises:
        ConfigError: more than one system.
    """
    if len(systems) != 1:
        raise ConfigError(f"checkpoints: got {len(systems)} for figure 5; expected one. Draw a figure for each.")

    def draw(model: FaceModel, part: FaceBatch) -> tuple[Drawn, Drawn]:
        face, geometry = _estimate(model, part, steps)
        pictures = _pairs_over(model, face, geometry, part)
        with torch.no_grad():
            drawn = model.render_four(face, geometry, _size(part))
        return pictures, {pair: _whole_l21(getattr(drawn, pair), part) for pair in _PAIRS}

    ((pictures, numbers),) = _draw_all(systems, batch, draw, progress).values()
    side, mask = _side(batch), _uv_mask(next(iter(systems.values())))
    maps = {name: on_white(*fitted_map(pictures[name], mask, side)) for name in _MAPS}
    overs = {pair: fitted(pictures[pair], side) for pair in _PAIRS}
    rows = [
        [Cell(image)]
        + [Cell(overs[pair][k], f"l2,1 {float(numbers[pair][k]):.4f}") for pair in _PAIRS]
        + [Cell(maps[name][k]) for name in _MAPS]
        for k, image in enumerate(fitted(batch.image, side))
    ]
    columns = [Column("Input"), *(Column(text, "pairs of shape and albedo") for text in _PAIRS.values())]
    columns += [Column(text, "in UV space") for text in _MAPS.values()]
    return Figure(sheet(columns, rows), _per_face({_PAIRS[pair]: numbers[pair] for pair in _PAIRS}), _WHOLE)


def symmetry(systems: Systems, batch: FaceBatch, steps: int, progress: Progress = no_progress) -> Figure:
    """Figure 6: what each system puts on the side of the face that the input hides.

    Clay pictures of S from the front and with the hidden side turned to the viewer; the depth of the residual in UV
    space, blue inwards, red outwards, with a line between visible and hidden texels. Numbers in mm: how far the depths
    of hidden texels and of their visible mirror images differ (the paper's equation 16), and the mean size of either.
    """
    side = _side(batch)

    def draw(model: FaceModel, part: FaceBatch) -> tuple[Drawn, Drawn]:
        face, geometry = _estimate(model, part, steps)
        residual = geometry.maps.shape_final - geometry.maps.shape_proxy
        visible, hidden, turned = _hidden(model, part, face, geometry)
        views = [clay(model, geometry.vertices_final, yaw, side) for yaw in (torch.zeros_like(turned), turned)]
        depth = residual[:, 2].abs()
        numbers = {
            "asymmetry": residual_soft_symmetry(residual, hidden),
            "hidden": masked_mean(depth, hidden),
            "mirrored": masked_mean(depth.flip(-1), hidden),
        }
        pictures = {"front": views[0], "side": views[1], "residual": residual[:, 2:], "visible": visible[:, None]}
        return pictures, numbers

    drawn = _draw_all(systems, batch, draw, progress)
    masks = {label: _uv_mask(trained) for label, trained in systems.items()}
    inside = [(drawn[label][0]["residual"] * mask).flatten(1).abs() for label, mask in masks.items()]
    limit = _round_up(max(_LEAST_LIMIT, *(float(torch.quantile(values, 0.99, dim=1).max()) for values in inside)))
    rows: list[list[Cell | None]] = [[Cell(image)] for image in fitted(batch.image, side)]
    columns = [Column("Input")]
    for label, (pictures, numbers) in drawn.items():
        maps = _residual_maps(pictures, masks[label], limit, side)
        columns += [Column(text, label) for text in ("front", "hidden side", "depth residual")]
        for k, row in enumerate(rows):
            caption = f"asymmetry {float(numbers['asymmetry'][k]):.3f} mm"
            row += [Cell(pictures["front"][k]), Cell(pictures["side"][k]), Cell(maps[k], caption)]
    bar = Cell(_colour_bar(side), f"-{limit:g} mm to {limit:g} mm")
    rows.append([None, *[None, None, bar] * len(systems)])
    named = {f"{label}: {name}": value for label, (_, numbers) in drawn.items() for name, value in numbers.items()}
    return Figure(sheet(columns, rows), _per_face(named), "depth residual, mean absolute mm")


def numbers_table(numbers: dict[str, dict[str, float]]) -> str:
    """Aligned text: one row per face, and their mean."""
    names = list(next(iter(numbers.values())))
    widths = [max(len(name), 8) + 2 for name in names]
    lines = [" " * 10 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for face, row in numbers.items():
        lines.append(
            f"{face:10}" + "".join(f"{row[name]:>{width}.4f}" for name, width in zip(names, widths, strict=True))
        )
    return "\n".join(lines)


def _draw_all(systems: Systems, batch: FaceBatch, draw: Draw, progress: Progress) -> dict[str, tuple[Drawn, Drawn]]:
    """Every system's pictures and numbers of all faces, a few faces at a time."""
    results, done, total = {}, 0, len(systems) * len(batch.image)
    for label, trained in systems.items():
        model, parts = trained.system.model, []
        for indices in torch.arange(len(batch.image)).split(_BATCH):
            parts.append(draw(model, batch[indices].to(model.device)))
            done += len(indices)
            progress(done, total)
        kinds = zip(*parts, strict=True)
        results[label] = tuple(
            {key: torch.cat([part[key].cpu() for part in kind]) for key in kind[0]} for kind in kinds
        )
    return results


def _beside_input(systems: Systems, batch: FaceBatch, draw: Draw, progress: Progress, measure: str) -> Figure:
    """The input, and one picture per system with its l2,1."""
    drawn, side = _draw_all(systems, batch, draw, progress), _side(batch)
    overs = [(fitted(pictures["over"], side), numbers["l21"]) for pictures, numbers in drawn.values()]
    rows = [
        [Cell(image), *(Cell(over[k], f"l2,1 {float(error[k]):.4f}") for over, error in overs)]
        for k, image in enumerate(fitted(batch.image, side))
    ]
    columns = [Column(heading) for heading in ("Input", *systems)]
    values = {label: numbers["l21"] for label, (_, numbers) in drawn.items()}
    return Figure(sheet(columns, rows), _per_face(values), measure)


def _estimate(model: FaceModel, batch: FaceBatch, steps: int) -> tuple[Face, Geometry]:
    """The encoder's faces after latent steps, which see the image and, of photos, the landmarks."""
    with torch.no_grad():
        face = model.encode(batch.image)
    if steps and batch.camera is not None:
        face = optimise_faces(model, FitTarget(batch.image), face, FitConfig(steps=steps)).face
    elif steps:  # without the free albedo: the pictures are to show what the model knows
        config = replace(photo_config(steps), detail_steps=0)
        face = optimise_faces(model, FitTarget(batch.image, batch.landmarks), face, config).face
    with torch.no_grad():
        return face, model.decode(face.latents)


def _whole_l21(picture: Float[Tensor, "batch 3 height width"], batch: FaceBatch) -> Float[Tensor, " batch"]:
    return masked_mean(pixel_distance(picture.clamp(0, 1), batch.image), known(batch.mask))


def _pairs_over(model: FaceModel, face: Face, geometry: Geometry, batch: FaceBatch) -> Drawn:
    """The four pairs on the images; in UV space the shading of both shapes and both albedos."""
    maps, pictures = geometry.maps, {}
    albedos = torch.stack([maps.albedo_proxy, maps.albedo_final], 1)
    for shape, vertices in zip(_ENDS, (geometry.vertices_proxy, geometry.vertices_final), strict=True):
        over = drawn_over(model, face, vertices, albedos, batch.image)
        pictures |= {f"{shape}_{albedo}": over[:, k] for k, albedo in enumerate(_ENDS)}
        pictures[f"shading_{shape}"] = clay_map(model, vertices)
    return pictures | {"albedo_proxy": maps.albedo_proxy, "albedo_final": maps.albedo_final}


@torch.no_grad()
def _hidden(
    model: FaceModel, batch: FaceBatch, face: Face, geometry: Geometry
) -> tuple[Bool[Tensor, "batch uv_height uv_width"], Bool[Tensor, "batch uv_height uv_width"], Float[Tensor, " batch"]]:
    """Visible texels, hidden skin with a visible mirror image, and the yaw (degrees) that shows the hidden side.

    By the truth where it is known, else by the estimate.
    """
    camera = face.camera if batch.camera is None else batch.camera
    vertices = geometry.vertices_final if batch.vertices is None else batch.vertices
    visible = unwrap_photo(batch.image, camera, vertices, model.surface).visible
    return visible, hidden_skin(model, visible), _SIDE_YAW * camera.rotation[:, 2, 0].sign()


def _residual_maps(
    pictures: Drawn, mask: Bool[Tensor, "uv_height uv_width"], limit: float, side: int
) -> Float[Tensor, "batch 3 _ _"]:
    """Depth residuals in colours, with a dark line between visible and hidden texels."""
    values, share = fitted_map(pictures["residual"], mask, side)
    visible, _ = fitted_map(pictures["visible"].to(values.dtype), mask, side)
    inside = _mean_filter(visible, 2 * round(_SMOOTH * side / 2) + 1) > 0.5
    edge = inside & (_mean_filter(inside.to(values.dtype), 3) < 1)
    return on_white(diverging(values, limit) * (1 - 0.8 * edge.to(values.dtype)), share)


def _mean_filter(values: Float[Tensor, "batch 1 height width"], width: int) -> Float[Tensor, "batch 1 height width"]:
    return F.avg_pool2d(values, width, 1, width // 2, count_include_pad=False)


def _colour_bar(width: int, height: int = 16) -> Float[Tensor, "3 {height} {width}"]:
    return diverging(torch.linspace(-1, 1, width).expand(1, 1, height, width), 1.0)[0]


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _per_face(values: Mapping[str, Float[Tensor, " batch"]]) -> dict[str, dict[str, float]]:
    count = len(next(iter(values.values())))
    rows = {f"face {k + 1}": {name: float(value[k]) for name, value in values.items()} for k in range(count)}
    return rows | {"mean": {name: float(value.mean()) for name, value in values.items()}}


def _size(batch: FaceBatch) -> tuple[int, int]:
    return batch.image.shape[-2], batch.image.shape[-1]


def _uv_mask(trained: TrainedSystem) -> Bool[Tensor, "uv_height uv_width"]:
    return trained.system.model.template.uv_mask.cpu()


def _side(batch: FaceBatch) -> int:
    """px of a cell."""
    return max(CELL, *_size(batch))
