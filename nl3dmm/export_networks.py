"""``python -m nl3dmm.export_networks MODEL -o OUT``: encoder and decoder as ONNX and torch.export files.

They run without nl3dmm, in float32 and at any batch size; networks.json names inputs, outputs, shapes and units.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors

_FORMATS = ("pt2", "onnx")


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.export_networks", __doc__)
    parser.add_argument("model", type=Path, help="default, a released file, a checkpoint or a run folder")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--only", choices=_FORMATS, help="one format (default: both; onnx needs onnx and onnxscript)")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from nl3dmm.export.networks import export_networks
    from nl3dmm.release import load

    formats = [options.only] if options.only else _FORMATS
    paths = export_networks(load(options.model, "cpu").cpu_model, options.output, formats)
    print(f"{', '.join(path.name for path in paths)} are in {paths[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
