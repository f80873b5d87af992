"""The options with which functions are compiled by Numba."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function with Numba at its first call and cache the machine code on disk.

    The compiled function releases the interpreter's lock. Numba keeps the code beside the source file, else
    in the user's cache folder, else in NUMBA_CACHE_DIR. Where none of these can be written, as in a read-only
    container, each process compiles anew.

    Numba recompiles when the file that defines the function changes, but not when a constant does that the
    file imports from another module.
    """
    try:
        compiled = njit(function, cache=True, nogil=True)
    except RuntimeError:  # "cannot cache function" is the only error possible before the first call
        compiled = njit(function, nogil=True)
    return cast(Callable[P, R], compiled)
