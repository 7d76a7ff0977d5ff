"""``python -m nl3dmm.fit PHOTO -o OUT``: reconstruct the face of a photo."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.fit", __doc__)
    parser.add_argument("photo", type=Path, help="JPEG, PNG or WebP file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for panel.png, overlay.png, face.glb")
    parser.add_argument("--model", type=Path, default=Path("runs/default"), help="checkpoint or run folder")
    parser.add_argument("--landmarks", type=Path, help="68 points: .pts, .npy or .json (default: found)")
    parser.add_argument("--box", type=float, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="face box, px")
    parser.add_argument("--steps", type=int, default=150, help="optimisation steps (default: 150)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from rich.console import Console
    from rich.progress import Progress

    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.reconstruction import fit_latent

    console = Console()
    folder = prepare_output_folder(options.output)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=None)
        result = fit_latent(
            options.photo,
            model=options.model,
            landmarks=options.landmarks,
            box=options.box,
            steps=options.steps,
            device=options.device,
            progress=lambda step, steps, loss: bar.update(task, completed=step, total=steps),
        )
    result.save(folder)
    console.print(
        f"photometric l2,1: {result.start_error:.4f} (encoder) -> {result.final_error:.4f}, "
        f"{result.seconds:.1f} s, peak memory {_peak_memory_gib():.2f} GiB\n"
        f"panel.png, overlay.png, face.glb, face.obj, face.json are in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _peak_memory_gib() -> float:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    sys.exit(main())
