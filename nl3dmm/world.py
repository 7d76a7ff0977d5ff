"""``python -m nl3dmm.world [-c FILE] [key=value ...]``: look at the synthetic faces that a config trains on."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from nl3dmm.cli import Parser, report_errors


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.world", __doc__)
    text = "config values, such as world.yaw=80, model.image_size=224, template=ict"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    parser.add_argument("-c", "--config", type=Path, help="YAML file of values (default: configs/quickstart.yaml)")
    parser.add_argument("-o", "--output", type=Path, default=Path("world.png"), help="picture (default: world.png)")
    parser.add_argument("--faces", type=int, default=64, help="(default: 64)")
    parser.add_argument("--first", type=int, default=0, help="index of the first face (default: 0)")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse(arguments)
    from nl3dmm.config import check_range

    check_range("faces", options.faces, 1, 10_000)
    check_range("first", options.first, 0, 2**40)
    import torch

    from nl3dmm.assets.load import load_template
    from nl3dmm.data.images import write_png
    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.panels import stack_rows
    from nl3dmm.run_config import run_config
    from nl3dmm.synthetic.world import SyntheticWorld

    config, output = run_config(options.overrides, options.config), options.output.absolute()
    prepare_output_folder(output.parent)
    template = load_template(config.template, config.template_path, config.uv_size)
    model = config.model
    world = SyntheticWorld(template, config.world, model.image_size, config.seed, model.shading_space)
    indices = torch.arange(options.first, options.first + options.faces)
    images = torch.cat([world.sample(part).image for part in indices.split(32)])
    columns = math.ceil(math.sqrt(options.faces))
    images = torch.cat([images, images.new_ones(-len(images) % columns, *images.shape[1:])])
    write_png(stack_rows(list(images.split(columns))), output)
    print(f"{options.faces} faces of seed {config.seed} from index {options.first}: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
