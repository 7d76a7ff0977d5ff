"""``python -m nl3dmm.train [-c FILE] [key=value ...]``: train a system; the default config needs nothing but a CPU."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors

DEFAULT_CONFIG = "quickstart.yaml"


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.train", __doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, such as training.images=2000")
    parser.add_argument("-c", "--config", type=Path, help=f"YAML file of values (default: configs/{DEFAULT_CONFIG})")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from nl3dmm.assets.locations import asset_folder
    from nl3dmm.config import config_to_yaml, load_config
    from nl3dmm.settings import RunConfig

    file = options.config or asset_folder("configs") / DEFAULT_CONFIG
    config = load_config(RunConfig, [file], options.overrides)
    if options.print_config:
        print(config_to_yaml(config), end="")
        return 0
    from nl3dmm.run import run_training

    run_training(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
