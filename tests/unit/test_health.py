"""Collapse detector: known values of the signs, what is ill and what is healthy, and that it warns once."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from nl3dmm.losses.objective import Estimate
from nl3dmm.model import ModelConfig
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.settings import LoggingConfig, RunConfig, TrainingConfig
from nl3dmm.training.health import HealthMonitor, ailments, effective_rank, vital_signs
from nl3dmm.types import Latents, UVMaps

FACES, SIZE = 16, (8, 8)
MASK = torch.ones(SIZE, dtype=torch.bool)
MASK[0] = False
TEXELS = MASK.flatten().nonzero()[:, 0]


@pytest.fixture
def healthy() -> Estimate:
    """As a good run's: spread 1, skin colours, a residual of 0.1 mm and 0.01."""
    shape, albedo = torch.randn(FACES, 3, *SIZE), 0.3 + 0.4 * torch.rand(FACES, 3, *SIZE)
    maps = UVMaps(shape, shape + 0.1, albedo, albedo + 0.01)
    return Estimate(Latents(torch.randn(FACES, 6), torch.randn(FACES, 5)), maps, 0.4 + 0.6 * torch.rand(FACES, 50, 3))


def with_shape_latent(estimate: Estimate, latent: torch.Tensor) -> Estimate:
    return replace(estimate, latents=replace(estimate.latents, shape_latent=latent))


def with_albedo(estimate: Estimate, final: torch.Tensor) -> Estimate:
    return replace(estimate, maps=replace(estimate.maps, albedo_final=final))


def kinds(estimate: Estimate) -> list[str]:
    return [kind for kind, _ in ailments(vital_signs(estimate, TEXELS))]


def test_signs_are_known_values(healthy):
    alternating = torch.tensor([-3.0, 3.0]).repeat(8)[:, None] * torch.tensor([1.0, 0.0])
    shading = torch.linspace(0, 2, 101)[None, :, None].expand(FACES, 101, 3)
    albedo = torch.linspace(0, 1, 7)[None, None, :, None].expand(FACES, 3, 7, 8)
    albedo = torch.cat([torch.full_like(albedo[:, :, :1], 9.0), albedo], 2)  # the masked row does not count
    maps = replace(healthy.maps, albedo_proxy=albedo - 0.25, albedo_final=albedo)
    signs = vital_signs(replace(with_shape_latent(healthy, alternating), maps=maps, shading=shading), TEXELS)
    assert signs["shape_spread"] == pytest.approx(3 * math.sqrt(16 / 15) / 2)
    assert signs["shape_rank"] == pytest.approx(1)
    assert signs["residual_shape_mm"] == pytest.approx(0.1, abs=1e-6)
    assert signs["residual_albedo"] == pytest.approx(0.25, abs=1e-6)
    assert (signs["shading_low"], signs["shading_high"]) == pytest.approx((0.1, 1.9), abs=0.01)
    assert (signs["albedo_low"], signs["albedo_high"]) == pytest.approx((0, 1))


def test_effective_rank():
    orthogonal = torch.linalg.qr(torch.randn(8, 5)).Q
    rows = torch.cat([orthogonal, -orthogonal])
    assert effective_rank(rows) == pytest.approx(5)
    assert effective_rank(rows * torch.tensor([1.0, 1, 1e-9, 1e-9, 1e-9])) == pytest.approx(2, abs=1e-4)
    assert effective_rank(torch.ones(4, 3)) == 0


def test_healthy_faces_have_no_ailment(healthy):
    assert kinds(healthy) == []
    assert kinds(replace(healthy, shading=None)) == []
    assert "shading_low" not in vital_signs(replace(healthy, shading=None), TEXELS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: with_shape_latent(e, e.latents.shape_latent * 1e-4 + 5), ["shape_spread at least 0.001"]),
        (lambda e: with_shape_latent(e, e.latents.shape_latent * 300), ["shape_spread at most 100"]),
        (lambda e: with_shape_latent(e, e.latents.shape_latent[:, :1] * torch.ones(6)), ["shape_rank at least 1.2"]),
        (
            lambda e: with_shape_latent(e, torch.ones(FACES, 6)),
            ["shape_spread at least 0.001", "shape_rank at least 1.2"],
        ),
        (lambda e: replace(e, shading=e.shading * 0.01), ["shading_low at least 0.02"]),
        (lambda e: replace(e, shading=e.shading * 10), ["shading_high at most 4"]),
        (lambda e: with_albedo(e, e.maps.albedo_final * 0.01), ["albedo_high at least 0.02"]),
        (lambda e: with_albedo(e, 1 - e.maps.albedo_final * 0.01), ["albedo_low at most 0.98"]),
    ],
    ids=["alike", "runaway", "one line", "equal", "dark", "bright", "black", "white"],
)
def test_collapsed_faces(healthy, change, expected):
    assert kinds(change(healthy)) == expected


def test_rank_of_three_faces_means_nothing(healthy):
    assert "shape_rank" not in vital_signs(healthy[slice(0, 3)], TEXELS)


