"""``python -m nl3dmm.sweep FILE [key=value ...]``: the grid of a W&B sweep file here, measured and compared.

Needs no account. Stop it at any time, the same command goes on: runs resume, what is finished is not done again. Runs
log as their config says (logging.wandb=auto: online with an account, else offline); logging.wandb=disabled leaves CSV.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nl3dmm.cli import Parser, report_errors
from nl3dmm.errors import ConfigError
from nl3dmm.evaluation.measures import MEASURES, WORLD, Measurement, measurement_file
from nl3dmm.machine import cores
from nl3dmm.sweeps.comparison import (
    Measured,
    comparison,
    comparison_text,
    not_finite,
    provenance,
    read_metrics,
    write_comparison,
)
from nl3dmm.sweeps.jobs import TRAINING, Job, Outcome, run_jobs, training_progress

_NOTHING = "none"


def _parser() -> Parser:
    parser = Parser("python -m nl3dmm.sweep", __doc__)
    parser.add_argument("file", type=Path, help="sweep file with method: grid, such as configs/sweep/ablation.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values for all runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/sweep"), help="folder (default: runs/sweep)")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once, which share the cores (default: 1)")
    names = ",".join(MEASURES)
    parser.add_argument("--measure", default=names, help=f"measurements of each run, or {_NOTHING} (default: {names})")
    faces, steps = (", ".join(f"{name} {protocol[i]}" for name, protocol in MEASURES.items()) for i in (0, 1))
    parser.add_argument("--faces", type=int, help=f"test faces of all measurements (default: {faces})")
    parser.add_argument("--steps", type=int, help=f"latent steps of all measurements (default: {steps})")
    text = "folder on which texture and shape are measured too, as evaluate does; may be repeated"
    parser.add_argument("--data", action="append", default=[], metavar="FOLDER", help=text)
    parser.add_argument("--dry-run", action="store_true", help="check all configs, print what would run, and stop")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse(arguments)
    measurements = _measurements(options)
    from rich.console import Console

    from nl3dmm.outputs import prepare_output_folder
    from nl3dmm.sweeps.plan import plan_sweep, read_sweep, settle

    threads = max(1, cores() // options.jobs)
    file = read_sweep(options.file)
    settled = [settle(run, threads) for run in plan_sweep(file, options.output, options.overrides)]
    runs, jobs = [], []
    for run, finished in settled:
        checkpoint = run.folder / "checkpoints" / "last.ckpt"
        steps = run.config.training.steps
        runs.append(Measured(run.name, run.setting, run.parameters["seed"], run.parameters, steps, checkpoint))
        jobs += _jobs(runs[-1], finished, run.arguments, measurements, options.output.absolute() / "logs")
    if options.dry_run:
        print("\n".join([f"{len(runs)} runs, {len(jobs)} commands to do", *map(_command, jobs)]))
        return 0
    folder = prepare_output_folder(options.output)
    command = shlex.join(["python", "-m", "nl3dmm.sweep", *map(_without_folder, arguments)])
    facts = {"sweep": options.file.stem, **provenance(folder, command, makes_figures=bool(jobs))}
    report = _Report(runs, measurements, folder, facts)
    report.write()
    console = Console()
    run_jobs(jobs, options.jobs, threads, console, report.add)
    report.write()
    console.print(report.text(), markup=False, highlight=False, soft_wrap=True)
    return 1 if report.failures else 0


class _Report:
    """What has been measured and what has failed; ``results.json`` and ``results.md`` follow every command."""

    def __init__(
        self, runs: list[Measured], measurements: Sequence[Measurement], folder: Path, facts: Mapping[str, Any]
    ):
        stated = {each.name: _protocol(each) for each in measurements}
        self.runs, self.measurements, self.folder, self.facts = runs, measurements, folder, {**facts, **stated}
        self.failed: list[str] = []

    @property
    def failures(self) -> list[str]:
        """Commands that failed, and figures that are none."""
        return [*self.failed, *not_finite(self.measured())]

    def add(self, outcome: Outcome) -> None:
        job, error = outcome.job, outcome.error
        checkpoint = next(run.checkpoint for run in self.runs if run.name == job.run)
        for each in self.measurements:
            if error is None and each.name == job.kind and job.kind not in self._metrics(job.run):
                error = f"stored no such figures in {measurement_file(checkpoint, each.measure, each.data)}"
        if error is not None:
            self.failed.append(f"{job.run} {job.kind}: {error} (log: {job.log})")
        self.write()

    def write(self) -> None:
        write_comparison(self.folder, self.measured(), self.facts, self.failures)

    def measured(self) -> list[Measured]:
        return [replace(run, metrics=self._metrics(run.name)) for run in self.runs]

    def text(self) -> str:
        parts = [comparison_text(comparison(self.measured())) or "nothing was measured"]
        parts += ["\n".join(["failed:", *self.failures])] if self.failures else []
        return "\n" + "\n\n".join([*parts, f"stored in {self.folder / 'results.json'} and results.md"])

    def _metrics(self, name: str) -> dict[str, dict[str, float]]:
        run = next(run for run in self.runs if run.name == name)
        found = {each.name: read_metrics(run.checkpoint, each, run.steps) for each in self.measurements}
        return {key: metrics for key, metrics in found.items() if metrics is not None}


def _jobs(
    run: Measured, finished: bool, arguments: Sequence[str], measurements: Sequence[Measurement], logs: Path
) -> list[Job]:
    """What is left to do for a run."""
    log, folder = logs / f"{run.name}.log", run.checkpoint.parents[1]
    progress = functools.partial(training_progress, folder, run.steps)
    jobs = [] if finished else [Job(run.name, TRAINING, ("-m", "nl3dmm.train", *arguments), log, progress)]
    for each in measurements:
        if not finished or read_metrics(run.checkpoint, each, run.steps) is None:
            evaluation = ("-m", "nl3dmm.evaluate", each.measure, str(folder), *each.options)
            jobs.append(Job(run.name, each.name, evaluation, log))
    return jobs


def _command(job: Job) -> str:
    return shlex.join(("python", *job.arguments))


def _without_folder(argument: str) -> str:
    """Absolute paths by their last name: figures say where they come from, not whose machine it was."""
    key, separator, value = ("", "", argument) if Path(argument).is_absolute() else argument.partition("=")
    return f"{key}{separator}{Path(value).name}" if Path(value).is_absolute() else argument


def _protocol(measurement: Measurement) -> str:
    few = "" if measurement.data == WORLD else "at most "
    return f"{few}{measurement.faces} unseen faces, {measurement.steps} latent steps"


def _measurements(options: argparse.Namespace) -> list[Measurement]:
    names = [] if options.measure == _NOTHING else options.measure.split(",")
    for name in names:
        if name not in MEASURES:
            raise ConfigError(
                f"--measure: got {name!r}; expected some of {','.join(MEASURES)}, or {_NOTHING}. Change it."
            )
    for option, low in (("jobs", 1), ("faces", 1), ("steps", 0)):
        value = getattr(options, option)
        if value is not None and value < low:
            raise ConfigError(f"--{option}: got {value}; expected at least {low}. Change it.")
    places = {WORLD: names} | {folder: _measured_on(folder, names) for folder in options.data if folder != WORLD}
    found: dict[str, Measurement] = {}
    for name in names:
        faces, steps = options.faces or MEASURES[name][0], MEASURES[name][1] if options.steps is None else options.steps
        wanted = (Measurement(name, faces, steps, place) for place, measures in places.items() if name in measures)
        found |= {each.name: each for each in wanted}
    return list(found.values())


def _measured_on(folder: str, names: Sequence[str]) -> list[str]:
    """The measurements that there are on a folder: of a scan no textures are known.

    Raises:
        ConfigError: none of those that are asked for.
    """
    from nl3dmm.data.scans import is_scan_folder
    from nl3dmm.evaluation.unseen_faces import is_face_folder

    has_faces = is_face_folder(folder)
    possible = {"texture": has_faces, "shape": has_faces or is_scan_folder(folder)}
    measures = [name for name in names if possible.get(name)]
    if not measures:
        raise ConfigError(
            f"--data: got {folder}, on which {','.join(names) or _NOTHING} cannot be measured; expected a folder with "
            "truth.npz, AFLW2000-3D or a scan, for texture or shape. Check the path and --measure."
        )
    return measures


if __name__ == "__main__":
    sys.exit(main())
