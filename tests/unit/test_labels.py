"""Coarse labels: what a linear fit and a low pass leave of shape and albedo, and nothing else."""

import pickle
from dataclasses import replace

import pytest
import torch

from nl3dmm.data.bank import FaceBank
from nl3dmm.data.labels import CoarseLabels, LabelConfig
from nl3dmm.data.module import BankDataModule
from nl3dmm.errors import ConfigError
from nl3dmm.model import FaceModel
from nl3dmm.nn.uv_decoder import DecoderConfig
from nl3dmm.systems.weights import LABEL_TERMS, LossConfig, LossWeights
from nl3dmm.training.linear_basis import fit_linear_model

FACES = torch.arange(40)


@pytest.fixture(scope="module")
def bank(small_world, tmp_path_factory) -> FaceBank:
    return FaceBank(small_world, 40, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def coarse(bank) -> CoarseLabels:
    return CoarseLabels(LabelConfig(shape_coefficients=6, albedo_blur=14.0), bank)


def test_no_coarseness_is_the_truth_itself(bank):
    truth = bank.read(FACES[:4])
    labels = CoarseLabels(LabelConfig(), bank)(truth)
    assert labels.vertices is truth.vertices
    assert labels.albedo is truth.albedo


def test_shapes_lie_in_the_span_of_so_many_components_and_are_the_nearest_there(bank, coarse):
    vertices = bank.world.vertices(FACES)
    shapes = coarse.shape(vertices)
    centred = (shapes - shapes.mean(0)).flatten(1)
    assert torch.linalg.matrix_rank(centred, rtol=1e-4) == 6
    torch.testing.assert_close(coarse.shape(shapes), shapes, atol=1e-3, rtol=0)  # a projection
    best = torch.linalg.svdvals((vertices - vertices.mean(0)).flatten(1))[6:].square().sum()
    assert (vertices - shapes).square().sum() < 1.001 * best
    assert 0.3 < (vertices - shapes).norm(dim=-1).mean() < 3.0  # mm


def test_albedo_keeps_its_mean_tone_and_loses_its_detail(bank, coarse, small_template):
    truth = bank.read(FACES).albedo
    blurred, mask = coarse.albedo(truth), small_template.uv_mask

    def steps(maps: torch.Tensor) -> torch.Tensor:
        return (maps.diff(dim=3).abs() * (mask[:, 1:] & mask[:, :-1])).mean()

    assert steps(blurred) < 0.5 * steps(truth)
    torch.testing.assert_close(blurred[..., mask].mean(-1), truth[..., mask].mean(-1), atol=0.02, rtol=0)
    one_colour = torch.full_like(truth, 0.4)
    torch.testing.assert_close(coarse.albedo(one_colour)[..., mask], one_colour[..., mask])


def test_only_shape_and_albedo_change_and_what_is_unknown_stays_so(bank, coarse):
    truth = bank.read(FACES[:4])
    labels = coarse(truth)
    assert labels.vertices is not None
    for name in ("image", "index", "landmarks", "mask", "camera", "sh_coefficients"):
        assert getattr(labels, name) is getattr(truth, name)
    unknown = replace(truth, vertices=None, albedo=None)
    assert coarse(unknown) == unknown


def test_the_data_module_hands_out_labels(bank, coarse):
    data = BankDataModule(bank, seed=2, batch_size=4, steps=2, labels=coarse)
    exact = BankDataModule(bank, seed=2, batch_size=4, steps=2)
    for batch, truth in zip(data.train_dataloader(), exact.train_dataloader(), strict=True):
        assert batch.index.equal(truth.index)
        assert batch.vertices.equal(coarse.shape(truth.vertices))
        assert batch.albedo.equal(coarse.albedo(truth.albedo))


def test_a_linear_model_is_fitted_to_what_training_sees(bank, coarse, small_template, small_model_config):
    config = replace(small_model_config, decoder=DecoderConfig(kind="linear"))
    model = FaceModel(config, small_template)
    fit_linear_model(model, bank, coarse)
    lengths = model.shape_decoder.basis.norm(dim=1)
    assert (lengths[:6] > 1).all()
    assert (lengths[6:] < 1e-2 * lengths[0]).all()  # nothing beyond the labels' own six


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape_coefficients": -1}, "labels.shape_coefficients: got -1; expected 0 to 500"),
        ({"albedo_blur": float("nan")}, "labels.albedo_blur: got nan; expected 0 to 56"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**values)


def test_pickled_labels_are_small_and_the_same(bank, coarse):
    content = pickle.dumps(coarse)
    assert len(content) < 1e6
    truth = bank.read(FACES[:4])
    labels, again = coarse(truth), pickle.loads(content)(truth)
    assert again.vertices.equal(labels.vertices)
    assert again.albedo.equal(labels.albedo)


def test_label_weights_fade_from_those_of_pretraining():
    faint = LossWeights(**dict.fromkeys(LABEL_TERMS, 0.1))
    loss = LossConfig(finetune=faint, label_fade=0.5)
    assert loss.finetune_at(0.5) == loss.finetune_at(1.0) == faint
    start, half = loss.finetune_at(0.0), loss.finetune_at(0.25)
    for name in LABEL_TERMS:
        before = getattr(loss.pretrain, name)
        assert getattr(start, name) == before
        assert getattr(half, name) == pytest.approx((before + 0.1) / 2)
    assert half.photo_proxy_final == faint.photo_proxy_final
    with pytest.raises(ConfigError, match=r"loss.label_fade: got -1.0; expected 0 to 1"):
        LossConfig(label_fade=-1.0)
