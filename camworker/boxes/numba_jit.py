"""The options with which functions are compiled by Numba."""

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")

# Enough for the compiler to sum with vector instructions. Values that are not finite keep their meaning.
_ANY_ORDER: Final = {"reassoc", "contract", "nsz"}


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function with Numba at its first call and cache the machine code on disk.

    The compiled function releases the interpreter's lock. Numba keeps the code beside the source file, else
    in the user's cache folder, else in NUMBA_CACHE_DIR. Where none of these can be written, as in a read-only
    container, each process compiles anew.

    Numba recompiles when the file that defines the function changes, but not when a constant does that the
    file imports from another module.
    """
    return _compile(function, fastmath=set())


def jit_sums(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function as `jit` does, but let it add up floats in any order.

    Sums over long rows then use vector instructions: they are several times as fast. The result depends on
    the processor in the last digits, as that of a matrix product does.
    """
    return _compile(function, fastmath=_ANY_ORDER)


def _compile(function: Callable[P, R], fastmath: set[str]) -> Callable[P, R]:
    try:
        compiled = njit(function, cache=True, nogil=True, fastmath=fastmath)
    except RuntimeError:  # "cannot cache function" is the only error possible before the first call
        compiled = njit(function, nogil=True, fastmath=fastmath)
    return cast(Callable[P, R], compiled)
