"""Signs of a run that collapses, measured on the batches it trains on: logged, and one warning for each kind."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from nl3dmm.losses.objective import Estimate
from nl3dmm.settings import RunConfig

# Healthy quick-start runs: spread 0.3 to 0.8, rank 6 to 12 of at most 15, shading 0.4 to 0.9, albedo 0.2 to 0.8.
ALIKE = 1e-3  # of a latent's spread; the decoders' batch norm would then enlarge nothing but noise
RUNAWAY = 100.0  # of a latent's spread; a hundred times what healthy runs have
ONE_LINE = 1.2  # effective rank; at 1 all faces differ along a single direction
RANK_FACES = 4  # of fewer faces the rank is small whatever the network does
DARK, BRIGHT = 0.02, 4.0  # shading; 1 is white light on white, and beyond these 8-bit photos hold no albedo
BLACK, WHITE = 0.02, 0.98  # albedo; skin lies between 0.1 and 0.9, and here the sigmoid passes little gradient
# Runs whose finals equal their proxies to the eye end at 0.002 mm and 0.0003, those that learn detail above 0.008.
DEAD_RESIDUAL = {"residual_shape_mm": 0.003, "residual_albedo": 5e-4}
WATCHED_FROM = 0.8  # of the fine-tuning: a residual that has not come by then does not come
_SAMPLES = 1024  # texels and vertices per face that stand for all


@dataclass(frozen=True)
class _Limit:
    """Smallest or largest healthy value of a sign, and what to do about another."""

    sign: str
    advice: str
    low: float = -math.inf
    high: float = math.inf


_SLOWER = "Lower training.learning_rate"
_DIFFER = f"All faces look alike. {_SLOWER} or train longer on labels (training.pretrain_fraction)"
_CALM = f"Latents run away. {_SLOWER} or training.gradient_clip"
_VARY = f"Faces differ in one direction only. {_SLOWER}"
_PART = "Light and albedo drift apart. Raise loss.finetune.white_shading, light or albedo"
_LIMITS = (
    *(_Limit(sign, _DIFFER, low=ALIKE) for sign in ("shape_spread", "albedo_spread")),
    *(_Limit(sign, _CALM, high=RUNAWAY) for sign in ("shape_spread", "albedo_spread")),
    *(_Limit(sign, _VARY, low=ONE_LINE) for sign in ("shape_rank", "albedo_rank")),
    *(_Limit("shading_low", _PART, low=DARK), _Limit("shading_high", _PART, high=BRIGHT)),
    *(_Limit("albedo_high", _PART, low=BLACK), _Limit("albedo_low", _PART, high=WHITE)),
)
_RESIDUALS = tuple(DEAD_RESIDUAL)
_NO_RESIDUAL = (
    "The final is the proxy. Lower loss.finetune.residual_shape and residual_albedo, or the weight of labels "
    "(loss.label_fade), or use model.decoder.proxy=false"
)


def effective_rank(latent: Float[Tensor, "batch features"]) -> float:
    """How many directions the rows differ in: exp of the entropy of the normalised singular values; 0 if in none."""
    values = torch.linalg.svdvals(latent - latent.mean(0))
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()) if values.sum() > 0 else 0.0


@torch.no_grad()
def vital_signs(estimate: Estimate, texels: Int[Tensor, " texels"]) -> dict[str, float]:
    """What the limits are about, over the faces of a batch; ``texels`` of the flattened maps stand for all.

    ``spread`` is the standard deviation over the faces, a mean over a latent's coordinates; ``low`` and ``high`` are
    the 5 % and 95 % quantiles.
    """
    signs: dict[str, float] = {}
    latents, maps = estimate.latents, estimate.maps
    for name, latent in (("shape", latents.shape_latent), ("albedo", latents.albedo_latent)):
        latent = latent.cpu().double()  # small, and quicker there than on a GPU
        signs[f"{name}_spread"] = float(latent.std(0).mean())
        if len(latent) >= RANK_FACES:
            signs[f"{name}_rank"] = effective_rank(latent)
    shapes, albedos = (
        [map_.flatten(2)[..., texels] for map_ in pair]
        for pair in ((maps.shape_proxy, maps.shape_final), (maps.albedo_proxy, maps.albedo_final))
    )
    for name, (proxy, final) in zip(_RESIDUALS, (shapes, albedos), strict=True):
        signs[name] = float((final - proxy).abs().mean())
    signs |= _range("albedo", albedos[1])
    if estimate.shading is not None:
        signs |= _range("shading", _thinned(estimate.shading, 1).mean(2))
    return signs


def ailments(signs: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Name and description of each sign outside its limits."""
    for limit in _LIMITS:
        value = signs.get(limit.sign)
        if value is None or limit.low <= value <= limit.high:
            continue
        rule = f"at least {limit.low:g}" if math.isfinite(limit.low) else f"at most {limit.high:g}"
        yield f"{limit.sign} {rule}", f"{limit.sign}: got {value:.3g}; expected {rule}. {limit.advice}."


class HealthMonitor(Callback):
    """Logs the vital signs with the losses and warns of each ailment once, from the end of the warm-up on."""

    def __init__(self, config: RunConfig, uv_mask: Bool[Tensor, "uv_height uv_width"]):
        decoder, self.training, self._every = config.model.decoder, config.training, config.logging.every
        self._texels = _thinned(uv_mask.flatten().nonzero()[:, 0], 0)
        self._has_residual = decoder.kind == "nonlinear" and decoder.proxy
        self._warned: list[str] = []
        self._largest_residuals: dict[str, float] = {}  # near the end of the fine-tuning

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self._every != 0:
            return
        estimate: Estimate = outputs["estimate"]
        self._texels = self._texels.to(estimate.maps.shape_proxy.device)
        signs = vital_signs(estimate, self._texels)
        pl_module.log_dict({f"health/{name}": value for name, value in signs.items()})
        if step > self.training.warmup_steps:
            for kind, message in ailments(signs):
                self._warn(kind, f"step {step}: {message}")
        if self._has_residual and self.training.finetune_progress(step - 1) >= WATCHED_FROM:
            for name in _RESIDUALS:
                self._largest_residuals[name] = max(self._largest_residuals.get(name, 0.0), signs[name])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in self._largest_residuals.items():
            if value < DEAD_RESIDUAL[name]:
                rule = f"{DEAD_RESIDUAL[name]:g} or more in the last fifth of the fine-tuning"
                self._warn(name, f"{name}: got {value:.3g}; expected {rule}. {_NO_RESIDUAL}.")

    def state_dict(self) -> dict[str, Any]:
        return {"warned": list(self._warned), "largest_residuals": dict(self._largest_residuals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._warned, self._largest_residuals = list(state_dict["warned"]), dict(state_dict["largest_residuals"])

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.append(kind)
            warnings.warn(message, stacklevel=2)


def _thinned(values: Tensor, axis: int) -> Tensor:
    """Every n-th entry along an axis, so that at most about ``_SAMPLES`` are left."""
    step = -(-values.shape[axis] // _SAMPLES)
    return values[(slice(None),) * axis + (slice(None, None, max(1, step)),)]


def _range(name: str, values: Tensor) -> dict[str, float]:
    low, high = torch.quantile(values.flatten().float(), values.new_tensor([0.05, 0.95]).float()).tolist()
    return {f"{name}_low": low, f"{name}_high": high}
