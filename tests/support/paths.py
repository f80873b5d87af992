"""The folders of the sources and the tests, and a PYTHONPATH with which other processes find them."""

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"


def python_path(*first: Path) -> str:
    """Return a PYTHONPATH with which a process can import the helpers of the tests.

    The root precedes tests/, whose folders have the names of the product's packages.

    Args:
        first: Folders that precede both.
    """
    return os.pathsep.join(map(str, [*first, ROOT, TESTS]))
