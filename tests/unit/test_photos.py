"""Photos as training batches: framed exactly or with jitter, an order that is a function of (seed, step)."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folders import synthetic_faces, write_photo
from PIL import Image
from torch.utils.data import DataLoader

from nl3dmm.assets.landmarks import MIRROR_68
from nl3dmm.data.augment import NONE
from nl3dmm.data.crop import crop_from_landmarks
from nl3dmm.data.module import StepBatches, batch_indices
from nl3dmm.data.photo_faces import PrepConfig
from nl3dmm.data.photos import PhotoSet
from nl3dmm.data.prepare import prepare_photos
from nl3dmm.data.shards import ShardSet, read_index, write_index, write_shard
from nl3dmm.errors import AssetError

COUNT = 10


@pytest.fixture(scope="module")
def faces(small_template):
    return synthetic_faces(small_template, COUNT)


@pytest.fixture(scope="module")
def prepared(faces, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(COUNT):
        write_photo(folder / f"{index}.jpg", faces.image[index], faces.landmarks[index : index + 1])
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare_photos(folder, output, PrepConfig(size=128, photos_per_shard=4))
    return output


def equal(left, right) -> bool:
    return all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("index", "image", "mask", "landmarks")
    )


def loaded(batches: StepBatches, steps: range, workers: int) -> list:
    return list(DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers))


def test_batches_hold_what_is_known_of_photos(prepared):
    batch = PhotoSet(ShardSet(prepared), 112, NONE).read(torch.tensor([3, 0]))
    assert (batch.image.shape, batch.image.dtype) == ((2, 3, 112, 112), torch.float32)
    assert 0 <= float(batch.image.min()) < float(batch.image.max()) <= 1
    assert (batch.mask.shape, batch.mask.dtype) == ((2, 112, 112), torch.bool)
    assert batch.landmarks.shape == (2, 68, 2)
    assert batch.index.tolist() == [3, 0]
    unknown = (batch.camera, batch.sh_coefficients, batch.vertices, batch.albedo)
    assert unknown == (None, None, None, None)


@pytest.mark.parametrize("size", [112, 128, 100, 48, 200])
def test_framing_is_that_of_the_encoders_crops(prepared, faces, size):
    batch = PhotoSet(ShardSet(prepared), size, NONE).read(torch.arange(COUNT), torch.arange(COUNT))
    for index in range(COUNT):
        crop = crop_from_landmarks(faces.landmarks[index], size)
        torch.testing.assert_close(
            batch.landmarks[index], crop.points_to_crop(faces.landmarks[index]), atol=size * 1e-4, rtol=0
        )
        expected = crop.image(faces.image[index])
        assert float((batch.image[index] - expected).abs().mean()) < 0.02


def test_the_inner_pixels_are_cut_out_unchanged(prepared):
    shards = ShardSet(prepared)
    inner = PhotoSet(shards, 112, NONE).read(torch.tensor([1]))
    stored = torch.from_numpy(np.array(Image.open(io.BytesIO(shards.read(1).members["jpg"])))).permute(2, 0, 1) / 255
    assert torch.equal(inner.image[0], stored[:, 8:120, 8:120])


def test_jitter_moves_points_with_the_picture(prepared):
    """Colours found at the landmarks stay those of the exact framing; mirrored ones too, under their new names."""
    jitter = replace(NONE, turn=10.0, zoom=0.1, shift=0.05, mirror=0.5)
    photos = PhotoSet(ShardSet(prepared), 112, jitter, seed=4)
    exact = photos.read(torch.zeros(16, dtype=torch.long))
    moved = photos.read(torch.zeros(16, dtype=torch.long), torch.arange(16))
    is_mirrored = moved.landmarks[:, 36, 0] > moved.landmarks[:, 45, 0]
    assert not is_mirrored.any()  # the subject's right eye stays on the image's left: names are exchanged
    assert float((moved.landmarks - exact.landmarks).norm(dim=-1).mean()) > 2

    def look(batch) -> torch.Tensor:
        grid = (batch.landmarks / 112 * 2 - 1)[:, :, None]
        return torch.nn.functional.grid_sample(batch.image, grid, align_corners=False)[..., 0]

    unmirrored = (look(exact) - look(moved)).abs().mean((1, 2))
    mirrored = (look(exact)[..., MIRROR_68] - look(moved)).abs().mean((1, 2))
    assert float(torch.minimum(unmirrored, mirrored).max()) < 0.05
    assert 3 < int((mirrored < unmirrored).sum()) < 13
    masks = torch.stack([exact.mask, moved.mask]).flatten(2).float().mean(-1)
    assert float((masks[0] - masks[1]).abs().max()) < 0.08


def test_photos_are_augmented_at_every_visit_by_default(prepared):
    photos = PhotoSet(ShardSet(prepared), 112)
    rows = torch.full((24,), 3)
    seen, exact = photos.read(rows, torch.arange(24)), photos.read(rows[:1])
    framed = PhotoSet(ShardSet(prepared), 112, replace(NONE, turn=3.0, zoom=0.03, shift=0.02, mirror=0.5))
    moved = framed.read(rows, torch.arange(24))
    torch.testing.assert_close(seen.landmarks, moved.landmarks)  # colours, blur and objects leave points alone
    difference = (seen.image - moved.image).abs().mean((1, 2, 3))
    assert float(difference.median()) > 0.01
    hidden = (moved.mask & ~seen.mask).flatten(1).any(1)
    assert 0 < int(hidden.sum()) < 12  # by what was painted before them
    assert not (seen.mask & ~moved.mask).any()
    assert equal(exact, PhotoSet(ShardSet(prepared), 112, NONE).read(rows[:1], torch.zeros(1, dtype=torch.long)))


def test_framing_is_a_function_of_seed_and_visit(prepared):
    photos = PhotoSet(ShardSet(prepared), 48, seed=1)
    rows, visits = torch.tensor([2, 2, 5]), torch.tensor([10, 11, 12])
    together = photos.read(rows, visits)
    assert equal(together[1], photos.read(rows[1:2], visits[1:2]))
    assert not torch.equal(together.landmarks[0], together.landmarks[1])
    other = PhotoSet(ShardSet(prepared), 48, seed=2).read(rows, visits)
    assert not torch.equal(other.landmarks, together.landmarks)


def test_ranks_together_see_what_one_would(prepared):
    photos = PhotoSet(ShardSet(prepared), 48)
    (whole,) = loaded(StepBatches(photos, 3, 6), range(5, 6), 0)
    parts = [loaded(StepBatches(photos, 3, 2, rank, 3), range(5, 6), 0)[0] for rank in range(3)]
    for rank, part in enumerate(parts):
        assert equal(part, whole[slice(2 * rank, 2 * rank + 2)])
        assert part.index.tolist() == batch_indices(3, 5, 2, COUNT, rank, 3).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_equals_never_stopped(prepared, workers):
    batches, steps = StepBatches(PhotoSet(ShardSet(prepared), 48), 7, 4), 12
    straight = loaded(batches, range(steps), 0)
    for stop in (1, 5, 11) if workers else range(1, steps):
        resumed = loaded(batches, range(stop, steps), workers)
        assert all(equal(here, there) for here, there in zip(resumed, straight[stop:], strict=True))


def test_damaged_samples_are_replaced_in_every_process(prepared, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    card = read_index(folder)[0]
    data = bytearray((folder / card.name).read_bytes())
    data[card.samples[2].offset + 2000] ^= 1
    (folder / card.name).write_bytes(data)
    log = tmp_path / "bad_samples.jsonl"
    batches = StepBatches(PhotoSet(ShardSet(folder, log), 48), 0, 5)
    here = loaded(batches, range(4), 0)
    seen = torch.cat([batch.index for batch in here])
    assert 2 not in seen
    assert (seen == 3).sum() == 4  # twice its own turn, twice that of its neighbour
    there = loaded(StepBatches(PhotoSet(ShardSet(folder, log), 48), 0, 5), range(4), 2)
    assert all(equal(left, right) for left, right in zip(here, there, strict=True))
    assert len(set(log.read_text().splitlines())) == 1


def test_shards_of_something_else_are_refused(tmp_path):
    with write_shard(tmp_path / "a.tar") as writer:
        writer.add("0", {"jpg": b"no image", "mask.png": b"", "json": b"{}"})
        card = writer.finish("a.tar")
    write_index(tmp_path, [card])
    with pytest.raises(AssetError, match="got sample 0, which cannot be decoded"):
        PhotoSet(ShardSet(tmp_path), 48, NONE).read(torch.tensor([0]))
