"""Stored measurements of many runs as one table: rows are settings, columns metrics, values means over seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nl3dmm.evaluation.measures import Measurement, measurement_file
from nl3dmm.machine import commit, cores, package_version, processor
from nl3dmm.outputs import atomic_path

_END = "final"  # the end that counts; a model with one end has it too
_AND = "; "  # between the attempts

Metrics = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A run with what has been measured on it so far."""

    name: str
    setting: str
    seed: int
    parameters: Mapping[str, Any]
    steps: int  # that it has when it is finished
    checkpoint: Path
    metrics: Mapping[str, Metrics] = field(default_factory=dict)  # name of the measurement -> metric -> value

    def described(self) -> dict[str, Any]:
        """Plain values; the step is that of the metrics, None stands for one that is not finite."""
        facts = {"run": self.name, "setting": self.setting, "seed": self.seed, "parameters": dict(self.parameters)}
        facts |= {"checkpoint": str(self.checkpoint), "step": self.steps if self.metrics else None}
        return facts | {"metrics": {name: _plain(values) for name, values in self.metrics.items()}}


def _plain(metrics: Metrics) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def read_metrics(checkpoint: Path, measurement: Measurement, step: int) -> Metrics | None:
    """The figures of a stored measurement; None where there is none of this checkpoint step, faces and latent steps."""
    try:
        file = measurement_file(checkpoint, measurement.measure, measurement.data)
        stored = json.loads(file.read_text(encoding="utf-8"))
        protocol = stored["protocol"]
        faces = protocol.get("faces_asked", protocol["faces"])
        if (faces, protocol["latent_steps"], stored["checkpoint_step"]) != (measurement.faces, measurement.steps, step):
            return None
        values = stored["ratios"] if measurement.measure == "disentangle" else stored["errors"][_END]
        return {name: float(value) for name, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing stored, or something else under its name: measure again


def not_finite(runs: Sequence[Measured]) -> list[str]:
    """What was measured as NaN or infinite, which no mean holds."""
    figures = ((run, *entry) for run in runs for entry in run.metrics.items())
    return [
        f"{run.name}: got {value} for {measurement} {name}"
        for run, measurement, values in figures
        for name, value in values.items()
        if not math.isfinite(value)
    ]


def comparison(runs: Sequence[Measured]) -> dict[str, dict[str, dict[str, dict[str, float | int | None]]]]:
    """Measurement -> setting -> metric -> mean, sample standard deviation (None for one seed) and their number.

    Only finite values count; the mean is None where there is none.
    """
    measures = {measure: None for run in runs for measure in run.metrics}
    settings = {run.setting: None for run in runs}
    table: dict[str, Any] = {}
    for measure in measures:
        names = {name: None for run in runs for name in run.metrics.get(measure, ())}
        for setting in settings:
            found = [run.metrics[measure] for run in runs if run.setting == setting and measure in run.metrics]
            columns = {name: [values[name] for values in found if name in values] for name in names}
            row = {name: _statistics(values) for name, values in columns.items() if values}
            table.setdefault(measure, {})[setting] = row
    return table


def _statistics(values: list[float]) -> dict[str, float | int | None]:
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return {"mean": None, "std": None, "n": 0}
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}


def comparison_text(table: Mapping[str, Any]) -> str:
    """One Markdown table per measurement, its columns aligned to be read as text too."""
    parts = []
    for measure, rows in table.items():
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        cells = [[measure, *names, "n"], []]
        for setting, row in rows.items():
            count = max((entry["n"] for entry in row.values()), default=0)
            cells.append([setting, *(_cell(row.get(name), count) for name in names), str(count)])
        widths = [max(3, *(len(line[i]) for line in cells if line)) for i in range(len(names) + 2)]
        cells[1] = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        parts.append("\n".join(_line(line, widths) for line in cells))
    return "\n\n".join(parts)


def _cell(entry: Mapping[str, Any] | None, count: int) -> str:
    if entry is None:
        return "-"
    few = f" (n={entry['n']})" if entry["n"] < count else ""
    mean = "-" if entry["mean"] is None else f"{entry['mean']:.4g}"
    return mean + (f" ± {entry['std']:.2g}" if entry["std"] is not None else "") + few


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def write_comparison(folder: Path, runs: Sequence[Measured], facts: Mapping[str, Any], failures: Sequence[str]) -> None:
    """``results.json`` and its Markdown twin; both are complete or what they were.

    Args:
        facts: what the figures belong to (``provenance`` and the command).
    """
    table = comparison(runs)
    results = {**facts, "failures": list(failures), "comparison": table, "runs": [run.described() for run in runs]}
    with atomic_path(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")
    lines = [f"# {facts.get('sweep', 'Sweep')}", "", f"`{facts.get('command', '')}`", "", comparison_text(table), ""]
    lines += ["Mean ± sample standard deviation over the n seeds of a setting.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("sweep", "command")]
    lines += [f"- failed: {failure}" for failure in failures]
    with atomic_path(folder / "results.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def provenance(folder: Path, command: str, makes_figures: bool = True) -> dict[str, str]:
    """What the figures of a folder come from: command, machine, version and, in a checkout, the commit.

    A commit has a + where files differ from it. Attempts that went on with what others had left are all named.

    Args:
        makes_figures: False where this attempt only reads those that are there.
    """
    own = {"command": command, "machine": f"{cores()} cores, {processor()}", "commit": commit()}
    own["nl3dmm"] = package_version("nl3dmm")
    try:
        stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        earlier = {key: str(stored[key]).split(_AND) for key in own}
    except (OSError, ValueError, KeyError, TypeError):
        return own
    return {key: _AND.join(dict.fromkeys([*earlier[key], *([own[key]] if makes_figures else [])])) for key in own}
