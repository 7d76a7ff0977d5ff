"""``python -m nl3dmm.figure N CHECKPOINT...``: the paper's figure 4, 5, 6 or 7 of these checkpoints, as a PNG file."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors
from nl3dmm.errors import ConfigError, OutputError

_FIGURES = {
    4: "reconstruction: the input, then (S, A) of each checkpoint on it",
    5: "image pairing: the four pairs of proxies and finals, and what they are made of in UV space; one checkpoint",
    6: "residual soft symmetry: faces turned by 40 to 60 degrees, their hidden sides, the residual of their depth",
    7: "texture representation power: the input, then the best texture of each checkpoint on the true shape",
}
_STEPS = {4: 60, 5: 60, 6: 0, 7: 200}
_FACES = 4


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.figure", __doc__)
    parser.add_argument("number", type=int, choices=list(_FIGURES), metavar="N", help="4, 5, 6 or 7")
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=".ckpt files or run folders")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="default: figureN.png")
    parser.add_argument("--labels", help="names of the checkpoints, commas between them (default: their run folders')")
    parser.add_argument("--faces", type=int, help=f"rows (default: {_FACES}, or all photos)")
    defaults = ", ".join(f"{steps} for figure {number}" for number, steps in _STEPS.items())
    parser.add_argument("--steps", type=int, help=f"latent steps, 0: the encoder alone (default: {defaults})")
    parser.add_argument("--seed", type=int, help="of the unseen synthetic faces (default: as in nl3dmm.evaluate)")
    text = "instead of synthetic faces: photos, or folders of them, with landmarks (.pts, .npy, .json) beside them"
    parser.add_argument("--photos", type=Path, nargs="+", metavar="PATH", help=text)
    parser.epilog = " ".join(f"{number} = {text}." for number, text in _FIGURES.items())
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    labels, output = _check(options)
    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.data.images import write_png
    from nl3dmm.figures import pictures
    from nl3dmm.outputs import prepare_output_folder

    console = Console()
    prepare_output_folder(output.parent)
    systems, batch = _load(options, labels)
    draw = {4: pictures.reconstruction, 5: pictures.pairing, 6: pictures.symmetry, 7: pictures.texture}[options.number]
    steps = _STEPS[options.number] if options.steps is None else options.steps
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"figure {options.number}", total=len(systems) * len(batch.image))
        figure = draw(systems, batch, steps, lambda done, total: bar.update(task, completed=done, total=total))
    write_png(figure.picture, output)
    shown = "photo(s)" if options.photos else "unseen synthetic face(s)"
    title = f"figure {options.number}: {len(batch.image)} {shown}, {steps} latent steps; {figure.measure}"
    console.print(f"\n{title}", soft_wrap=True)
    console.print(pictures.numbers_table(figure.numbers), highlight=False, soft_wrap=True)
    console.print(f"\nstored in {output}", highlight=False, soft_wrap=True)
    return 0


def _check(options: Namespace) -> tuple[list[str], Path]:
    """Refuse what cannot be drawn before anything is loaded; the labels and the absolute output file."""
    from nl3dmm.config import check_range

    check_range("faces", _FACES if options.faces is None else options.faces, 1, 1000)
    check_range("steps", options.steps or 0, 0, 100_000)
    check_range("seed", options.seed or 0, 0, 2**31)
    if options.photos and options.number == 7:
        raise ConfigError("photos: got some for figure 7, which needs true shapes; expected none. Leave --photos out.")
    output = (options.output or Path(f"figure{options.number}.png")).absolute()
    if output.suffix.lower() != ".png":
        raise OutputError(f"output file: got {output.name}; expected a name that ends in .png. Choose one.")
    return _labels(options), output


def _labels(options: Namespace) -> list[str]:
    if options.labels is None:
        names = [_run_name(path) for path in options.checkpoints]
        return [name if name not in names[:k] else f"{name} ({k + 1})" for k, name in enumerate(names)]
    labels = [label.strip() for label in options.labels.split(",")]
    count = len(options.checkpoints)
    if len(labels) != count or len({*labels} - {""}) != count:
        raise ConfigError(f"labels: got {options.labels!r}; expected {count} different name(s). Put commas between.")
    return labels


def _run_name(path: Path) -> str:
    """Of the run's folder, and of the checkpoint where one is chosen."""
    path = path.absolute()
    if path.is_dir():
        return path.name
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{folder.name} {path.stem}"


def _load(options: Namespace, labels: list[str]):
    """The systems by their labels, and the faces that all of them are shown."""
    from nl3dmm.checkpoint import load_system
    from nl3dmm.evaluation.accuracy import TEST_SEED
    from nl3dmm.figures.faces import check_alike, find_photos, photo_faces, unseen_faces
    from nl3dmm.render import default_device

    photos = find_photos(options.photos)[: options.faces] if options.photos else []
    device = default_device()
    systems = {label: load_system(path, device=device) for label, path in zip(labels, options.checkpoints, strict=True)}
    check_alike(systems, synthetic=not photos)
    first = systems[labels[0]]
    if photos:
        return systems, photo_faces(photos, first.config.model.image_size)
    seed = TEST_SEED if options.seed is None else options.seed
    return systems, unseen_faces(first, options.faces or _FACES, seed, turned=options.number == 6)


if __name__ == "__main__":
    sys.exit(main())
