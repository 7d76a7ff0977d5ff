"""How every numba kernel of this package is compiled.

Kernels have one exit and pass their helpers numbers or rows, not whole arrays: elsewhere numba counts references to
the arrays with atomic instructions, which was measured to cost more (10 - 40 ns a call) than the work itself.
"""

from collections.abc import Callable

from numba import njit


def kernel(function: Callable) -> Callable:
    """Compile without the GIL, cached on disk where numba finds a folder it can write, else in memory only."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: "no locator available"; neither the package's folder nor the user's cache is writable
        return njit(**options)(function)
