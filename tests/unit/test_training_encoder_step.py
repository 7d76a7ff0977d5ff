"""The released code's two steps per batch, against the same two steps written out by hand."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from nl3dmm.nn.perceptual import PerceptualConfig
from nl3dmm.settings import RunConfig, TrainingConfig
from nl3dmm.systems.weights import LossConfig
from nl3dmm.training.module import TrainingModule, encoder_rate_factor, learning_rate_factor

BATCHES = 2


@pytest.fixture
def config(small_model_config, tmp_path) -> RunConfig:
    """Two steps of fine-tuning; the clipping works on every gradient."""
    perceptual = PerceptualConfig(layers=("conv1_1",), weights="random", size=32)
    training = TrainingConfig(
        images=4 * BATCHES,
        batch_size=4,
        linear_fraction=0.0,
        pretrain_fraction=0.0,
        gradient_clip=0.5,
        warmup_steps=4,
        encoder_step=True,
        precision="float32",
    )
    loss = LossConfig(perceptual=perceptual, landmark_reaches="encoder")
    return RunConfig(output=str(tmp_path), uv_size=(32, 32), model=small_model_config, loss=loss, training=training)


@pytest.fixture(scope="module")
def batches(small_world):
    return [small_world.sample(torch.arange(4) + 4 * step) for step in range(BATCHES)]


def fit(module: TrainingModule, batches) -> Trainer:
    trainer = Trainer(
        max_steps=len(batches),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=module.config.output,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def by_hand(system, batches, config: RunConfig) -> None:
    """One batch: Adam on the encoder with landmarks, then another Adam on everything without."""
    training, weights = config.training, config.loss.finetune
    betas = (training.beta1, training.beta2)
    encoder = list(system.model.encoder.parameters())
    steps = (
        (encoder, torch.optim.Adam(encoder, betas=betas, fused=True), weights),
        (
            list(system.parameters()),
            torch.optim.Adam(system.parameters(), betas=betas, fused=True),
            replace(weights, landmark=0.0),
        ),
    )
    for number, batch in enumerate(batches):
        for parameters, optimizer, step_weights in steps:
            system.zero_grad()
            system.objective(batch, step_weights, number).total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
            optimizer.param_groups[0]["lr"] = training.learning_rate * learning_rate_factor(number, training)
            optimizer.step()


def test_equals_two_steps_by_hand(config, small_template, batches):
    module = TrainingModule(config, small_template)
    expected, start = copy.deepcopy(module.system), copy.deepcopy(module.system.state_dict())
    by_hand(expected.train(), batches, config)
    trainer = fit(module, batches)
    assert trainer.global_step == BATCHES  # batches, not optimiser steps: stages, data and checkpoints count them
    for name, value in module.system.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    moved = {name.split(".")[1] for name, value in module.system.named_parameters() if not value.equal(start[name])}
    assert moved == {"encoder", "shape_decoder", "albedo_decoder"}


def test_landmarks_reach_only_the_first_step(config, small_template, batches, monkeypatch):
    seen = []
    module = TrainingModule(config, small_template)
    objective = module.system.objective
    monkeypatch.setattr(module.system, "objective", lambda *args: seen.append(args[1].landmark) or objective(*args))
    fit(module, batches)
    assert seen == [10.0, 0.0] * BATCHES


def test_linear_stage_and_the_default_take_one_step(config, small_template, batches):
    linear = replace(config, training=replace(config.training, linear_fraction=1.0))
    default = replace(linear, training=replace(linear.training, encoder_step=False))
    states = []
    for each in (linear, default):
        torch.manual_seed(0)
        module = TrainingModule(each, small_template)
        fit(module, batches)
        assert (module.encoder_optimizer is not None) == each.training.encoder_step
        states.append(module.system.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_state_of_the_second_adam_is_saved(config, small_template, batches, tmp_path):
    module = TrainingModule(config, small_template)
    trainer = fit(module, batches)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["encoder_optimizer_state"]
    parameters = list(module.system.model.encoder.parameters())
    assert len(state["state"]) == len(parameters)
    assert all(int(moments["step"]) == BATCHES for moments in state["state"].values())
    again = TrainingModule(config, small_template)
    again.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))
    again.configure_optimizers()
    restored = again.encoder_optimizer.state_dict()["state"]
    assert all(torch.equal(restored[key]["exp_avg"], state["state"][key]["exp_avg"]) for key in restored)


@pytest.mark.parametrize("two_steps", [False, True])
def test_the_encoder_has_a_rate_of_its_own(config, batches, small_template, two_steps):
    """Adam's first steps are as long as the rate, whatever the gradient."""
    moved = {}
    for rate in (1.0, 0.25, 0.0):
        training = replace(config.training, encoder_step=two_steps, encoder_rate=rate)
        torch.manual_seed(0)
        module = TrainingModule(replace(config, training=training), small_template)
        before = copy.deepcopy(module.system.model)
        fit(module, batches[:1])
        for part in ("encoder", "albedo_decoder"):
            old, new = (list(getattr(model, part).parameters()) for model in (before, module.system.model))
            moved[part, rate] = max(float((b - a).detach().abs().max()) for a, b in zip(old, new, strict=True))
    assert moved["encoder", 0.25] == pytest.approx(moved["encoder", 1.0] / 4, rel=1e-2)
    assert moved["encoder", 0.0] == 0
    assert moved["albedo_decoder", 0.0] == pytest.approx(moved["albedo_decoder", 1.0], rel=1e-2)


def test_the_encoders_rate_falls_when_the_decoders_join():
    training = TrainingConfig(
        images=160, batch_size=16, linear_fraction=0.5, warmup_steps=0, decay_start=1.0, encoder_rate=0.25
    )
    assert [encoder_rate_factor(step, training) for step in (0, 4, 5, 9)] == [1.0, 1.0, 0.25, 0.25]
    assert [learning_rate_factor(step, training) for step in (0, 9)] == [1.0, 1.0]
