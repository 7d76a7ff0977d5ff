"""Output folders that are checked before work starts, and files that are either complete or absent."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nl3dmm.errors import OutputError

_TEMPORARY_PREFIX = ".nl3dmm-"
_STALE_SECONDS = 3600.0  # a living writer touches its temporary file far more often


def prepare_output_folder(path: str | Path) -> Path:
    """Create the folder, prove that a file can be written there and remove what killed runs left behind.

    Returns:
        The absolute path.

    Raises:
        OutputError: the folder cannot be created or written; call this before any long work.
    """
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary_name(folder / "probe")
        try:
            probe.write_bytes(b"nl3dmm")
        finally:  # of a full disk an empty file would stay
            _remove(probe)
        _remove_stale(folder)
    except OSError as error:
        raise OutputError(
            f"output folder: got {folder}, which cannot be used ({error}); expected a writable folder. "
            "Choose another folder, move the file that is in its way, free disk space, or change its permissions."
        ) from error
    return folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a new name beside ``path`` to write to; at the end the data is flushed to disk and renamed to ``path``.

    After an error, or a kill at any moment, ``path`` still is what it was. The new name has the suffix of ``path``.

    Raises:
        OutputError: the file cannot be written; any ``OSError`` inside the block becomes one too.
    """
    target = Path(path).absolute()
    temporary = _temporary_name(target)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise OutputError(
            f"output file: got {target}, which cannot be written ({error}); expected room for a file in a writable "
            "folder. Create the folder, free disk space, or choose another name."
        ) from error
    finally:
        _remove(temporary)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{target.suffix}")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder vanished or is not one; the error that led here says so already.
        return


def _remove_stale(folder: Path) -> None:
    oldest = time.time() - _STALE_SECONDS
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        if path.is_file() and path.stat().st_mtime < oldest:
            _remove(path)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable; Windows cannot open folders and does not need it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
