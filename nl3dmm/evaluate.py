"""``python -m nl3dmm.evaluate CHECKPOINT``: errors on unseen synthetic faces, stored as JSON beside the checkpoint."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors

_CAMERAS = ("weak_perspective", "perspective")


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.evaluate", __doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file or a run folder")
    parser.add_argument("--faces", type=int, default=128, help="test faces per camera (default: 128)")
    parser.add_argument("--steps", type=int, default=60, help="latent steps of the fitted row, 0 to skip (default: 60)")
    parser.add_argument("--camera", choices=_CAMERAS, help="only this camera (default: both)")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    import json

    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.checkpoint import load_system
    from nl3dmm.evaluation import Protocol, evaluate, table
    from nl3dmm.outputs import atomic_path, prepare_output_folder

    console = Console()
    trained = load_system(options.checkpoint)
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
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    console.print(f"\nstored in {target}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
