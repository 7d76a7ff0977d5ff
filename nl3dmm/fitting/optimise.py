"""Reconstruct faces by optimising latents, camera and light (paper section 4: "solely by optimizing latents")."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nl3dmm.errors import ConfigError
from nl3dmm.fitting.free_face import FreeFace, check_shared, shared_mean
from nl3dmm.fitting.stages import FitConfig
from nl3dmm.fitting.terms import FitTarget, Terms, stage_terms
from nl3dmm.model import Face, FaceModel
from nl3dmm.nn.perceptual import FeatureNetwork

Progress = Callable[[int, int, float], None]
_WINDOW = 10  # steps over which a loss is averaged before two of its values are compared
_CONVERGED = 0.02  # relative fall of the loss from one window to the next that counts as none


@dataclass(frozen=True)
class FitResult:
    """The fitted faces, and how their losses went."""

    face: Face
    curves: list[dict[str, list[float]]]  # of each face: weighted term -> its value at each step it took part in
    converged: list[bool]  # of each face: when latents, camera and light were last free, the loss had stopped falling
    albedo_detail: Float[Tensor, "batch 3 uv_height uv_width"]  # raw residual of the final albedo, before its sigmoid

    @classmethod
    def unfitted(cls, start: Face, uv_size: tuple[int, int], shared: Sequence[str]) -> "FitResult":
        """The start itself; shared latents are their mean."""
        start = replace(start, latents=shared_mean(start.latents, shared))
        count = len(start.sh_coefficients)
        detail = start.sh_coefficients.new_zeros(count, 3, *uv_size)
        return cls(start, [{} for _ in range(count)], [False] * count, detail)


def optimise_faces(
    model: FaceModel,
    target: FitTarget,
    start: Face,
    config: FitConfig,
    shared: Sequence[str] = (),
    features: FeatureNetwork | None = None,
    progress: Progress = lambda step, steps, loss: None,
) -> FitResult:
    """Adam on latents, camera and light with frozen decoders; every face of the batch is fitted on its own.

    Args:
        target: its landmarks are needed for ``config.landmark`` and ``config.landmark_steps``.
        shared: of ``SHAREABLE``: latents that all faces of the batch have in common; they start as the mean.
        features: of the perceptual term, if it weighs anything.

    Raises:
        ConfigError: an unknown name in ``shared``, or a pose stage without landmarks or weight of them.
    """
    check_shared(shared)
    if config.landmark_steps and (target.landmarks is None or config.landmark == 0):
        got = "no landmarks" if target.landmarks is None else "landmark=0"
        raise ConfigError(f"landmark_steps: got {config.landmark_steps} with {got}; expected both. Set it to 0.")
    free = FreeFace(start.detach(), target.image.shape[-1], model.template.uv_size, shared)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    history: list[Terms] = []
    totals: list[Tensor] = []
    converged = torch.zeros(1, dtype=torch.bool)
    try:
        for stage, count in config.stages():
            optimizer = torch.optim.Adam(free.groups(config, stage), betas=(0.9, 0.99))
            totals, terms_now = [], stage_terms(model, target, free, config, stage, features)
            while len(totals) < count and not (config.tolerance and bool(_fallen(totals, config.tolerance).all())):
                optimizer.zero_grad(set_to_none=True)
                terms = terms_now()
                loss = torch.stack(list(terms.values())).sum(0)
                loss.sum().backward()  # each face's gradient is as if it were alone
                optimizer.step()
                history.append({name: term.detach() for name, term in terms.items()})
                totals.append(loss.detach())
                progress(len(history), config.steps, float(loss.detach().mean()))
            if stage != "detail":
                converged = _converged(totals)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    faces = len(target.image)
    curves, converges = _curves(history, faces), converged.expand(faces).tolist()
    return FitResult(free.face().detach(), curves, converges, free.albedo_detail.detach())


def _fallen(totals: list[Float[Tensor, " batch"]], tolerance: float) -> Bool[Tensor, " _"]:
    """Which losses do not fall any more: by less than ``tolerance`` from one window of steps to the next."""
    if len(totals) < 2 * _WINDOW:
        return torch.zeros(1, dtype=torch.bool)
    before, now = (torch.stack(part).mean(0) for part in (totals[-2 * _WINDOW : -_WINDOW], totals[-_WINDOW:]))
    return before - now < tolerance * before.abs()


def _converged(totals: list[Float[Tensor, " batch"]]) -> Bool[Tensor, " _"]:
    """Which losses stay where they are: they neither fall nor rise."""
    return _fallen(totals, _CONVERGED) & ~_fallen(totals, -_CONVERGED)


def _curves(history: list[Terms], faces: int) -> list[dict[str, list[float]]]:
    """Per face and term."""
    curves: list[dict[str, list[float]]] = [{} for _ in range(faces)]
    for name in dict.fromkeys(name for terms in history for name in terms):
        values = torch.stack([terms[name] for terms in history if name in terms], 1)
        for curve, row in zip(curves, values.tolist(), strict=True):
            curve[name] = row
    return curves
