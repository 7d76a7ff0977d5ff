"""Pictures of models: what is drawn on an image leaves the rest of it alone, clay is upright, grey and on white."""

import pytest
import torch

from nl3dmm.geometry.camera import project
from nl3dmm.losses.pixels import l21
from nl3dmm.model import Face, FaceModel
from nl3dmm.panels import _view, clay, clay_map, drawn_over, error_picture, model_panel, on_white, stack_rows
from nl3dmm.render.scene import composite


@pytest.fixture(scope="module")
def model(small_model_config, small_template) -> FaceModel:
    torch.manual_seed(1)
    return FaceModel(small_model_config, small_template).eval()


@pytest.fixture(scope="module")
def batch(small_world):
    return small_world.sample(torch.arange(2))


@pytest.fixture(scope="module")
def face(model, batch) -> Face:
    """True camera and light."""
    with torch.no_grad():
        return Face(model.encode(batch.image).latents, batch.camera, batch.sh_coefficients)


def test_rows_are_stacked_on_white():
    wide, narrow = torch.zeros(2, 3, 4, 6), torch.full((2, 3, 5, 2), 0.5)
    picture = stack_rows([wide, narrow])
    assert picture.shape == (3, 4 + 2 + 5 + 2, 2 * (6 + 2))
    assert (picture[:, :4, :6] == 0).all()
    assert (picture[:, 6:11, 2:4] == 0.5).all()
    assert (picture[:, 6:11, :2] == 1).all()


def test_error_colours():
    target = torch.zeros(1, 3, 1, 3)
    image = torch.tensor([0.0, 0.4 / 3, 1.0]).view(1, 1, 1, 3) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    colours = error_picture(image, target)[0, :, 0].T
    expected = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1]])
    torch.testing.assert_close(colours, expected, atol=1e-4, rtol=0)


def test_model_panel_has_a_row_for_everything(model, batch, face):
    panel = model_panel(model, batch, face)
    assert panel.shape == (3, (6 + 3) * 50 + 3 * 34, 2 * 50)
    assert torch.equal(panel[:, :48, :48], batch.image[0])


def test_what_no_mesh_covers_is_the_image(model, batch, face):
    over = drawn_over(model, face, batch.vertices, batch.albedo[:, None], batch.image)[:, 0]
    drawn = model.render(face, batch.vertices, batch.albedo[:, None], (48, 48))
    near = torch.nn.functional.max_pool2d(drawn.mask[:, None].float(), 3, 1, 1) > 0
    where = ~near.expand_as(over)
    assert where.float().mean() > 0.2
    assert torch.equal(over[where], batch.image[where])


def test_the_truth_drawn_on_its_image_is_the_image(small_template, model, face):
    """But for the noise, of which this world has none: the same edges, the same colours."""
    from nl3dmm.synthetic.world import SyntheticWorld, WorldConfig

    world = SyntheticWorld(small_template, WorldConfig(noise=0.0, occlusion=0.0), image_size=48)
    batch = world.sample(torch.arange(3))
    truth = Face(face.latents[:1], batch.camera, batch.sh_coefficients)
    over = drawn_over(model, truth, batch.vertices, batch.albedo[:, None], batch.image)[:, 0]
    smooth = l21(over, batch.image, torch.ones(3, 48, 48, dtype=torch.bool))
    hard = model.render(truth, batch.vertices, batch.albedo[:, None], (48, 48))
    hard = composite(hard.images[:, 0].clamp(0, 1), batch.image, hard.mask)
    assert (smooth < 0.02).all()
    assert (smooth < l21(hard, batch.image, torch.ones(3, 48, 48, dtype=torch.bool))).all()


def test_several_albedos_are_drawn_as_each_alone(model, batch, face):
    albedos = torch.stack([batch.albedo, 1 - batch.albedo], 1)
    both = drawn_over(model, face, batch.vertices, albedos, batch.image)
    for k in range(2):
        torch.testing.assert_close(
            both[:, k], drawn_over(model, face, batch.vertices, albedos[:, k : k + 1], batch.image)[:, 0]
        )


def clay_mask(picture: torch.Tensor) -> torch.Tensor:
    return picture.amin(1) < 0.99


def test_clay_is_grey_on_white_and_fills_its_picture(model):
    (picture,) = clay(model, model.template.vertices[None], torch.zeros(1), 100)
    mask = clay_mask(picture[None])[0]
    assert torch.equal(picture[0], picture[2])
    assert picture[0][mask].min() > 0.15
    assert (picture[:, :2] == 1).all()
    rows, columns = torch.where(mask)
    assert float(rows.float().mean()) == pytest.approx(50, abs=8)
    assert 90 <= int(rows.max() - rows.min()) + 1 <= 96
    assert int(columns.max() + columns.min()) == pytest.approx(99, abs=1)


def test_clay_turns_to_either_side_alike(model):
    """The template is mirror-symmetric, and so are its outlines; positive yaw looks to the image's right."""
    yaw = torch.tensor([40.0, -40.0])
    right, left = clay_mask(clay(model, model.template.vertices.expand(2, -1, -1), yaw, 96))
    assert (right == left.flip(-1)).float().mean() > 0.99
    nose = model.template.landmarks(model.template.vertices[None])[:, 30:31]
    assert float(project(_view(model, yaw[:1], 96), nose)[0][0, 0, 0]) > 60


def test_clay_maps_show_the_shading_of_the_front(model):
    vertices = torch.stack([model.template.vertices, model.template.vertices * torch.tensor([1, 1, 0.5])])
    round_face, flat_face = clay_map(model, vertices)
    inside = model.template.uv_mask
    assert round_face.shape == (3, 32, 32)
    assert torch.equal(round_face[0], round_face[1])
    assert flat_face[0][inside].std() < round_face[0][inside].std()
    assert 0.1 < float(round_face[0][inside].min()) < float(round_face[0][inside].max()) <= 1


def test_on_white():
    picture = torch.full((1, 3, 2, 2), 0.4)
    share = torch.tensor([[0.0, 1.0], [0.5, 0.0]])[None, None]
    assert torch.allclose(on_white(picture, share)[0, 0], torch.tensor([[1.0, 0.4], [0.7, 1.0]]))
