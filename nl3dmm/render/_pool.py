"""Threads for the CPU kernels: one image per task, as many workers as torch itself may use.

The kernels are sequential and release the GIL, so plain Python threads scale, survive ``fork`` (numba's own parallel
layers do not) and keep every result independent of the number of threads.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def run_images(task: Callable[[int], None], batch: int, threads: int) -> None:
    """Call ``task(0) ... task(batch - 1)`` in any order, at most ``threads`` at once; an error is raised again here.

    The caller takes images too and waits only for images that a helper has begun, so that helpers which get no
    processor time on a busy machine cost nothing.
    """
    images = iter(range(batch))  # shared: taking the next image is one atomic step
    results: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        for image in images:
            try:
                task(image)
                results.put(None)
            except BaseException as error:
                results.put(error)

    for _ in range(min(batch, threads) - 1):
        _pool(threads).submit(work)
    work()
    errors = [results.get() for _ in range(batch)]
    for error in filter(None, errors):
        raise error


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="nl3dmm-render")
        return _pools[threads]


def _forget_pools() -> None:
    """A forked child inherits the executors but not their threads, and maybe a lock that nobody will release."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
