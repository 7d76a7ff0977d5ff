import pytest
import torch

from nl3dmm.errors import ShapeError
from nl3dmm.synthetic.skin_params import Mix, SkinParameters, draw_skin
from nl3dmm.types import concatenate


def flat(face: SkinParameters) -> torch.Tensor:
    """All numbers of a face in one row."""
    tensors = []
    face.map(lambda tensor: tensors.append(tensor.double().flatten()) or tensor)
    return torch.cat(tensors)


def test_a_face_is_a_function_of_seed_and_index():
    assert torch.equal(flat(draw_skin(3, 8)), flat(draw_skin(3, 8)))
    assert not torch.equal(flat(draw_skin(3, 8)), flat(draw_skin(3, 9)))
    assert not torch.equal(flat(draw_skin(3, 8)), flat(draw_skin(4, 8)))


def test_faces_concatenate_to_a_batch():
    batch = concatenate([draw_skin(0, index) for index in range(3)])
    assert batch.hair_colour.shape == (3, 3)
    assert isinstance(batch.moles, Mix)
    assert batch.moles.variants.shape == (3, 4)
    assert torch.equal(flat(batch[1]), flat(draw_skin(0, 1)))


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -2)])
def test_negative_keys_are_refused(seed, index):
    with pytest.raises(ShapeError, match=f"seed, index: got {seed}, {index}; expected 0 or more"):
        draw_skin(seed, index)


def test_population_covers_tones_beards_and_make_up():
    faces = concatenate([draw_skin(1, index) for index in range(400)])
    tones = torch.histogram(faces.melanin, bins=4, range=(0.0, 1.0)).hist / 400
    assert float(tones.min()) > 0.12
    full = (faces.beard_zones > 0).all(1)
    moustache = (faces.beard_zones[:, 0] > 0) & (faces.beard_zones[:, 1] == 0)
    for share in (full, moustache, faces.lipstick > 0, faces.blush > 0, faces.freckles.weights.sum(1) > 0):
        assert 0.02 < float(share.float().mean()) < 0.5
    assert not bool(((faces.lipstick > 0) & full).any())
    assert torch.allclose(faces.gain.log().mean(), torch.tensor(0.0), atol=0.02)
