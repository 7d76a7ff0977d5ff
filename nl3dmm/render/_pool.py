"""Threads for the CPU kernels: one image per task, as many workers as torch itself may use.

The kernels are sequential and release the GIL, so plain Python threads scale, survive ``fork`` (numba's own parallel
layers do not) and keep every result independent of the number of threads.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def run_images(task: Callable[[int], None], batch: int, threads: int) -> None:
    """Call ``task(0) ... task(batch - 1)`` in any order, at most ``threads`` at once; an error is raised again here.

    The caller works too and does not wait for helpers that have not begun, so a busy machine costs no waiting.
    """
    images = iter(range(batch))  # shared: taking the next image is one atomic step

    def work() -> None:
        while (image := next(images, None)) is not None:
            task(image)

    helpers = [_pool(threads).submit(work) for _ in range(min(batch, threads) - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():
                helper.result()


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
