"""How functions are compiled by Numba: once, and kept on disk where there is a place for that."""

from typing import Any

from numba import njit


def jit(function: Any) -> Any:
    """Compile a function at its first call; it holds no lock of the interpreter while it runs.

    Numba keeps the code beside the source, else in the user's cache folder, else where NUMBA_CACHE_DIR says.
    Where it finds none that can be written, as in a container that is read-only, each process compiles anew.
    """
    try:
        return njit(function, cache=True, nogil=True)
    except RuntimeError:  # "cannot cache function": all that can go wrong before the first call
        return njit(function, nogil=True)
