"""Folders of photos, in the layouts of CelebA, FFHQ and of clips: which photo, which landmarks, which person."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nl3dmm.errors import ImageError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LANDMARK_SUFFIXES = (".pts", ".npy", ".json")
CELEBA_IDENTITIES = "identity_CelebA.txt"


class FacePhoto(NamedTuple):
    """A photo of a folder."""

    photo: Path
    landmarks: Path | None  # a file beside it with its name, that ``read_landmarks`` reads
    identity: str  # the same for photos of one person


def list_photos(folder: str | Path, is_clips: bool = False) -> Iterator[FacePhoto]:
    """All photos below the folder in the order of their paths; hidden files and folders are left out.

    The identity is the number that ``identity_CelebA.txt`` gives (in the folder or beside it), else for clips the
    folder below the given one that holds the photo, else the photo's own path: every photo another person.

    Args:
        is_clips: each folder below is one person. FFHQ's and CelebA's folders are not.

    Raises:
        ImageError: no such folder, no photos, or photos of clips that are in no clip.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: got no such folder; expected one with photos. Check the path.")
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    photos = [path for path in photos if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not photos:
        raise ImageError(f"{folder}: got no photos; expected {', '.join(PHOTO_SUFFIXES)} files. Check the path.")
    people = _celeba_identities(folder)
    for photo in photos:
        name = photo.relative_to(folder)
        yield FacePhoto(photo, landmarks_beside(photo), people.get(photo.name) or _identity(name, folder, is_clips))


def _identity(name: Path, folder: Path, is_clips: bool) -> str:
    if not is_clips:
        return name.with_suffix("").as_posix()
    if len(name.parts) < 2:
        raise ImageError(f"{folder / name}: got a photo beside the clips; expected folders of one person. Move it.")
    return name.parts[0]


def landmarks_beside(photo: Path) -> Path | None:
    """A landmark file with the photo's name, that ``read_landmarks`` reads."""
    candidates = (photo.with_suffix(suffix) for suffix in LANDMARK_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _celeba_identities(folder: Path) -> dict[str, str]:
    """Photo name -> number of the person."""
    paths = (folder / CELEBA_IDENTITIES, folder.parent / CELEBA_IDENTITIES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    odd = next((line for line in lines if len(line) != 2), None)
    if odd is not None:
        raise ImageError(f"{path}: got the line {' '.join(odd)!r}; expected a photo and a number. Copy the file again.")
    return {line[0]: line[1] for line in lines}
