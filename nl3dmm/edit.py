"""``python -m nl3dmm.edit PHOTO --sticker STAR.png --at left_cheek -o OUT``: a sticker on the face of a photo.

The face is fitted, the sticker laid on its albedo and shown under the light of the photo, or under a new one. The photo
is changed nowhere else.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nl3dmm.cli import Parser, add_fit_arguments, report_errors
from nl3dmm.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from nl3dmm.editing import Edit
    from nl3dmm.geometry.lighting import Light
    from nl3dmm.stickers import Sticker

_STAR = "star"
_WRITTEN = ("edited.png", "albedo.png", "mask.png")


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.edit", __doc__)
    parser.add_argument("photo", type=Path, help="JPEG, PNG or WebP file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for edited.png, albedo.png, mask.png")
    parser.add_argument("--sticker", default=_STAR, help="picture, with alpha or without, or 'star' (default: star)")
    parser.add_argument(
        "--at", required=True, help="left_cheek (the subject's left), forehead, chin, nose, ..., or a UV point: 0.7,0.5"
    )
    parser.add_argument("--size", type=float, default=30, metavar="MM", help="longer side on the skin (default: 30)")
    parser.add_argument("--rotation", type=float, default=0, metavar="DEGREES", help="counter-clockwise (default: 0)")
    parser.add_argument("--blend", default="normal", help="normal, multiply or screen (default: normal)")
    parser.add_argument(
        "--light",
        nargs="+",
        metavar="LIGHT",
        help="lights the face instead: above, below, front, image_left, image_right, ambient, or from where, as "
        "seen in the photo, RIGHT UP FRONT: 1 0 1",
    )
    parser.add_argument(
        "--occluder", type=Path, help="picture as large as the photo, white where something hides the face"
    )
    add_fit_arguments(parser)
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from rich.console import Console

    from nl3dmm.data.images import read_sticker
    from nl3dmm.editing import apply_sticker, light_as_bright
    from nl3dmm.fitting.located_face import PhotoInput
    from nl3dmm.fitting.photos import fit_latent
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.stickers import Sticker, star

    console = Console()
    folder = prepare_output_folder(options.output)
    picture = star() if options.sticker == _STAR else read_sticker(options.sticker)
    sticker = Sticker(picture, _place(options.at), options.size, options.rotation, options.blend)  # checked first
    _check_not_written(options.photo, folder)
    occluder, light = _read_occluder(options.occluder, options.photo), _light(options.light)
    photo = PhotoInput(options.photo, options.landmarks, options.box, distance_mm=options.distance)
    face = fit_latent(photo, model=options.model, steps=options.steps, device=options.device)
    scene = face.in_photo(occluder)
    edit = apply_sticker(scene, sticker, None if light is None else light_as_bright(scene, light))
    _save(edit, sticker, folder)
    console.print(
        f"{int(edit.mask.sum())} pixels edited, {100 * edit.visible:.0f} % of the sticker seen\n"
        f"edited.png, albedo.png, mask.png, edit.json are in {folder}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0


def _place(text: str) -> str | tuple[float, float]:
    """A name, or a UV point where there is a comma."""
    if "," not in text:
        return text
    try:
        u, v = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--at: got {text!r}; expected a place or U,V. Give, for instance, 0.7,0.5.") from None
    return u, v


def _check_not_written(photo: Path, folder: Path) -> None:
    if photo.absolute().parent == folder and photo.name in _WRITTEN:
        raise ConfigError(f"photo: got {photo}, which the result would replace; expected another -o. Choose one.")


def _read_occluder(path: Path | None, photo: Path) -> "Tensor | None":
    """True where something hides the face; as large as the photo."""
    if path is None:
        return None
    from nl3dmm.data.images import image_size, read_image

    occluder = read_image(path).mean(0) > 0.5
    size, expected = tuple(occluder.shape), image_size(photo)
    if size != expected:
        raise ImageError(
            f"--occluder: got {size[1]} x {size[0]} px; expected {expected[1]} x {expected[0]}, as the photo. "
            "Draw it on the photo."
        )
    return occluder


def _light(words: Sequence[str] | None) -> "Light | None":
    """A name, or a direction where there are three numbers."""
    from nl3dmm.geometry.lighting import light_from

    if words is None:
        return None
    try:
        light = words[0] if len(words) == 1 else [float(word) for word in words]
    except ValueError:
        raise ConfigError(f"--light: got {' '.join(words)!r}; expected a name or three numbers. Change it.") from None
    light_from(light)  # now: a fit takes a while
    return light


def _save(edit: "Edit", sticker: "Sticker", folder: Path) -> None:
    from nl3dmm.data.images import write_png
    from nl3dmm.outputs import atomic_path

    write_png(edit.picture, folder / "edited.png")
    write_png(edit.albedo, folder / "albedo.png")
    write_png(edit.mask.float().expand(3, -1, -1), folder / "mask.png")
    facts = {"at": sticker.at, "size_mm": sticker.size_mm, "rotation": sticker.rotation, "blend": sticker.blend}
    facts |= {"pixels": int(edit.mask.sum()), "visible": round(edit.visible, 4)}
    with atomic_path(folder / "edit.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    sys.exit(main())
