"""The paper's figures: inputs stay as they are, equal systems look equal, numbers are those of the evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.errors import CheckpointError, ConfigError, ShapeError
from nl3dmm.evaluation.accuracy import face_errors
from nl3dmm.evaluation.representation import TextureFit, texture_errors
from nl3dmm.figures import pictures
from nl3dmm.figures.faces import check_alike
from nl3dmm.figures.pictures import Figure, numbers_table, pairing, reconstruction, symmetry, texture
from nl3dmm.figures.sheets import diverging, fitted
from nl3dmm.geometry.camera import rotation_from_euler, weak_perspective
from nl3dmm.render.uv import unwrap_photo
from nl3dmm.settings import RunConfig
from nl3dmm.systems.highfidelity import HighFidelity, HighFidelityConfig

CELL, GAP, HEADING, CAPTION = pictures.CELL, 8, 33, 27
ALL = (reconstruction, pairing, symmetry, texture)


def system(template, config, seed: int, fresh: bool = False) -> TrainedSystem:
    """Random weights in every layer, or fresh decoders, whose ends are the same."""
    torch.manual_seed(seed)
    run = RunConfig(model=config, uv_size=(32, 32))
    system = HighFidelity(HighFidelityConfig(config), template).eval()
    with torch.no_grad():
        for decoder in () if fresh else (system.model.shape_decoder, system.model.albedo_decoder):
            for parameter in decoder.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.kaiming_normal_(parameter)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return TrainedSystem(system, run, template, 0, Path("none"))


@pytest.fixture(scope="module")
def trained(small_template, small_model_config) -> TrainedSystem:
    return system(small_template, small_model_config, 0)


@pytest.fixture(scope="module")
def other(small_template, small_model_config) -> TrainedSystem:
    return system(small_template, small_model_config, 1)


@pytest.fixture(scope="module")
def fresh(small_template, small_model_config) -> TrainedSystem:
    return system(small_template, small_model_config, 0, fresh=True)


@pytest.fixture(scope="module")
def batch(small_world):
    return small_world.sample(torch.arange(5))


def cell(figure: Figure, row: int, column: int, groups: bool = False, rows: int = CELL) -> torch.Tensor:
    """The picture of one place; ``rows``: of its height, in the middle."""
    top = GAP + HEADING * (1 + groups) + row * (CELL + CAPTION + GAP) + (CELL - rows) // 2
    left = GAP + column * (CELL + GAP)
    return figure.picture[:, top : top + rows, left : left + CELL]


@pytest.mark.parametrize("draw", ALL)
def test_the_first_column_is_the_input(trained, batch, draw):
    figure = draw({"one": trained}, batch[0:2], 0)
    for k, image in enumerate(fitted(batch.image[:2], CELL)):
        assert torch.equal(cell(figure, k, 0, draw in (pairing, symmetry)), image)


def test_inputs_as_large_as_a_cell_are_not_touched(small_template, small_model_config):
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    large = system(small_template, replace(small_model_config, image_size=256), 0)
    batch = SyntheticWorld(small_template, WorldConfig(), image_size=256).sample(torch.arange(1))
    figure = reconstruction({"one": large}, batch, 0)
    assert torch.equal(figure.picture[:, GAP + HEADING : GAP + HEADING + 256, GAP : GAP + 256], batch.image[0])


@pytest.mark.parametrize("draw", [reconstruction, texture])
def test_equal_systems_have_equal_columns(trained, other, batch, draw):
    figure = draw({"one": trained, "two": trained, "three": other}, batch[0:2], 2)
    for row in range(2):
        assert torch.equal(cell(figure, row, 1), cell(figure, row, 2))
        assert not torch.equal(cell(figure, row, 1), cell(figure, row, 3))
    for row in figure.numbers.values():
        assert row["one"] == row["two"] != row["three"]


def test_equal_systems_have_equal_residuals(trained, other, batch):
    figure = symmetry({"one": trained, "two": trained, "three": other}, batch[0:1], 0)
    for column in (1, 2, 3):
        assert torch.equal(cell(figure, 0, column, True), cell(figure, 0, column + 3, True))
        assert not torch.equal(cell(figure, 0, column, True), cell(figure, 0, column + 6, True))


@pytest.mark.parametrize("draw", ALL)
def test_a_face_is_the_same_in_any_batch(trained, batch, draw):
    """Five faces are more than are drawn at a time."""
    many, alone = draw({"one": trained}, batch, 1), draw({"one": trained}, batch[4:5], 1)
    assert list(many.numbers) == [f"face {k}" for k in range(1, 6)] + ["mean"]
    for name, value in alone.numbers["mean"].items():
        assert many.numbers["face 5"][name] == pytest.approx(value, rel=1e-3, abs=1e-5)
    groups = draw in (pairing, symmetry)
    torch.testing.assert_close(cell(many, 4, 1, groups), cell(alone, 0, 1, groups), atol=0.02, rtol=0)


def test_reconstruction_errors_are_those_of_evaluate(trained, batch):
    model = trained.system.model
    with torch.no_grad():
        expected = face_errors(model, model.encode(batch.image), batch)["photo"]
    numbers = reconstruction({"one": trained}, batch, 0).numbers
    assert [numbers[f"face {k + 1}"]["one"] for k in range(5)] == pytest.approx(expected.tolist(), rel=1e-4)
    assert numbers["mean"]["one"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_texture_errors_are_those_of_evaluate(trained, batch):
    model = trained.system.model
    with torch.no_grad():
        face = model.encode(batch.image)
        fit = TextureFit(model.decode(face.latents).maps.albedo_final, face.sh_coefficients)
    expected = texture_errors(model, batch, fit, torch.zeros(3, 32, 32))["l21"]
    numbers = texture({"one": trained}, batch, 0).numbers
    assert [numbers[f"face {k + 1}"]["one"] for k in range(5)] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("draw", [reconstruction, texture])
def test_steps_bring_the_faces_nearer(trained, batch, draw):
    start, end = (draw({"one": trained}, batch[0:2], steps).numbers["mean"]["one"] for steps in (0, 10))
    assert end < start


def test_pairs_of_equal_ends_are_equal(fresh, batch):
    figure = pairing({"one": fresh}, batch[0:1], 0)
    assert len({round(value, 6) for value in figure.numbers["mean"].values()}) == 1
    for column in (2, 3, 4):
        torch.testing.assert_close(cell(figure, 0, column, True), cell(figure, 0, 1, True))
    torch.testing.assert_close(cell(figure, 0, 5, True), cell(figure, 0, 6, True))
    torch.testing.assert_close(cell(figure, 0, 7, True), cell(figure, 0, 8, True))


def test_pairs_differ_by_what_differs(trained, batch):
    figure = pairing({"one": trained}, batch[0:1], 0)
    assert len(set(figure.numbers["mean"].values())) == 4
    assert not torch.allclose(cell(figure, 0, 5, True), cell(figure, 0, 6, True), atol=0.05)
    assert not torch.allclose(cell(figure, 0, 7, True), cell(figure, 0, 8, True), atol=0.05)


def test_without_a_residual_its_map_is_neutral(fresh, batch):
    figure = symmetry({"one": fresh}, batch[0:1], 0)
    assert figure.numbers["mean"] == {"one: asymmetry": 0, "one: hidden": 0, "one: mirrored": 0}
    colours = cell(figure, 0, 3, True).flatten(1).T
    neutral = diverging(torch.zeros(1, 1, 1, 1), 1.0).flatten()
    is_neutral, is_line = ((colours - colour).abs().amax(1) < 1e-4 for colour in (neutral, 0.2 * neutral))
    is_margin = (colours >= neutral - 1e-4).all(1)  # towards the white outside the map
    assert (is_neutral | is_line | is_margin).all()
    assert is_neutral.float().mean() > 0.8


def test_a_mirrored_residual_is_symmetric(trained, batch, monkeypatch):
    """Its hidden and its mirrored part are the same."""
    decode = type(trained.system.model).decode

    def mirrored(model, latents):
        geometry = decode(model, latents)
        residual = geometry.maps.shape_final - geometry.maps.shape_proxy
        final = geometry.maps.shape_proxy + residual + residual.flip(-1)
        return replace(geometry, maps=replace(geometry.maps, shape_final=final))

    before = symmetry({"one": trained}, batch[0:2], 0).numbers["mean"]
    monkeypatch.setattr(type(trained.system.model), "decode", mirrored)
    after = symmetry({"one": trained}, batch[0:2], 0).numbers["mean"]
    assert before["one: asymmetry"] > 0.01
    assert after["one: asymmetry"] < 1e-5
    assert after["one: hidden"] == pytest.approx(after["one: mirrored"], rel=1e-4)


def test_the_hidden_side_is_turned_to_the_viewer(trained, small_template):
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    batch = SyntheticWorld(small_template, WorldConfig(yaw=60.0, pitch=0.0, roll=0.0), image_size=48).sample(
        torch.arange(8)
    )
    model, zero = trained.system.model, torch.zeros(8)
    with torch.no_grad():
        face = model.encode(batch.image)
        visible, hidden, yaw = pictures._hidden(model, batch, face, model.decode(face.latents))
    assert not (visible & hidden).any()
    rotation = rotation_from_euler(zero, torch.deg2rad(yaw), zero)
    camera = weak_perspective(rotation, torch.zeros(8, 2), zero + 0.2, torch.full((8, 2), 24.0))
    turned = unwrap_photo(batch.image, camera, batch.vertices, model.surface).visible
    assert (turned & hidden).sum() > 0.9 * hidden.sum() > 100


@pytest.mark.parametrize(("value", "limit"), [(0.1, 0.1), (0.11, 0.2), (0.3, 0.5), (0.51, 1), (1.0, 1), (7.3, 10)])
def test_limits_are_round(value, limit):
    assert pictures._round_up(value) == pytest.approx(limit)


def test_the_table_is_aligned():
    numbers = {"face 1": {"a": 0.5, "a long label": 0.25}, "mean": {"a": 0.5, "a long label": 0.25}}
    lines = numbers_table(numbers).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["a", "a", "long", "label"]
    assert lines[1].split() == ["face", "1", "0.5000", "0.2500"]


def test_progress_counts_the_faces_of_every_system(trained, other, batch):
    seen = []
    reconstruction({"one": trained, "two": other}, batch, 0, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (5, 10), (9, 10), (10, 10)]


def test_pairs_are_of_one_system(trained, other, batch):
    with pytest.raises(ConfigError, match=r"checkpoints: got 2 for figure 5; expected one\. Draw a figure for each"):
        pairing({"one": trained, "two": other}, batch, 0)


def test_textures_need_the_truth(trained, batch):
    with pytest.raises(ShapeError, match="got faces without truth"):
        texture({"one": trained}, replace(batch, camera=None), 0)


def test_systems_must_see_the_same_faces(trained, other, template, small_model_config):
    check_alike({"one": trained, "two": other}, synthetic=True)
    larger = replace(other, config=replace(other.config, model=replace(small_model_config, image_size=64)))
    for synthetic in (False, True):
        with pytest.raises(CheckpointError, match=r"got image_size 64 of 'two'; expected 48 as of 'one'\. Draw a"):
            check_alike({"one": trained, "two": larger}, synthetic)
    elsewhere = replace(other, template=template)
    check_alike({"one": trained, "two": elsewhere}, synthetic=False)
    with pytest.raises(CheckpointError, match=r"got template embedded \(\w{12}\) of 'two'; expected embedded"):
        check_alike({"one": trained, "two": elsewhere}, synthetic=True)
