"""What all command lines share."""

import subprocess
import sys
import warnings

from nl3dmm.cli import report_errors

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
