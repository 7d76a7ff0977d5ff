"""Folders of photos: which are listed, in which order, with which landmarks and persons."""

from pathlib import Path

import pytest

from nl3dmm.data.folders import list_photos
from nl3dmm.errors import ImageError


@pytest.fixture
def make(tmp_path):
    """Empty files below a new folder."""

    def write(*names: str) -> Path:
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).touch()
        return tmp_path / "data"

    return write


def listed(folder: Path, is_clips: bool = False) -> list[tuple[str, str | None, str]]:
    return [
        (photo.relative_to(folder).as_posix(), landmarks and landmarks.name, identity)
        for photo, landmarks, identity in list_photos(folder, is_clips)
    ]


def test_ffhq_every_photo_is_another_person(make):
    folder = make(
        "01000/01001.png", "00000/00002.png", "00000/00001.PNG", "LICENSE.txt", ".hidden/a.jpg", "00000/.b.jpg"
    )
    assert listed(folder) == [
        ("00000/00001.PNG", None, "00000/00001"),
        ("00000/00002.png", None, "00000/00002"),
        ("01000/01001.png", None, "01000/01001"),
    ]


@pytest.mark.parametrize("where", ["identity_CelebA.txt", "../identity_CelebA.txt"])
def test_celeba_has_numbers_of_persons(make, where):
    folder = make("000001.jpg", "000002.jpg", "000003.jpg")
    (folder / where).write_text("000001.jpg 2880\n000002.jpg 2937\n000003.jpg 2880\n\n", encoding="utf-8")
    assert [identity for _, _, identity in listed(folder)] == ["2880", "2937", "2880"]


def test_a_damaged_list_of_persons_is_refused(make):
    folder = make("000001.jpg")
    (folder / "identity_CelebA.txt").write_text("000001.jpg\n", encoding="utf-8")
    with pytest.raises(ImageError, match=r"got the line '000001\.jpg'; expected a photo and a number"):
        list(list_photos(folder))


def test_clips_are_persons(make):
    folder = make("anna/2.jpg", "anna/1.jpg", "bert/side/1.jpeg", "bert/1.webp")
    assert listed(folder, is_clips=True) == [
        ("anna/1.jpg", None, "anna"),
        ("anna/2.jpg", None, "anna"),
        ("bert/1.webp", None, "bert"),
        ("bert/side/1.jpeg", None, "bert"),
    ]


def test_a_photo_beside_the_clips_is_refused(make):
    with pytest.raises(ImageError, match=r"b\.jpg: got a photo beside the clips; expected folders of one person"):
        listed(make("anna/1.jpg", "b.jpg"), is_clips=True)


def test_landmarks_lie_beside_the_photo(make):
    folder = make("a.jpg", "a.npy", "a.pts", "b.jpg", "b.json", "c.jpg", "d.npy")
    assert [(photo, landmarks) for photo, landmarks, _ in listed(folder)] == [
        ("a.jpg", "a.pts"),
        ("b.jpg", "b.json"),
        ("c.jpg", None),
    ]


def test_folders_without_photos_are_refused(make):
    with pytest.raises(ImageError, match=r"got no photos; expected \.jpg, \.jpeg, \.png, \.webp files"):
        list(list_photos(make("a.txt")))
    with pytest.raises(ImageError, match="got no such folder; expected one with photos"):
        list(list_photos("none"))
