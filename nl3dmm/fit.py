"""``python -m nl3dmm.fit PHOTO... -o OUT``: reconstruct the faces of photos.

One photo fills OUT itself, several a folder each. OUT/status.json says what became of each one, OUT/report.html shows
it. Exit code: 0 all fitted, 1 none or an error, 3 some, 130 interrupted (what was done till then is kept).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, add_fit_arguments, report_errors
from nl3dmm.errors import Nl3dmmError

SOME_FAILED = 3


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.fit", __doc__)
    text = "JPEG, PNG or WebP files, folders of them, patterns such as 'photos/*.jpg', or videos"
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help=text)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for meshes, pictures and the report")
    add_fit_arguments(parser, of_one="of one photo: ")
    parser.add_argument(
        "--mask", type=Path, help="of one photo: a picture that is black where something hides the face"
    )
    text = "all photos show one person: they share latents, 'albedo' or 'shape albedo' (expressions differ in shape)"
    parser.add_argument("--shared", nargs="+", default=[], metavar="LATENT", help=text)
    parser.add_argument("--frames", type=int, default=16, help="of each video, evenly spread (default: 16)")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from nl3dmm.fitting.job import FitJob, find_photos
    from nl3dmm.fitting.photos import FitPlan
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.release import load

    plan = FitPlan(options.steps, tuple(options.shared))
    given = (options.landmarks, options.box, options.mask)
    photos = find_photos(options.photos, options.frames, options.output, *given)
    photos = [photo.seen_from(options.distance) for photo in photos]
    folder = prepare_output_folder(options.output)
    job = FitJob(photos, folder, load(options.model, options.device), plan)
    try:
        job.run()
    finally:  # also when interrupted: what is done is worth keeping
        job.close()
    if job.only_failure:
        raise Nl3dmmError(job.only_failure)
    fitted = job.fitted
    return 0 if fitted == len(photos) else SOME_FAILED if fitted else 1


if __name__ == "__main__":
    sys.exit(main())
