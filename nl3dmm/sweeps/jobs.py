"""Commands as subprocesses, a few at a time: a log each, a display, an estimate, and no orphans."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nl3dmm.cli import STOP_WITH_STDIN

TRAINING = "training"
_POLL, _LOOK = 0.05, 1.0  # seconds between looks at the processes, and at the files that tell how far they are
_PATIENCE = 10.0  # seconds that a process has to end by itself


@dataclass(frozen=True)
class Job:
    """One command of one run; the measurements of a run wait for its training."""

    run: str
    kind: str  # TRAINING or a measurement
    arguments: tuple[str, ...]  # of the interpreter
    log: Path
    done: Callable[[], float] = lambda: 0.0  # fraction, where the command leaves a trace of it


@dataclass(frozen=True)
class Outcome:
    """How a job ended; no error means well."""

    job: Job
    seconds: float
    fraction: float  # of the job: less than 1 where it went on with an earlier attempt
    error: str | None


@dataclass
class _Active:
    job: Job
    process: subprocess.Popen
    log_start: int
    started: float = field(default_factory=time.monotonic)
    fraction: float = 0.0
    first_fraction: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class _Clock:
    """Seconds that a whole job of each kind takes, from what was seen of them."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float]] = {}  # kind -> seconds, jobs

    def add(self, kind: str, seconds: float, fraction: float) -> None:
        before = self.seen.get(kind, (0.0, 0.0))
        self.seen[kind] = (before[0] + seconds, before[1] + fraction)

    def left(self, waiting: Collection[Job], active: Sequence[_Active], jobs: int) -> str:
        """The time until all is done as text; ``more than`` while no job of some kind was seen."""
        rates = dict(self.seen)
        for entry in active:
            if entry.fraction - entry.first_fraction > 0.02:
                seconds, done = rates.get(entry.job.kind, (0.0, 0.0))
                rates[entry.job.kind] = (seconds + entry.seconds, done + entry.fraction - entry.first_fraction)
        open_parts = [(job.kind, 1.0) for job in waiting] + [(entry.job.kind, 1 - entry.fraction) for entry in active]
        seconds = sum(part * rates[kind][0] / rates[kind][1] for kind, part in open_parts if kind in rates)
        if not seconds:
            return ""
        unknown = any(kind not in rates for kind, _ in open_parts)
        return f"{'more than' if unknown else 'about'} {duration(seconds / max(1, min(jobs, len(open_parts))))} left"


def duration(seconds: float) -> str:
    """Two digits that matter: ``40 s``, ``12 min``, ``3.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def run_jobs(
    jobs: Sequence[Job], at_once: int, threads: int, console: Console, finished: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run all jobs in order, ``at_once`` of them at a time; a run's other jobs are left out when its training fails.

    Whatever ends this function, and this process, ends the subprocesses too.

    Args:
        threads: for each job.
        finished: called after each job that ran.
    """
    waiting, active, outcomes = deque(jobs), [], []
    try:
        with _Display(console, len(jobs), at_once) as display:
            while waiting or active:
                while len(active) < at_once and (job := _take_ready(waiting, active)):
                    active.append(_start(job, threads))
                for entry in [entry for entry in active if entry.process.poll() is not None]:
                    active.remove(entry)
                    outcome = Outcome(entry.job, entry.seconds, max(1e-3, 1 - entry.first_fraction), _error(entry))
                    outcomes.append(outcome)
                    if outcome.error is not None and entry.job.kind == TRAINING:
                        waiting = deque(job for job in waiting if job.run != entry.job.run)
                    finished(outcome)
                    display.tell(outcome, waiting, active)
                display.show(waiting, active)
                time.sleep(_POLL)
    finally:
        _stop(active)
    return outcomes


def _take_ready(waiting: deque[Job], active: Sequence[_Active]) -> Job | None:
    """The first job whose run is not in training, nor waits for it."""
    training = {entry.job.run for entry in active if entry.job.kind == TRAINING}
    for job in waiting:
        if job.kind == TRAINING or job.run not in training:
            waiting.remove(job)
            return job
        training.add(job.run)
    return None


def _start(job: Job, threads: int) -> _Active:
    """Its stdin is a pipe that nobody writes to: when this process dies, it ends, and the command with it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", STOP_WITH_STDIN: "1"}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"$ {shlex.join(('python', *job.arguments))}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *job.arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the sweep alone, which then stops its jobs
        )
        fraction = job.done()
        return _Active(job, process, log.tell(), fraction=fraction, first_fraction=fraction)


def _stop(active: Sequence[_Active]) -> None:
    for entry in active:
        entry.process.terminate()
    end = time.monotonic() + _PATIENCE
    for entry in active:
        try:
            entry.process.wait(max(0.0, end - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            entry.process.kill()
            entry.process.wait()
        _close(entry)


def _close(entry: _Active) -> None:
    if entry.process.stdin:
        entry.process.stdin.close()


def _error(entry: _Active) -> str | None:
    """The last line that names an error, else the last line."""
    _close(entry)
    code = entry.process.returncode
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    with entry.job.log.open("rb") as log:
        log.seek(entry.log_start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1]


def training_progress(folder: Path, steps: int) -> float:
    """Fraction of a run's steps that its ``metrics.csv`` has seen, without reading all of it."""
    try:
        with (folder / "metrics.csv").open("rb") as file:
            column = next(csv.reader([file.readline().decode()])).index("step")
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - 8192))
            rows = list(csv.reader(file.read().decode().splitlines()))
        return min(1.0, (int(rows[-1][column]) + 1) / steps)
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0  # not begun, or just being written


class _Display:
    """A bar for the whole and one for each command that runs; lines for what has ended."""

    def __init__(self, console: Console, total: int, at_once: int):
        self.console, self.total, self.at_once, self.looked, self.clock = console, total, at_once, 0.0, _Clock()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=2)
        self.whole = self.progress.add_task("sweep", total=total, note="")
        self.bars: dict[Job, TaskID] = {}

    def __enter__(self) -> "_Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, waiting: Collection[Job], active: Sequence[_Active]) -> None:
        if time.monotonic() - self.looked < _LOOK:
            return
        self.looked = time.monotonic()
        for job in set(self.bars) - {entry.job for entry in active}:
            self.progress.remove_task(self.bars.pop(job))
        for entry in active:
            entry.fraction = max(entry.fraction, entry.job.done())
            if entry.job not in self.bars:
                self.bars[entry.job] = self.progress.add_task(f"  {entry.job.run} {entry.job.kind}", total=1.0, note="")
            note = f"{entry.fraction:.0%}" if entry.job.kind == TRAINING else ""
            self.progress.update(self.bars[entry.job], completed=entry.fraction, note=note)
        ended = self.total - len(waiting) - len(active)
        self.progress.update(self.whole, completed=ended, note=self._state(waiting, active))

    def tell(self, outcome: Outcome, waiting: Collection[Job], active: Sequence[_Active]) -> None:
        if outcome.error is None:
            self.clock.add(outcome.job.kind, outcome.seconds, outcome.fraction)
        how = f"done in {duration(outcome.seconds)}" if outcome.error is None else f"FAILED: {outcome.error}"
        line = f"{outcome.job.run} {outcome.job.kind}: {how} ({self._state(waiting, active)})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _state(self, waiting: Collection[Job], active: Sequence[_Active]) -> str:
        left = self.clock.left(waiting, active, self.at_once)
        ended = f"{self.total - len(waiting) - len(active)} of {self.total}"
        return f"{ended}, {left}" if left else ended
