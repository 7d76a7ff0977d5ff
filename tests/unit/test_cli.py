"""What all command lines share."""

import os
import subprocess
import sys
import warnings

from nl3dmm.cli import STOP_WITH_STDIN, report_errors

WARNS = """
import warnings
from nl3dmm.cli import report_errors

@report_errors
def command() -> int:
    warnings.warn("no weights; using random features")
    return 0

raise SystemExit(command())
"""


def test_warnings_are_one_line_without_code():
    done = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "warning: no weights; using random features\n")


def test_the_formatter_of_the_process_is_put_back():
    before = warnings.formatwarning
    assert report_errors(lambda: 3)() == 3
    assert warnings.formatwarning is before


CHILD = """
import subprocess, sys, time
from nl3dmm.cli import report_errors

@report_errors
def command() -> int:
    child = subprocess.run([sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"], check=True)
    print(repr(sys.stdin.read()), flush=True)
    time.sleep(600)
    return 0

raise SystemExit(command())
"""


def test_a_command_ends_with_its_pipe_which_is_not_its_stdin():
    """Neither the command nor its children wait for the pipe, nor take what comes through it."""
    environment = os.environ | {STOP_WITH_STDIN: "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHILD], env=environment, **pipes) as process:
        process.stdin.write(b"not for the command")
        process.stdin.flush()
        assert [process.stdout.readline().strip() for _ in range(2)] == [b"''", b"''"]
        process.stdin.close()
        assert process.wait(60) == 130
