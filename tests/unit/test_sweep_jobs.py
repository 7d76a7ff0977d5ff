"""The commands of a sweep as subprocesses that need no torch."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from nl3dmm.sweeps.jobs import TRAINING, Job, Outcome, _Active, _Clock, duration, run_jobs, training_progress


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, run: str, kind: str, code: str, **options) -> Job:
    return Job(run, kind, ("-c", code), folder / "logs" / f"{run}.log", **options)


def done(jobs: list[Job], at_once: int = 1) -> tuple[list[Outcome], str]:
    """Outcomes, and what was printed."""
    console, told = Console(file=io.StringIO(), width=200), []
    outcomes = run_jobs(jobs, at_once, 3, console, told.append)
    assert told == outcomes
    return outcomes, console.file.getvalue()


def test_jobs_run_in_order_and_log(folder):
    code = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    outcomes, printed = done([job(folder, "a", kind, code) for kind in (TRAINING, "shape")])
    assert [(outcome.job.kind, outcome.error) for outcome in outcomes] == [(TRAINING, None), ("shape", None)]
    log = (folder / "logs" / "a.log").read_text().splitlines()
    assert [line for line in log if not line.startswith("$ python -c ")] == ["threads 3", "threads 3"]
    assert len(log) == 4
    assert printed.splitlines()[0].startswith("a training: done in 0 s (1 of 2")


def test_a_failing_training_takes_its_measurements_with_it(folder):
    jobs = [
        job(folder, "a", TRAINING, "import sys; print('error: first'); print('error: got [no] luck'); sys.exit(1)"),
        job(folder, "a", "shape", "print('never')"),
        job(folder, "b", TRAINING, "raise ValueError('broken')"),
        job(folder, "c", TRAINING, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        job(folder, "d", TRAINING, "import sys; sys.exit(5)"),
        job(folder, "e", TRAINING, ""),
        job(folder, "e", "shape", "import sys; sys.exit('bad shape')"),
        job(folder, "e", "texture", ""),
    ]
    outcomes, printed = done(jobs)
    assert [(outcome.job.run, outcome.job.kind, outcome.error) for outcome in outcomes] == [
        ("a", TRAINING, "got [no] luck"),
        ("b", TRAINING, "ValueError: broken"),
        ("c", TRAINING, "ended by signal 9 (Killed)"),
        ("d", TRAINING, "exit code 5"),
        ("e", TRAINING, None),
        ("e", "shape", "bad shape"),
        ("e", "texture", None),
    ]
    assert "a training: FAILED: got [no] luck" in printed
    assert "never" not in (folder / "logs" / "a.log").read_text()


def test_errors_of_earlier_attempts_are_not_repeated(folder):
    done([job(folder, "a", TRAINING, "import sys; print('error: old'); sys.exit(1)")])
    (outcome,), _ = done([job(folder, "a", TRAINING, "import sys; sys.exit(2)")])
    assert outcome.error == "exit code 2"
    assert "error: old" in (folder / "logs" / "a.log").read_text()


def test_jobs_at_once(folder):
    """Two trainings wait for each other; a measurement takes the first free place, but not before its training."""
    wait = "import pathlib, time\npathlib.Path('{0}').touch()\nwhile not pathlib.Path('{1}').exists(): time.sleep(0.01)"
    jobs = [
        job(folder, "a", TRAINING, wait.format("a", "b")),
        job(folder, "a", "shape", wait.format("c", "d")),
        job(folder, "b", TRAINING, wait.format("b", "a")),
        job(folder, "b", "shape", wait.format("d", "c")),
    ]
    outcomes, _ = done(jobs, at_once=2)
    assert {outcome.job.kind for outcome in outcomes[:2]} == {TRAINING}
    assert [outcome.error for outcome in outcomes] == [None] * 4


def test_interrupt_ends_the_jobs(folder):
    """An interrupt in the sweep's own process, whatever its jobs do about SIGTERM and SIGINT."""
    sleep = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"

    def interrupt() -> float:
        if (folder / "pid").is_file() and (folder / "pid").read_text():
            raise KeyboardInterrupt
        return 0.0

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        done([job(folder, "a", TRAINING, sleep, done=interrupt)])
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


ORPHAN = """
import sys
from pathlib import Path
from rich.console import Console
from nl3dmm.sweeps.jobs import Job, run_jobs
code = '''
import os, time
from pathlib import Path
from nl3dmm.cli import report_errors

@report_errors
def command() -> int:
    Path("pid").write_text(str(os.getpid()))
    while True:
        Path("alive").touch()
        time.sleep(0.02)

command()
'''
run_jobs([Job("a", "training", ("-c", code), Path("log"))], 1, 1, Console(), lambda outcome: None)
"""


def test_a_killed_sweep_leaves_no_orphan(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=folder, env=environment) as process:
        wait_for(lambda: (folder / "alive").is_file(), "the job never started")
        process.send_signal(signal.SIGKILL)

    def silent() -> bool:
        (folder / "alive").unlink(missing_ok=True)
        time.sleep(0.3)
        return not (folder / "alive").exists()

    wait_for(silent, "the job lives on")


def wait_for(condition, message: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.02)


def test_time_left_is_that_of_what_was_seen(folder):
    """A training at 50 % of which an earlier attempt did 20 %, two measurements at a time."""
    jobs = [job(folder, "a", kind, "") for kind in (TRAINING, "shape", "texture")]
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        clock, training = _Clock(), _Active(jobs[0], process, 0, time.monotonic() - 300.0, 0.5, 0.2)
    assert clock.left(jobs, [], 2) == ""
    assert clock.left(jobs[1:], [training], 1) == "more than 8 min left"
    clock.add("shape", 60.0, 1.0)
    clock.add("texture", 1140.0, 0.5)
    assert clock.left(jobs[1:], [], 1) == "about 39 min left"
    assert clock.left(jobs[1:], [], 2) == "about 20 min left"
    assert clock.left(jobs[1:], [training], 3) == "about 16 min left"
    assert clock.left(jobs[1:2], [], 3) == "about 60 s left"


def test_training_progress_reads_the_last_row(tmp_path):
    assert training_progress(tmp_path, 10) == 0
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,loss,step\n")
    assert training_progress(tmp_path, 10) == 0
    file.write_text("epoch,loss,step\n0,1.5,0\n0,1.25,3\n")
    assert training_progress(tmp_path, 10) == pytest.approx(0.4)
    file.write_text("epoch,loss,step\n" + "".join(f"0,0.123456789,{step}\n" for step in range(5000)))
    assert training_progress(tmp_path, 10_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5940.0, "99 min"), (9000.0, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
