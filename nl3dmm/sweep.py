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
from nl3dmm.machine import cores
from nl3dmm.sweeps.comparison import (
    MEASURES,
    Measured,
    comparison,
    comparison_text,
    measurement_file,
    provenance,
    read_metrics,
    write_comparison,
)
from nl3dmm.sweeps.jobs import TRAINING, Job, Outcome, run_jobs, training_progress

Protocols = Mapping[str, tuple[int, int]]  # measurement -> test faces, latent steps
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
    parser.add_argument("--dry-run", action="store_true", help="check all configs, print what would run, and stop")
    return parser


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse(arguments)
    protocols = _protocols(options)
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
        jobs += _jobs(runs[-1], finished, run.arguments, protocols, options.output.absolute() / "logs")
    if options.dry_run:
        print("\n".join([f"{len(runs)} runs, {len(jobs)} commands to do", *map(_command, jobs)]))
        return 0
    folder = prepare_output_folder(options.output)
    command = shlex.join(["python", "-m", "nl3dmm.sweep", *arguments])
    report = _Report(runs, protocols, folder, {"sweep": options.file.stem, **provenance(folder, command, bool(jobs))})
    report.write()
    console = Console()
    run_jobs(jobs, options.jobs, threads, console, report.add)
    report.write()
    console.print(report.text(), markup=False, highlight=False, soft_wrap=True)
    return 1 if report.failures else 0


class _Report:
    """What has been measured and what has failed; ``results.json`` and ``results.md`` follow every command."""

    def __init__(self, runs: list[Measured], protocols: Protocols, folder: Path, facts: Mapping[str, Any]):
        stated = {name: f"{faces} unseen faces, {steps} latent steps" for name, (faces, steps) in protocols.items()}
        self.runs, self.protocols, self.folder, self.facts = runs, protocols, folder, {**facts, **stated}
        self.failures: list[str] = []

    def add(self, outcome: Outcome) -> None:
        job, error = outcome.job, outcome.error
        checkpoint = next(run.checkpoint for run in self.runs if run.name == job.run)
        if error is None and job.kind != TRAINING and job.kind not in self._metrics(job.run):
            error = f"stored no such figures in {measurement_file(checkpoint, job.kind)}"
        if error is not None:
            self.failures.append(f"{job.run} {job.kind}: {error} (log: {job.log})")
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
        found = {key: read_metrics(run.checkpoint, key, self.protocols[key], run.steps) for key in self.protocols}
        return {key: metrics for key, metrics in found.items() if metrics is not None}


def _jobs(run: Measured, finished: bool, arguments: Sequence[str], protocols: Protocols, logs: Path) -> list[Job]:
    """What is left to do for a run."""
    log, folder = logs / f"{run.name}.log", run.checkpoint.parents[1]
    progress = functools.partial(training_progress, folder, run.steps)
    jobs = [] if finished else [Job(run.name, TRAINING, ("-m", "nl3dmm.train", *arguments), log, progress)]
    for measure, (faces, steps) in protocols.items():
        if not finished or read_metrics(run.checkpoint, measure, (faces, steps), run.steps) is None:
            numbers = ("--faces", str(faces), "--steps", str(steps))
            jobs.append(Job(run.name, measure, ("-m", "nl3dmm.evaluate", measure, str(folder), *numbers), log))
    return jobs


def _command(job: Job) -> str:
    return shlex.join(("python", *job.arguments))


def _protocols(options: argparse.Namespace) -> Protocols:
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
    return {
        name: (options.faces or MEASURES[name][0], MEASURES[name][1] if options.steps is None else options.steps)
        for name in names
    }


if __name__ == "__main__":
    sys.exit(main())