def test_message_has_the_number_and_the_remedy(healthy):
    ((_, message),) = ailments(vital_signs(with_shape_latent(healthy, healthy.latents.shape_latent * 1e-4), TEXELS))
    assert message.startswith("shape_spread: got ")
    assert "e-0" in message.partition(";")[0]
    assert message.endswith(
        "; expected at least 0.001. All faces look alike. Lower training.learning_rate or train longer on labels "
        "(training.pretrain_fraction)."
    )
    assert "\n" not in message


# The callback, in a real trainer


class Stub(LightningModule):
    """Hands out the estimates it was given, one per step."""

    def __init__(self, estimates: list[Estimate]):
        super().__init__()
        self.estimates = estimates
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return {"loss": self.weight * 1, "estimate": self.estimates[self.global_step]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def config(steps: int, every: int = 1, proxy: bool = True) -> RunConfig:
    training = TrainingConfig(
        images=2 * steps, batch_size=2, linear_fraction=0.0, pretrain_fraction=0.0, warmup_steps=1
    )
    model = ModelConfig(decoder=DecoderConfig(proxy=proxy))
    return RunConfig(model=model, training=training, logging=LoggingConfig(every=every))


def fit(estimates: list[Estimate], monitor: HealthMonitor, folder) -> tuple[list[str], dict[str, float]]:
    """The warnings and the last logged values of a run that makes these estimates."""
    trainer = Trainer(
        max_steps=len(estimates),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[monitor],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Stub(estimates), DataLoader(torch.zeros(len(estimates)), batch_size=1))
    values = {name: float(value) for name, value in trainer.logged_metrics.items()}
    return [str(warning.message) for warning in caught if ": got" in str(warning.message)], values


def dead(estimate: Estimate) -> Estimate:
    """Residuals as an early quick start had them, whose finals nobody could tell from proxies."""
    maps = estimate.maps
    finals = {"shape_final": maps.shape_proxy + 0.002, "albedo_final": maps.albedo_proxy + 0.0003}
    return replace(estimate, maps=replace(maps, **finals))


def test_monitor_logs_and_is_silent_on_a_healthy_run(healthy, tmp_path):
    found, values = fit([healthy] * 5, HealthMonitor(config(5), MASK), tmp_path)
    assert found == []
    expected = vital_signs(healthy, TEXELS)
    assert {name.removeprefix("health/"): value for name, value in values.items()} == pytest.approx(expected)


def test_each_ailment_is_reported_once_and_not_in_the_warm_up(healthy, tmp_path):
    alike = with_shape_latent(healthy, healthy.latents.shape_latent * 1e-4)
    both = replace(alike, shading=healthy.shading * 10)
    monitor = HealthMonitor(config(6), MASK)
    found, _ = fit([alike, healthy, alike, alike, both, both], monitor, tmp_path)
    assert [line.partition(": got")[0] for line in found] == ["step 3: shape_spread", "step 5: shading_high"]
    resumed = HealthMonitor(config(6), MASK)
    resumed.load_state_dict(monitor.state_dict())
    assert fit([both] * 6, resumed, tmp_path)[0] == []


def test_only_steps_that_are_logged_are_looked_at(healthy, tmp_path):
    alike = with_shape_latent(healthy, healthy.latents.shape_latent * 1e-4)
    monitor = HealthMonitor(config(5, every=3), MASK)
    assert fit([alike, alike, healthy, alike, alike], monitor, tmp_path)[0] == []


@pytest.mark.parametrize(
    ("alive", "proxy", "expected"),
    [((), True, 2), ((7,), True, 2), ((8,), True, 0), ((9,), True, 0), ((), False, 0)],
    ids=["never", "too early", "first that counts", "last", "no residual"],
)
def test_dead_residual(healthy, tmp_path, alive, proxy, expected):
    """Ten steps, of which the last two count."""
    estimates = [healthy if step in alive else dead(healthy) for step in range(10)]
    found, _ = fit(estimates, HealthMonitor(config(10, proxy=proxy), MASK), tmp_path)
    assert len(found) == expected
    if found:
        assert found[0].startswith("residual_shape_mm: got 0.002; expected 0.003 or more in the last fifth")
        assert "loss.finetune.residual_shape" in found[0]


def test_largest_residuals_survive_a_restart(healthy, tmp_path):
    first = HealthMonitor(config(10), MASK)
    residuals = {"residual_shape_mm": 0.2, "residual_albedo": 0.0004}
    first.load_state_dict({"warned": [], "largest_residuals": residuals})
    found, _ = fit([dead(healthy)] * 10, first, tmp_path)
    assert [line.partition(":")[0] for line in found] == ["residual_albedo"]
    assert first.state_dict()["largest_residuals"] == residuals


def test_many_texels_are_thinned_evenly():
    monitor = HealthMonitor(config(1), torch.ones(192, 224, dtype=torch.bool))
    assert 512 < len(monitor._texels) <= 1024
    assert len(monitor._texels.diff().unique()) == 1
