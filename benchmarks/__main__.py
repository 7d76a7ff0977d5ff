"""Speed of nl3dmm on this machine: medians and spreads as tables and as JSON with machine and commit."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from benchmarks import faces, render, training
from benchmarks.measure import Facts, Section, measure_group
from benchmarks.options import Options, default_configs
from benchmarks.report import machine, show, show_facts
from nl3dmm.errors import Nl3dmmError

WORKLOADS: dict[str, Callable[[Options], Iterator[Section | Facts]]] = {
    "render": render.sections,
    "training": training.sections,
    "world": faces.world,
}
RESULTS = Path(__file__).parent / "results"


def arguments(command: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=sorted(WORKLOADS), help="one workload")
    parser.add_argument("--section", metavar="NAME", help="one table of a workload, for instance stages")
    parser.add_argument("--repetitions", type=int, default=10, help="of each case (default: 10)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    configs = {"type": Path, "nargs": "+", "default": default_configs(), "metavar": "FILE"}
    parser.add_argument("--config", **configs, help="of training (default: quickstart and highfidelity)")
    parser.add_argument("--batch", type=int, nargs="+", default=[], help="of training (default: suits the machine)")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, one repetition: does everything run?")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the JSON files")
    chosen = parser.parse_args(command)
    if min(chosen.repetitions, *chosen.threads) < 1:
        parser.error("--repetitions, --threads: expected numbers >= 1")
    if chosen.batch and min(chosen.batch) < 2:
        parser.error("--batch: expected numbers >= 2, batch norm needs them")
    return chosen


def run(name: str, chosen: argparse.Namespace, console: Console) -> dict[str, list[dict]]:
    """Section -> figures of its cases."""
    options = Options(chosen.quick, tuple(chosen.threads), tuple(chosen.config), tuple(chosen.batch))
    sections = (each for each in WORKLOADS[name](options) if chosen.section in (None, each.name))
    return {section.name: measured(section, 1 if chosen.quick else chosen.repetitions, console) for section in sections}


def measured(section: Section | Facts, repetitions: int, console: Console) -> list[dict]:
    if isinstance(section, Facts):
        show_facts(section, console)
        return section.rows
    with console.status(section.title):
        groups = [measure_group(group, repetitions) for group in section.groups()]
    show(section, groups, console)
    return [result.as_dict() for group in groups for result in group]


def main() -> None:
    chosen = arguments(sys.argv[1:])
    console = Console() if sys.stdout.isatty() else Console(width=200)
    chosen.output.mkdir(parents=True, exist_ok=True)
    belongs_to = machine(sys.argv[1:])
    for name in [chosen.only] if chosen.only else WORKLOADS:
        try:
            found = run(name, chosen, console)
        except Nl3dmmError as error:
            sys.exit(f"error: {error}")
        if not found and chosen.only:
            sys.exit(f"error: --section: got {chosen.section!r}, which {name} does not have. Leave it out to see all.")
        if found:
            parts = [name, chosen.section, "quick" if chosen.quick else None]  # a full result is never overwritten
            path = chosen.output / f"{'-'.join(filter(None, parts))}.json"
            path.write_text(json.dumps({"machine": belongs_to, "results": found}, indent=1) + "\n", encoding="utf-8")
            console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
