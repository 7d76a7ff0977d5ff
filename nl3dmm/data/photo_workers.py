"""Worker processes for photos: results in order, a bounded number of them at a time."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import cv2
import torch

from nl3dmm.data.detected_faces import FaceDetector
from nl3dmm.data.photo_faces import PhotoFaces, PrepConfig, photo_faces
from nl3dmm.errors import ImageError

MakeDetector: TypeAlias = Callable[[], FaceDetector]

_AHEAD = 8  # photos per worker that may be done before they are needed: memory stays flat
_detector: FaceDetector | None = None  # of this worker process


@contextmanager
def faces_of_photos(
    folder: Path, names: Iterable[str], config: PrepConfig, make_detector: MakeDetector | None, jobs: int
) -> Iterator[Iterator[PhotoFaces]]:
    """An iterator over what the photos give, in their order; with ``jobs`` 0 in this process, else in so many others.

    Each works with one thread, so that results do not depend on their number.

    Raises:
        ImageError: a worker died.
    """
    detector = make_detector() if make_detector else None  # its errors come here, not from a worker
    if jobs == 0:
        yield (photo_faces(folder, name, config, detector) for name in names)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (make_detector,))
    try:
        yield _in_order(pool, folder, names, config, jobs * _AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, folder: Path, names: Iterable[str], config: PrepConfig, ahead: int
) -> Iterator[PhotoFaces]:
    waiting: deque = deque()
    names = iter(names)
    try:
        for name in names:
            waiting.append(pool.submit(_work, folder, name, config))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ImageError(
            "worker process: got one that ended by itself; expected enough memory and decoders that do not crash. "
            "Run the command again, it goes on; with --jobs 1 or a smaller --max-pixels if it happens again."
        ) from error


def _start_worker(make_detector: MakeDetector | None) -> None:
    global _detector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _detector = make_detector() if make_detector else None


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(folder: Path, name: str, config: PrepConfig) -> PhotoFaces:
    return photo_faces(folder, name, config, _detector)
