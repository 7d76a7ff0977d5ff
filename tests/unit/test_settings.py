"""The config of a run: paper defaults, ranges, shipped files, --print-config."""

from dataclasses import replace

import pytest

from nl3dmm.assets.locations import asset_folder
from nl3dmm.config import config_from_dict, config_to_dict, config_to_yaml, load_config
from nl3dmm.data.augment import NONE, PHOTOS
from nl3dmm.data.labels import LabelConfig
from nl3dmm.errors import ConfigError
from nl3dmm.settings import DataConfig, RunConfig, TrainingConfig
from nl3dmm.systems.weights import LossConfig
from nl3dmm.train import main

FILES = sorted(file for file in asset_folder("configs").rglob("*.yaml") if file.parent.name != "sweep")


def test_defaults_are_the_papers_sizes():
    config = RunConfig()
    assert config.uv_size == (192, 224)
    assert (config.model.image_size, config.model.shape_latent, config.model.albedo_latent) == (224, 320, 320)
    assert (config.model.encoder.width, config.model.encoder.stages) == (32, 5)
    assert (config.model.decoder.width, config.model.decoder.up_samplings) == (16, 5)


def test_configs_of_older_checkpoints_get_todays_augmentation():
    stored = config_to_dict(RunConfig())
    del stored["augment"]
    assert config_from_dict(RunConfig, stored) == RunConfig()
    assert RunConfig().augment.synthetic == NONE
    changed = load_config(RunConfig, [], ["augment.photos.blur=0.5", "augment.synthetic.mirror=0.5"])
    assert (changed.augment.photos.blur, changed.augment.photos.jpeg) == (0.5, PHOTOS.jpeg)
    assert changed.augment.synthetic == replace(NONE, mirror=0.5)


def test_there_are_shipped_configs():
    assert "quickstart.yaml" in {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shipped_config_loads_and_comes_back(file, tmp_path):
    config = load_config(RunConfig, [file])
    assert config != RunConfig()
    (tmp_path / "again.yaml").write_text(config_to_yaml(config))
    assert load_config(RunConfig, [tmp_path / "again.yaml"]) == config
    assert config_from_dict(RunConfig, config_to_dict(config)) == config


def test_print_config_loads_back(capsys, tmp_path):
    assert main(["training.images=640", "--print-config", "loss.finetune.albedo=2.5"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(RunConfig, [tmp_path / "printed.yaml"])
    assert config.training.images == 640
    assert config.loss.finetune.albedo == 2.5
    assert config == load_config(
        RunConfig, [asset_folder("configs") / "quickstart.yaml"], ["training.images=640", "loss.finetune.albedo=2.5"]
    )


@pytest.mark.parametrize(
    "override",
    [
        "system=other",
        "seed=-1",
        "loss.finetune.landmark=nan",
        "loss.pretrain.shape=-1",
        "model.image_size=8",
        "model.encoding=linear",
        "model.shape_latent=0",
        "model.encoder.stages=6",
        "model.encoder.width=0",
        "model.decoder.up_samplings=6",
        "model.decoder.width=0",
        "loss.perceptual.size=8",
        "world.camera=fisheye",
        "world.yaw=nan",
        "world.occlusion=1.5",
        "world.identity=nan",
        "world.expression=-1",
        "data.samples=0",
        "data.workers=-1",
        "training.images=1",
        "training.batch_size=1",
        "training.pretrain_fraction=1.1",
        "training.learning_rate=nan",
        "training.beta1=1",
        "training.beta2=1.5",
        "training.warmup_steps=-1",
        "training.final_learning_rate=-1",
        "training.gradient_clip=0",
        "training.precision=float8",
        "training.threads=0",
        "logging.every=0",
        "logging.wandb=sometimes",
    ],
)
def test_values_out_of_range_are_one_line_errors_that_name_the_key(override, capsys):
    assert main([override, "--print-config"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    key = override.partition("=")[0]
    assert key.split(".")[-1] in captured.err
    assert "got" in captured.err


@pytest.mark.parametrize("distances", ["[0,500]", "[900,400]", "[nan,500]"])
def test_world_distances_are_an_ascending_positive_range(distances, capsys):
    assert main([f"world.distance_mm={distances}", "--print-config"]) == 1
    assert "world.distance_mm: got" in capsys.readouterr().err


def test_unknown_option_is_one_line(capsys):
    assert main(["--lr=1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_steps_are_whole_batches():
    training = TrainingConfig(images=100, batch_size=16, linear_fraction=0.5, pretrain_fraction=0.34)
    assert training.steps == 6
    assert [training.stage(step) for step in range(6)] == ["linear"] * 3 + ["pretrain"] * 2 + ["finetune"]


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        RunConfig().seed = 3
    with pytest.raises(ConfigError, match="seed: got -1"):
        RunConfig(seed=-1)


@pytest.mark.parametrize(("linear", "pretrain"), [(0.8, 0.2), (0.9, 0.1), (1.0, 0.0)])
def test_stages_may_fill_the_whole_run(linear, pretrain):
    assert TrainingConfig(linear_fraction=linear, pretrain_fraction=pretrain).stage(0) == "linear"


def test_stages_may_not_fill_more_than_the_run():
    with pytest.raises(ConfigError, match=r"training.linear_fraction \+ training.pretrain_fraction: got 1.1"):
        TrainingConfig(linear_fraction=0.8, pretrain_fraction=0.3)


def test_two_steps_need_landmarks_that_reach_the_encoder():
    with pytest.raises(ConfigError, match=r"training.encoder_step: got true with loss.landmark_reaches=camera"):
        RunConfig(training=TrainingConfig(encoder_step=True))
    RunConfig(training=TrainingConfig(encoder_step=True), loss=LossConfig(landmark_reaches="encoder"))


def test_labels_of_as_many_coefficients_as_faces_would_be_exact():
    data, labels = DataConfig(samples=40), LabelConfig(shape_coefficients=21)
    with pytest.raises(ConfigError, match=r"shape_coefficients: got 21 with data.samples=40; expected at most 20"):
        RunConfig(data=data, labels=labels)
    RunConfig(data=data, labels=LabelConfig(shape_coefficients=20))
