"""``encoder_from``: a run that starts with another run's encoder."""

import pytest
import torch

from nl3dmm.checkpoint import load_system

AT_REST = tuple(
    f"training.{key}" for key in ("images=8", "learning_rate=0", "pretrain_fraction=1", "linear_fraction=0")
)


def test_the_encoder_is_the_other_runs_and_the_decoders_are_not(train, run, tmp_path):
    """One step at a rate of 0 changes batch statistics alone."""
    assert train(tmp_path / "run", f"encoder_from={run.folder}", *AT_REST) == 0
    start, new = load_system(run.folder).system.model, load_system(tmp_path / "run").system.model
    for name, parameter in start.encoder.named_parameters():
        assert new.encoder.get_parameter(name).equal(parameter), name
    same = [a.equal(b) for a, b in zip(start.shape_decoder.parameters(), new.shape_decoder.parameters(), strict=True)]
    assert not all(same)


def test_without_it_the_encoder_is_new(train, run, tmp_path):
    assert train(tmp_path / "run", *AT_REST) == 0
    start, new = load_system(run.folder).system.model, load_system(tmp_path / "run").system.model
    assert not torch.equal(start.encoder.trunk[0][0].weight, new.encoder.trunk[0][0].weight)


def test_the_linear_model_comes_with_the_encoder_that_finds_its_latents(train, tmp_path):
    """Unless it was made of other labels; then the run makes its own."""
    linear, based = "model.decoder.kind=linear", "model.decoder.linear_base=true"
    start = f"encoder_from={tmp_path / 'start'}"
    assert train(tmp_path / "start", linear, "labels.albedo_blur=8", *AT_REST) == 0
    assert train(tmp_path / "same", based, start, "labels.albedo_blur=8", "seed=1", *AT_REST) == 0
    assert train(tmp_path / "other", based, start, "labels.albedo_blur=0", *AT_REST) == 0
    models = {name: load_system(tmp_path / name).system.model for name in ("start", "same", "other")}
    bases = {name: model.linear_decoders[1].basis for name, model in models.items()}
    assert bases["same"].equal(bases["start"])
    assert not torch.allclose(bases["other"], bases["start"], atol=1e-3)


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("model.shape_latent=9", "whose shape_latent is 8; expected this run's, 9"),
        ("model.camera=free", "whose camera is weak_perspective; expected this run's, free"),
        ("model.encoding=none", "whose encoding is srgb; expected this run's, none"),
        ("uv_size=[48,48]", "whose template is"),
    ],
)
def test_an_encoder_of_another_kind_is_refused_before_faces_are_drawn(
    train, run, tmp_path, capsys, override, difference
):
    assert train(tmp_path / "run", f"encoder_from={run.folder}", override) == 1
    printed = capsys.readouterr()
    assert f"encoder_from: got {run.folder}, {difference}" in printed.err
    assert "drawing" not in printed.out


def test_a_missing_run_is_refused(train, tmp_path, capsys):
    assert train(tmp_path / "run", f"encoder_from={tmp_path / 'nothing'}") == 1
    assert f"encoder_from: got {tmp_path / 'nothing'}, where no checkpoint is" in capsys.readouterr().err
