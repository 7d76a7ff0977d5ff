"""``python -m nl3dmm.evaluate CHECKPOINT``: errors on unseen synthetic faces, stored as JSON beside the checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors
from nl3dmm.evaluation.measures import MEASURES, WORLD, measurement_file

_CAMERAS = ("weak_perspective", "perspective")
_PURPOSES = {
    "texture": "How well faces of known shape and camera can be drawn: the best albedo latent and light.",
    "shape": "How well given meshes can be reached: the best shape latent.",
    "disentangle": "Light in the albedo, detail in the finals, residuals on the hidden side.",
}


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.evaluate", __doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file or a run folder")
    parser.add_argument("--faces", type=int, default=128, help="test faces per camera (default: 128)")
    parser.add_argument("--steps", type=int, default=60, help="latent steps of the fitted row, 0 to skip (default: 60)")
    parser.add_argument("--camera", choices=_CAMERAS, help="only this camera (default: both)")
    others = " ".join(f"'{name}': {text}" for name, text in _PURPOSES.items())
    parser.epilog = f"Further measurements, by a word before CHECKPOINT ('texture --help' explains one). {others}"
    return parser


def _measure_parser(name: str) -> Parser:
    parser = Parser(f"python -m nl3dmm.evaluate {name}", _PURPOSES[name])
    faces, steps = MEASURES[name]
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file or a run folder")
    parser.add_argument("--faces", type=int, default=faces, help=f"test faces (default: {faces})")
    parser.add_argument("--steps", type=int, default=steps, help=f"latent steps (default: {steps})")
    if name != "disentangle":
        text = "'world': unseen synthetic faces (default); or a folder with truth.npz, for models of the ICT template"
        text += "; or one of AFLW2000-3D (photos and .mat)"
        text += "; or one with a scan (.obj) and its 68 landmarks (.npy)" if name == "shape" else ""
        parser.add_argument("--data", default=WORLD, help=text)
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in MEASURES:
        return _measure(arguments[0], arguments[1:])
    options = _parser().parse(arguments)
    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.checkpoint import load_system
    from nl3dmm.evaluation.accuracy import Protocol, evaluate, table
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.render import default_device

    console = Console()
    trained = load_system(options.checkpoint, device=default_device())
    prepare_output_folder(trained.path.parent)
    results = {}
    for camera in [options.camera] if options.camera else _CAMERAS:
        protocol = Protocol(faces=options.faces, latent_steps=options.steps, camera=camera)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(camera, total=options.faces)
            results[camera] = evaluate(trained, protocol, lambda done, _, task=task: bar.update(task, completed=done))
        console.print(f"\n{camera} camera, {options.faces} unseen, unoccluded faces (ratio to the mean face)")
        console.print(table(results[camera]), highlight=False, soft_wrap=True)
    target = trained.path.with_suffix(".evaluation.json")
    _store(results, target)
    console.print(f"\nstored in {target}", highlight=False, soft_wrap=True)
    return 0


def _measure(name: str, arguments: Sequence[str]) -> int:
    options = _measure_parser(name).parse(arguments)
    data = getattr(options, "data", WORLD)
    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.checkpoint import load_system
    from nl3dmm.data.scans import is_scan_folder
    from nl3dmm.evaluation.accuracy import Protocol
    from nl3dmm.evaluation.disentangle import disentangle, ratios_table
    from nl3dmm.evaluation.representation import errors_table, shape, texture
    from nl3dmm.evaluation.scan_fit import scan_shape
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.render import default_device

    console = Console()
    trained = load_system(options.checkpoint, device=default_device())
    prepare_output_folder(trained.path.parent)
    protocol = Protocol(faces=options.faces, latent_steps=options.steps, camera="mixed")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(name, total=options.faces)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if name == "disentangle":
            results = disentangle(trained, protocol, progress)
        elif name == "shape" and data != WORLD and is_scan_folder(data):
            results = scan_shape(trained, protocol, data, progress)
        else:
            results = (texture if name == "texture" else shape)(trained, protocol, data, progress)
    stated = results["protocol"]
    console.print(f"\n{name}: {stated['faces']} unseen face(s) of {stated['data']}, {options.steps} latent steps")
    stated["faces_asked"] = options.faces  # of which a folder may have fewer
    text = ratios_table(results) if name == "disentangle" else errors_table(results)
    console.print(text, highlight=False, soft_wrap=True)
    target = measurement_file(trained.path, name, data)
    _store(results, target)
    console.print(f"\nstored in {target}", highlight=False, soft_wrap=True)
    return 0


def _store(results: dict, target: Path) -> None:
    import json

    from nl3dmm.outputs import atomic_path

    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
