"""Tables to read, and what the figures belong to."""

import os
import platform
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import TOTAL, Facts, Result, Section, Spread
from nl3dmm.machine import commit, package_version, processor

_PACKAGES = ("torch", "numba", "deodr")
_DIRECTIONS = ("forward", "backward")
_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # decide what waiting threads cost


def machine(command: list[str]) -> dict:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: package_version(package) for package in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit(),
        "command": " ".join(["python -m benchmarks", *command]),
    }


def show(section: Section, groups: list[list[Result]], console: Console) -> None:
    """One row per case, or, where a case has stages, one table per group with a row per stage."""
    for result in (result for group in groups for result in group if result.skipped):
        console.print(f"skipped {_text(result.labels)}: {result.skipped}")
    measured = [found for group in groups if (found := [result for result in group if not result.skipped])]
    if any(result.has_stages for group in measured for result in group):
        for group in measured:
            console.print(_stage_table(section, group))
    elif measured:
        console.print(_case_table(section, measured))


def show_facts(facts: Facts, console: Console) -> None:
    table = Table(title=f"{facts.name}: {facts.title}")
    for name in facts.rows[0]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in facts.rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    console.print(table)


def _case_table(section: Section, groups: list[list[Result]]) -> Table:
    first, compares = groups[0][0], bool(section.compared)
    phases, facts = list(first.phases), list(first.facts)
    caption = "wall: median (least, distance of quartiles); cpu, ratio, per s: median"
    table = Table(title=f"{section.name}: {section.title}", caption=caption)
    figures = [f"{TOTAL} cpu", *(["ratio", "ratio cpu"] if compares else []), "per s", *facts]
    for name in [*first.labels, *phases, *figures]:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        for result in group:
            wall = [_spread(result.phases[phase]["wall"]) for phase in phases]
            ratios = [_ratio(result, clock) for clock in ("wall", "cpu")] if compares else []
            last = [result.items_per_second or 0, *(result.facts[name] for name in facts)]
            cpu = f"{result.phases[TOTAL]['cpu'].median:.2f}"
            table.add_row(*map(str, result.labels.values()), *wall, cpu, *ratios, *(f"{each:.4g}" for each in last))
        table.add_section()
    return table


def _stage_table(section: Section, group: list[Result]) -> Table:
    """Cases without stages, and ratios, are in the caption."""
    clock, compared = section.clock, section.compared
    staged = [result for result in group if result.has_stages]
    whole = [result for result in group if not result.has_stages]
    notes = [f"{result.labels[compared]}: {result.phases[TOTAL][clock].median:.2f}" for result in whole]
    notes += [f"{each.labels[compared]} / {group[0].labels[compared]}: {_ratio(each, clock)}" for each in group[1:]]
    title = f"{section.name}: {section.title}\n{_text(group[0].labels, without=compared)}"
    table = Table("stage", title=title, caption="; ".join([f"{clock}: median (distance of quartiles)", *notes]))
    for result in staged:
        for name in (*_DIRECTIONS, "share"):
            table.add_column(f"{result.labels[compared]} {name}", justify="right")
    for stage in dict.fromkeys(_split(phase)[0] for phase in staged[0].phases if phase != TOTAL):
        table.add_row(stage, *(cell for result in staged for cell in _stage_cells(result, stage, clock)))
    table.add_section()
    totals = (("", f"{result.phases[TOTAL][clock].median:.2f}", "") for result in staged)
    table.add_row(TOTAL, *(cell for cells in totals for cell in cells))
    return table


def _stage_cells(result: Result, stage: str, clock: str) -> list[str]:
    """Forward, backward, share of both; what has no direction counts as forward."""
    found = {_split(phase)[1]: phase for phase in result.phases if _split(phase)[0] == stage}
    spreads = [result.phases[found[each]][clock] if each in found else None for each in _DIRECTIONS]
    share = sum(result.shares(clock)[phase] for phase in found.values())
    return [*(f"{each.median:.2f} ({each.spread:.2f})" if each else "" for each in spreads), f"{100 * share:.1f} %"]


def _split(phase: str) -> tuple[str, str]:
    """Stage and direction."""
    stage, _, direction = phase.rpartition(" ")
    return (stage, direction) if direction in _DIRECTIONS else (phase, _DIRECTIONS[0])


def _spread(figures: Spread) -> str:
    return f"{figures.median:.2f} ({figures.min:.2f}, {figures.spread:.2f})"


def _ratio(result: Result, clock: str) -> str:
    return f"{result.ratio[clock]:.2f}" if result.ratio else "-"


def _text(labels: Mapping[str, str | int], without: str = "") -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items() if key != without)
