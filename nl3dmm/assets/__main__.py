"""``python -m nl3dmm.assets``: build, import and look at face templates."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from nl3dmm.assets import embedded_template, load_template, save_template
from nl3dmm.assets.load import IMPORTERS
from nl3dmm.assets.sheet import template_sheet
from nl3dmm.assets.template import FaceTemplate
from nl3dmm.errors import Nl3dmmError
from nl3dmm.outputs import atomic_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 with one line on stderr on bad input."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except Nl3dmmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nl3dmm.assets", description=(__doc__ or "").partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="write the embedded procedural template")
    build.set_defaults(run=lambda options: _save(embedded_template(tuple(options.size)), options.output))
    bring = commands.add_parser("import", help="convert a face model to a template")
    bring.add_argument("model", choices=list(IMPORTERS), help="kind of model: " + ", ".join(IMPORTERS))
    bring.add_argument("path", type=Path, help="the model's own file, with its companions beside it")
    bring.set_defaults(run=_import)
    for command in (build, bring):
        command.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
        command.add_argument("--size", type=int, nargs=2, default=(64, 80), metavar=("ROWS", "COLUMNS"))
    show = commands.add_parser("show", help="draw a template: views, landmarks, UV regions")
    show.add_argument("template", help="'embedded', or a file (.safetensors, .npz of ICT)")
    show.add_argument("-o", "--output", type=Path, required=True, help="picture to write (.png)")
    show.set_defaults(run=_show)
    return parser


def _import(options: argparse.Namespace) -> int:
    return _save(IMPORTERS[options.model](options.path, tuple(options.size)), options.output)


def _save(template: FaceTemplate, output: Path) -> int:
    save_template(template, output)
    print(f"{output}: {len(template.vertices)} vertices, {template.uv_size} UV, hash {template.hash[:12]}")
    return 0


def _show(options: argparse.Namespace) -> int:
    picture = Image.fromarray(template_sheet(load_template(options.template)))
    with atomic_path(options.output) as temporary:
        picture.save(temporary, format="PNG")
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
