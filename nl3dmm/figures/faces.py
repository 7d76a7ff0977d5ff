"""The faces that figures show: unseen synthetic ones, or photos with landmark files beside them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nl3dmm.checkpoint import TrainedSystem
from nl3dmm.data.crop import crop_from_landmarks, hull_mask
from nl3dmm.data.images import read_image
from nl3dmm.data.landmark_files import check_landmarks, read_landmarks
from nl3dmm.errors import CheckpointError, ImageError
from nl3dmm.evaluation.accuracy import Protocol, test_world
from nl3dmm.evaluation.disentangle import side_faces
from nl3dmm.types import FaceBatch, concatenate

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LANDMARK_SUFFIXES = (".pts", ".npy", ".json")


def unseen_faces(trained: TrainedSystem, count: int, seed: int, turned: bool = False) -> FaceBatch:
    """The first faces of the world that ``evaluate`` tests on; turned by 40 to 60 degrees if so wanted."""
    protocol = Protocol(faces=count, seed=seed, camera="mixed")
    if turned:
        world, indices = side_faces(trained, protocol)
    else:
        world, indices = test_world(trained, protocol), torch.arange(count)
    return concatenate([world.sample(part) for part in indices.split(32)])


def photo_faces(files: Iterable[Path], image_size: int) -> FaceBatch:
    """Photos cropped by their landmarks; the mask is the landmarks' convex hull.

    Raises:
        ImageError: an unreadable photo, or no landmark file beside it.
        ShapeError: wrong landmarks.
    """
    return concatenate([_photo(file, image_size, index) for index, file in enumerate(files)])


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Files as they are; a folder stands for its photos that have a landmark file beside them, by name.

    Raises:
        ImageError: a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        photos = sorted(file for file in path.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
        photos = [file for file in photos if _landmark_file(file) is not None]
        if not photos:
            raise ImageError(
                f"photos: got {path}, a folder without photos that have landmarks; expected a JPEG, PNG or WebP file "
                "and, of the same name, a .pts, .npy or .json file. Add them."
            )
        found += photos
    return found


def check_alike(systems: Mapping[str, TrainedSystem], synthetic: bool) -> None:
    """Systems that are to be shown the same faces.

    Raises:
        CheckpointError: other image sizes or, for synthetic faces, other templates or colour encodings.
    """
    traits = {label: _traits(trained, synthetic) for label, trained in systems.items()}
    first, expected = next(iter(traits.items()))
    for label, got in traits.items():
        for name, value in got.items():
            if value != expected[name]:
                raise CheckpointError(
                    f"checkpoints: got {name} {value} of {label!r}; expected {expected[name]} as of {first!r}. "
                    "Draw a figure for each."
                )


def _traits(trained: TrainedSystem, synthetic: bool) -> dict[str, str]:
    traits = {"image_size": str(trained.config.model.image_size)}
    if synthetic:  # the faces are drawn on the template, in the encoding
        traits["template"] = f"{trained.template.name} ({trained.template.hash[:12]})"
        traits["encoding"] = trained.config.model.encoding
    return traits


def _photo(file: Path, image_size: int, index: int) -> FaceBatch:
    photo = read_image(file)
    beside = _landmark_file(file)
    if beside is None:
        raise ImageError(
            f"{file}: got no landmark file beside it; expected {file.stem} with {', '.join(LANDMARK_SUFFIXES)}. Add it."
        )
    points: Tensor = read_landmarks(beside)
    check_landmarks(points, photo.shape[-2], photo.shape[-1])
    crop = crop_from_landmarks(points, image_size)
    targets = crop.points_to_crop(points)
    mask = hull_mask(targets, image_size)
    return FaceBatch(crop.image(photo)[None], torch.tensor([index]), targets[None], mask[None])


def _landmark_file(photo: Path) -> Path | None:
    candidates = [photo.with_suffix(suffix) for suffix in LANDMARK_SUFFIXES]
    return next((file for file in candidates if file.is_file()), None)
