"""``python -m nl3dmm.train [-c FILE] [key=value ...]``: train a system; the default config needs nothing but a CPU."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.train", __doc__)
    text = "config values, such as training.images=2000; base=FILE: a config file that all others change; {seed} in "
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"{text}output: the seed")
    parser.add_argument("-c", "--config", type=Path, help="YAML file of values (default: configs/quickstart.yaml)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from nl3dmm.config import config_to_yaml
    from nl3dmm.run_config import run_config

    config = run_config(options.overrides, options.config)
    if options.print_config:
        print(config_to_yaml(config), end="")
        return 0
    from nl3dmm.training.run import run_training

    run_training(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
