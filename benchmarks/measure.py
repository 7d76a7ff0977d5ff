"""Timing: phases of a task, repetitions of the cases that are compared in turn, medians and spreads."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from unittest import mock

import numpy as np
import torch

from nl3dmm.errors import BackendError

TOTAL = "total"
WARM_UP = 2
_FEW = 4  # phases with their total; a case of more has stages
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: all threads of this process together


def read_clocks() -> dict[str, float]:
    """Seconds; what was given to a GPU is done by then."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return {clock: read() for clock, read in _CLOCKS.items()}


class Stopwatch:
    """Adds up the seconds of named phases, by the clock on the wall and in processor time."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in _CLOCKS}
        self.facts: dict[str, float] = {}  # what else a task found out

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = read_clocks()
        yield
        self.charge(name, started)

    def charge(self, name: str, since: Mapping[str, float]) -> dict[str, float]:
        """Count the time since then for a phase; returns the clocks now."""
        now = read_clocks()
        for clock, reading in now.items():
            self.seconds[clock][name] += reading - since[clock]
        return now

    def total(self, clock: str) -> float:
        return sum(self.seconds[clock].values())

    def milliseconds(self, clock: str, items: int) -> dict[str, float]:
        """Of each phase and of all together, per item."""
        phases = {**self.seconds[clock], TOTAL: self.total(clock)}
        return {name: seconds * 1e3 / items for name, seconds in phases.items()}


@dataclass(frozen=True)
class Case:
    """One thing to time. The labels ``threads`` and ``backend`` take effect, the others only describe."""

    labels: Mapping[str, str | int]
    task: Callable[[Stopwatch], None]
    items: int  # handled by one call; figures are per item


@dataclass(frozen=True)
class Section:
    """Cases of one table. Neighbours that differ only in ``compared`` take turns, so that noise hits them alike."""

    name: str
    title: str
    cases: list[Case]
    compared: str = ""
    clock: str = "cpu"  # of tables of many phases

    def groups(self) -> list[list[Case]]:
        def common(case: Case) -> list:
            return [item for item in case.labels.items() if item[0] != self.compared]

        return [list(group) for _, group in groupby(self.cases, common)]


@dataclass(frozen=True)
class Facts:
    """A table of what is counted rather than timed; all rows have the same columns."""

    name: str
    title: str
    rows: list[dict[str, str | int | float | None]]


@dataclass(frozen=True)
class Spread:
    """ms per item; ``spread`` is the distance of the quartiles."""

    median: float
    min: float
    spread: float


@dataclass(frozen=True)
class Result:
    labels: Mapping[str, str | int]
    repetitions: int = 0
    phases: dict[str, dict[str, Spread]] = field(default_factory=dict)  # phase -> clock
    ratio: dict[str, float] = field(default_factory=dict)  # clock -> median of total / total of the group's first case
    skipped: str = ""  # why
    items_per_second: float | None = None  # by the clock on the wall
    facts: dict[str, float] = field(default_factory=dict)  # of the last repetition

    def as_dict(self) -> dict:
        found = {key: value for key, value in asdict(self).items() if value not in ("", {}, None)}
        return found | {"shares": self.shares("wall")} if self.has_stages else found

    @property
    def has_stages(self) -> bool:
        return len(self.phases) > _FEW

    def shares(self, clock: str) -> dict[str, float]:
        """Of each phase in the total."""
        total = max(self.phases[TOTAL][clock].median, 1e-12)
        return {phase: of[clock].median / total for phase, of in self.phases.items() if phase != TOTAL}


def measure_group(cases: list[Case], repetitions: int) -> list[Result]:
    """Warm up each case, then call all of them in turn, ``repetitions`` times."""
    obstacles = [_warm_up(case) for case in cases]
    runs: list[list[Stopwatch]] = [[] for _ in cases]
    for _ in range(repetitions):
        for case, obstacle, watches in zip(cases, obstacles, runs, strict=True):
            if not obstacle:
                watches.append(_call(case))
    return [
        Result(case.labels, skipped=obstacle) if obstacle else _result(case, watches, runs[0])
        for case, obstacle, watches in zip(cases, obstacles, runs, strict=True)
    ]


def _call(case: Case) -> Stopwatch:
    watch = Stopwatch()
    backend = case.labels.get("backend")
    torch.set_num_threads(int(case.labels.get("threads", torch.get_num_threads())))
    with mock.patch.dict(os.environ, {"NL3DMM_RENDER": str(backend)} if backend else {}):
        case.task(watch)
    return watch


def _warm_up(case: Case) -> str:
    """Why the case cannot run on this machine, or nothing."""
    try:
        for _ in range(WARM_UP):
            _call(case)
    except (BackendError, ImportError, torch.OutOfMemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _result(case: Case, watches: list[Stopwatch], first: list[Stopwatch]) -> Result:
    runs = {clock: [watch.milliseconds(clock, case.items) for watch in watches] for clock in _CLOCKS}
    phases = {
        phase: {clock: _spread([run[phase] for run in runs[clock]]) for clock in _CLOCKS} for phase in runs["wall"][0]
    }
    ratio = {clock: _ratio(watches, first, clock) for clock in _CLOCKS} if first else {}
    per_second = 1e3 / max(phases[TOTAL]["wall"].median, 1e-9)
    return Result(case.labels, len(watches), phases, ratio, items_per_second=per_second, facts=watches[-1].facts)


def _spread(samples: list[float]) -> Spread:
    low, median, high = np.percentile(samples, [25, 50, 75]).tolist()
    return Spread(median, min(samples), high - low)


def _ratio(watches: list[Stopwatch], first: list[Stopwatch], clock: str) -> float:
    pairs = zip(watches, first, strict=True)
    return float(np.median([mine.total(clock) / base.total(clock) for mine, base in pairs]))
