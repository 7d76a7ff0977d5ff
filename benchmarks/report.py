"""Tables to read, and what the figures belong to."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import TOTAL, Result, Section, Spread

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "numba", "deodr")
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # decide what waiting threads cost


def machine(command: list[str]) -> dict:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "command": " ".join(["python -m benchmarks", *command]),
    }


def show(section: Section, groups: list[list[Result]], console: Console) -> None:
    """One row per case, or, where a case has many phases, one table per group with a row per stage."""
    for result in (result for group in groups for result in group if result.skipped):
        console.print(f"skipped {_text(result.labels)}: {result.skipped}")
    measured = [found for group in groups if (found := [result for result in group if not result.skipped])]
    if measured and len(measured[0][0].phases) > 3:
        for group in measured:
            console.print(_stage_table(section, group))
    elif measured:
        console.print(_case_table(section, measured))


def _case_table(section: Section, groups: list[list[Result]]) -> Table:
    labels, phases = groups[0][0].labels, list(groups[0][0].phases)
    compares = bool(section.compared)
    caption = "wall: median (least, distance of quartiles); cpu, ratio: median"
    table = Table(title=f"{section.name}: {section.title}", caption=caption)
    for name in [*labels, *phases, f"{TOTAL} cpu", *(["ratio", "ratio cpu"] if compares else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        for result in group:
            wall = [_spread(result.phases[phase]["wall"]) for phase in phases]
            ratios = [_ratio(result, clock) for clock in ("wall", "cpu")] if compares else []
            cpu = f"{result.phases[TOTAL]['cpu'].median:.2f}"
            table.add_row(*map(str, result.labels.values()), *wall, cpu, *ratios)
        table.add_section()
    return table


def _stage_table(section: Section, group: list[Result]) -> Table:
    """Processor time, which the machine's other work hardly changes."""
    common = {key: value for key, value in group[0].labels.items() if key != section.compared}
    title = f"{section.name}: {section.title}\n{_text(common)}"
    table = Table("stage", title=title, caption="cpu: median (distance of quartiles)")
    directions = ("forward", "backward")
    for result in group:
        for direction in directions:
            table.add_column(f"{result.labels[section.compared]} {direction}", justify="right")
    for stage in dict.fromkeys(phase.rsplit(" ", 1)[0] for phase in group[0].phases if phase != TOTAL):
        cells = [result.phases[f"{stage} {direction}"]["cpu"] for result in group for direction in directions]
        table.add_row(stage, *(f"{cell.median:.2f} ({cell.spread:.2f})" for cell in cells))
    table.add_section()
    table.add_row(TOTAL, *(cell for result in group for cell in ("", f"{result.phases[TOTAL]['cpu'].median:.2f}")))
    return table


def _spread(figures: Spread) -> str:
    return f"{figures.median:.2f} ({figures.min:.2f}, {figures.spread:.2f})"


def _ratio(result: Result, clock: str) -> str:
    return f"{result.ratio[clock]:.2f}" if result.ratio else "-"


def _text(labels) -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items())


def _processor() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    """Empty where there is no repository."""
    folder = Path(__file__).parent
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
