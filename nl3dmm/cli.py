"""What all command lines share: help, one-line errors, exit codes."""

import argparse
import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, ParamSpec

from nl3dmm.errors import Nl3dmmError

P = ParamSpec("P")
STOP_WITH_STDIN = "NL3DMM_STOP_WITH_STDIN"  # set for commands that another one starts with a pipe as stdin


class Parser(argparse.ArgumentParser):
    """argparse whose errors exit with 1 and whose positional values may stand between options."""

    def __init__(self, command: str, description: str | None):
        super().__init__(prog=command, description=(description or "").strip(), allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Nl3dmmError(f"arguments: {message}. See {self.prog} --help.")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        return self.parse_intermixed_args(arguments)


def add_fit_arguments(parser: Parser, of_one: str = "") -> None:
    """What every command that fits photos takes; ``of_one`` begins the help of what is known of a single photo."""
    text = "run folder, checkpoint or released file (default: the model that comes with nl3dmm)"
    parser.add_argument("--model", type=Path, default=Path("default"), help=text)
    text = f"{of_one}68 points: .pts, .npy or .json (default: found)"
    parser.add_argument("--landmarks", type=Path, help=text)
    box = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    parser.add_argument("--box", type=float, nargs=4, metavar=box, help=f"{of_one}the face, brows to chin, px")
    parser.add_argument("--steps", type=int, default=200, help="optimisation steps (default: 200)")
    text = "mm from the camera to the head, where known: about 400 for a selfie (default: 1000)"
    parser.add_argument("--distance", type=float, default=1000.0, metavar="MM", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def report_errors(command: Callable[P, int]) -> Callable[P, int]:
    """Turn nl3dmm's errors into one line on stderr and exit code 1, Ctrl-C into 130."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        if os.environ.pop(STOP_WITH_STDIN, None):
            threading.Thread(target=_stop_with, args=(_take_stdin(),), daemon=True).start()
        formatter = warnings.formatwarning
        warnings.formatwarning = _one_line
        try:
            return command(*args, **kwargs)
        except Nl3dmmError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        finally:
            warnings.formatwarning = formatter

    return guarded


def _take_stdin() -> int:
    """A descriptor of what stdin was. Stdin is empty from now on, also for children, which would wait for it."""
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _stop_with(pipe: int) -> None:
    """End this process at once when the pipe ends: then the process that holds its other end is gone, however it died.

    No signal says so everywhere, and what an orphan writes would meet what the next attempt writes.
    """
    while os.read(pipe, 4096):
        pass
    os._exit(130)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as its reader needs it: without the line of code that gave it."""
    return f"warning: {message}\n"
